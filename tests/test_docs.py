"""The documentation: what it names exists, and its tables and worked examples say what configs and code do."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable
from math import gcd
from pathlib import Path

import pytest
import torch
import yaml
from mmengine.config import Config

from mm_ummae.masking import UniformMask, cells_to_raster, draw_uniform_mask
from mm_ummae.models import UMMAEDecoder

from . import doc_checks
from .doc_checks import INLINE, commands, tables, tool
from .leaves import LEAVES, ROOT, is_demo, read

DOCS = ROOT / 'docs'
TEXTS = [ROOT / 'README.md', *sorted(DOCS.glob('*.md')), *sorted((ROOT / 'configs').rglob('*.md'))]
CHECKS = [
    doc_checks.missing_paths,
    doc_checks.unknown_configs,
    doc_checks.unknown_targets,
    doc_checks.wrong_commands,
    doc_checks.wrong_keys,
]


def page(name: str) -> str:
    return (DOCS / f'{name}.md').read_text()


# Every text


@pytest.mark.parametrize('path', TEXTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path: Path) -> None:
    assert doc_checks.broken_links(path.read_text(), path) == []


@pytest.mark.parametrize('check', CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize('path', TEXTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_names_exist(path: Path, check: Callable[[str], list[str]]) -> None:
    assert check(path.read_text()) == []


def test_every_page_is_in_the_index() -> None:
    linked = set(re.findall(r'\]\((\w+\.md)\)', page('README')))
    assert linked == {path.name for path in DOCS.glob('*.md')} - {'README.md'}


def test_no_place_of_one_machine_is_named() -> None:
    for path in TEXTS:
        assert not re.search(r'(?<![\w.])/(root|home|tmp)/\w', path.read_text()), path


# The checks themselves: each finds what is wrong and lets what is right pass

SWIN = 'configs/ummae/ummae_swin-tiny_8xb128x4-amp-coslr-200e_in1k-256px.py'
WRONG = [
    ('missing_paths', '`configs/ummae/ummae_swin.py`', 'configs/ummae/ummae_swin.py: no such path'),
    ('missing_paths', 'see tools/strain.py and `mm_ummae/layers/`', 'mm_ummae/layers/: no such path'),
    ('unknown_configs', '`gfl/gfl_um-swin-tiny_fpn`', 'gfl_um-swin-tiny_fpn: no such config'),
    ('unknown_configs', '`htcpp_um-swin-huge_fpn`', 'htcpp_um-swin-huge_fpn: no such config'),
    ('unknown_configs', 'mmdet::gfl/none_coco.py', 'mmdet::gfl/none_coco.py: no such config'),
    ('unknown_targets', '`SIZE=smoke make dmeo`', 'make dmeo: no such target'),
    ('wrong_commands', '`python tools/strain.py X`', 'tools/strain.py: no such tool'),
    ('wrong_commands', '```bash\npython tools/train.py X \\\n    --scale\n```', 'no option --scale'),
    ('wrong_commands', f'`bash tools/dist_train.sh {SWIN} 8 --gpus 8`', 'no option --gpus'),
    ('wrong_commands', '`mim train mmdetection CONFIG`', 'mmdetection: no such host'),
    ('wrong_commands', '`mim train mmpretrain x.py --gups 8`', 'no option --gups'),
    ('wrong_commands', '`mim run mm_ummae visualise x.py`', 'visualise: no such script of mm_ummae'),
    ('wrong_commands', '`mim run mmdet download_datasets`', 'download_datasets: no such script of mmdet'),
    ('wrong_commands', '`mim download mmdet --dataset coco2018`', 'coco2018: no such data set'),
    ('wrong_commands', '`mim download mmsegmentation --dataset ade20k`', 'ade20k: no such data set'),
    ('wrong_keys', f'`python tools/train.py {SWIN} --cfg-options model.nek.depth=1`', 'model.nek.depth: not in'),
    ('wrong_keys', f'`python tools/train.py {SWIN} --cfg-options model.neck.deep=1`', 'model.neck.deep: not in'),
    ('wrong_keys', f'`python tools/train.py {SWIN} --cfg-options param_scheduler.2.end=1`', 'param_scheduler.2.end:'),
    # A name at the top of a base file, which changes nothing
    ('wrong_keys', f'`python tools/train.py {SWIN} --resume --cfg-options max_epochs=1`', 'max_epochs: not in'),
    (
        'wrong_keys',
        f'```\nX={SWIN}\nmim run mmpretrain a $X --cfg-options model.a=1\n```',
        'model.a: not in ummae_swin',
    ),
    ('wrong_keys', '`python tools/train.py CONFIG --cfg-options model.a=1`', 'model.a: not in any config'),
]
RIGHT = f"""
`configs/ummae`, `mm_ummae/masking.py`, `data/demo/x.py`, `{Path(SWIN).stem}`,
`ummae_swin_nosm`, `FORCE_CUDA=1 make test`

```bash
python -m torch.distributed.run --nproc_per_node=8 tools/train.py {SWIN} --launcher pytorch   # a user's --comment
bash tools/dist_train.sh {SWIN} 8 --auto-scale-lr --cfg-options model.backbone.with_cp=True \\
    model.neck.published_positions=True optim_wrapper.dtype=bfloat16 optim_wrapper._delete_=True --resume x=y
mim train mmpretrain {SWIN} --gpus 8 --launcher pytorch --cfg-options model.secondary_ratio=0.5
mim run onedl-mmdetection download_dataset --save-dir data/coco
mim run mm_ummae visualize X --out y.png
mim download mmdet --dataset coco2017
python tools/train.py CONFIG --cfg-options val_evaluator.ann_file=x
other --program
```
"""


@pytest.mark.parametrize(('check', 'text', 'problem'), WRONG, ids=lambda value: str(value)[:40])
def test_checks_find_what_is_wrong(check: str, text: str, problem: str) -> None:
    assert problem in '\n'.join(getattr(doc_checks, check)(text))


@pytest.mark.parametrize('check', CHECKS, ids=lambda check: check.__name__)
def test_checks_pass_what_is_right(check: Callable[[str], list[str]]) -> None:
    assert check(RIGHT) == []


def test_links_are_followed(tmp_path: Path) -> None:
    (tmp_path / 'a.md').write_text('# One `two`: Three!\n## x\n## x\n```\n# no heading\n```\n')
    text = '[1](a.md) [2](a.md#one-two-three) [3](a.md#x-1) [4](https://example.org/b.md) `[5](c.md)`'
    assert doc_checks.broken_links(text, tmp_path / 'b.md') == []
    wrong = '[1](b.md) ![2](a.png) [3](a.md#x-2) [4](a.md#no-heading)'
    assert doc_checks.broken_links(wrong, tmp_path / 'c.md') == [
        'b.md: no such file',
        'a.png: no such file',
        'a.md#x-2: no such heading',
        'a.md#no-heading: no such heading',
    ]


# results.md


def metafile_models() -> dict[str, dict]:
    files = yaml.safe_load((ROOT / 'model-index.yml').read_text())['Import']
    return {model['Name']: model for file in files for model in yaml.safe_load((ROOT / file).read_text())['Models']}


def test_results_name_every_model() -> None:
    named = {name for name in INLINE.findall(page('results')) if '_' in name}
    assert named == set(metafile_models())


def test_results_are_those_of_the_metafiles() -> None:
    models, checked = metafile_models(), set()
    (rows,) = (rows for _, head, rows in tables(page('results')) if head[0] == 'pre-training')
    for pretraining, epochs, hours, finetuning, top1, reproduced in rows:
        # LoMaR in BEiT gives MMPretrain's network, which it fine-tunes
        links = [] if pretraining.startswith('`lomar-beit_') else [finetuning.strip('`')]
        assert reproduced == 'no' and set(links) <= models.keys()
        if pretraining.strip('`') not in models:
            assert pretraining == 'SimMIM Swin-L: no config here'
            continue
        model = models[pretraining.strip('`')]
        assert model['Metadata']['Epochs'] == int(epochs)
        assert model['Metadata'].get('Published Training Hours') == (None if hours == '–' else float(hours))
        assert model['Metadata']['Published Top 1 Accuracy'] == float(top1)
        assert model.get('Downstream', [])[:1] == links
        checked.add(model['Name'])
    assert checked == {name for name, model in models.items() if 'Published Top 1 Accuracy' in model['Metadata']}


# data.md


def folders_read(cfg: Config) -> set[str]:
    """Files and folders that the training and validation sets of a config read."""
    found = set()
    for loader in ('train_dataloader', 'val_dataloader'):
        dataset = (cfg.get(loader) or {}).get('dataset')
        if dataset is None:
            continue
        parts = dataset.get('data_prefix', dataset.get('split'))
        parts = list(parts.values()) if isinstance(parts, dict) else [parts]
        parts += [dataset.ann_file] if dataset.get('ann_file') else []
        found |= {str(Path(dataset.data_root) / part) for part in parts}
    return found


def test_data_are_where_the_configs_look() -> None:
    (rows,) = (rows for _, head, rows in tables(page('data')) if head == ['configs', 'reads'])
    told = {folder: set(INLINE.findall(reads)) for folders, reads in rows for folder in INLINE.findall(folders)}
    assert set(told) == {f'configs/{path.parent.name}' for path in LEAVES}
    for path in LEAVES:
        needed = folders_read(read(path))
        if is_demo(path):
            assert needed and all(Path(folder).is_relative_to(*told['configs/demo']) for folder in needed)
            continue
        named, optional = told[f'configs/{path.parent.name}'], {'data/imagenet/meta'}
        if 'without-semantic' in path.stem:
            optional.add('data/coco/stuffthingmaps/train2017')
        assert needed == named - optional, path.stem


# one_gpu.md

ONE_GPU = [command for command in commands(page('one_gpu')) if re.search(r'= \d+, lr ', command.comment)]


@pytest.mark.parametrize('command', ONE_GPU, ids=lambda command: command.comment)
def test_one_gpu_trains_with_what_it_says(command: doc_checks.Command) -> None:
    """GPUs x images x accumulation = total, the rate, and warm-ups and ends that are counted in iterations."""
    train = tool('train')
    args = train.parse_args(command.words[2:])
    cfg, published = train.load_config(args), read(ROOT / args.config)
    gpus, images, accumulated, total, lr = re.match(
        r'(\d+) x (\d+) x (\d+) = (\d+), lr (\S+)$', command.comment
    ).groups()
    batch = cfg.train_dataloader.batch_size
    counts = cfg.optim_wrapper.get('accumulative_counts', 1)
    scale = int(gpus) * batch / cfg.auto_scale_lr.base_batch_size if args.auto_scale_lr else 1
    assert (batch, counts, int(gpus) * batch * counts) == (int(images), int(accumulated), int(total))
    assert cfg.optim_wrapper.optimizer.lr * scale == pytest.approx(float(lr))
    # The rate grows with the total batch, from the published pair
    published_total = 8 * published.train_dataloader.batch_size * published.optim_wrapper.get('accumulative_counts', 1)
    assert float(lr) / int(total) == pytest.approx(published.optim_wrapper.optimizer.lr / published_total)
    factor = counts / published.optim_wrapper.get('accumulative_counts', 1)
    for ours, theirs in zip(cfg.param_scheduler, published.param_scheduler, strict=True):
        if not theirs.by_epoch:
            assert (ours.begin, ours.end) == (factor * theirs.begin, factor * theirs.end)
    if 'max_iters' in published.train_cfg:
        assert cfg.train_cfg.max_iters == factor * published.train_cfg.max_iters
        assert cfg.train_cfg.val_interval == factor * published.train_cfg.val_interval
        assert cfg.default_hooks.checkpoint.interval == factor * published.default_hooks.checkpoint.interval


def test_one_gpu_covers_every_task() -> None:
    assert {Path(command.words[2]).parent.name for command in ONE_GPU} == {
        'ummae', 'imagenet', 'mask_rcnn', 'gfl', 'htc', 'upernet'
    }  # fmt: skip


# migration.md


def test_migration_table_is_that_of_the_configs() -> None:
    text = page('migration')
    assert doc_checks.wrong_rows(text) == []
    values = [row[2] for _, head, rows in tables(text) if 'our key or option' in head for row in rows]
    assert sum(bool(re.fullmatch(r'(?:ours: )?`.+`', value)) for value in values) > 50


def test_wrong_rows_are_found() -> None:
    rows = [
        '| a | `train_dataloader.batch_size` | `127` |',
        '| b | the `optim_wrapper.optimizer.rate` | `1` |',
        '| c | option `--wrok-dir` | yours |',
        '| d | `optim_wrapper.optimizer.betas` | ours: `(0.9, 0.95)` |',
        '| e | `optim_wrapper.clip_grad` | – |',
    ]
    table = '\n'.join(['| flag | our key or option | value |', '|---|---|---|', *rows])
    assert doc_checks.wrong_rows(f'Keys of `{SWIN}`:\n\n{table}\n') == [
        f'train_dataloader.batch_size: 128 in {SWIN}, not `127`',
        f'optim_wrapper.optimizer.rate: not in {SWIN}',
        '--wrok-dir: no option of tools/train.py',
    ]


# published_defects.md


def used_positions(mask: UniformMask, published: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """(row, column) of each sampled unit in cell order, and of the position the decoder adds to it: (N, V, 2)."""
    n, gh, gw = mask.offsets.shape
    places = torch.stack(torch.meshgrid(torch.arange(2 * gh), torch.arange(2 * gw), indexing='ij'), -1)
    decoder = UMMAEDecoder(8, embed_dims=8, depth=0, num_heads=1, img_size=32, published_positions=published)
    added = decoder._ordered(places, mask).expand(n, -1, -1, -1)
    kept = cells_to_raster(torch.arange(4) == mask.offsets[..., None])
    units = cells_to_raster(torch.arange(gh * gw).view(1, gh, gw, 1).expand(n, -1, -1, 4))[kept].view(n, -1)
    order = units.argsort(1)[..., None].expand(-1, -1, 2)  # from raster to cell order
    places = places.expand(n, -1, -1, -1)
    return places[kept].view(n, -1, 2).gather(1, order), added[kept].view(n, -1, 2).gather(1, order)


def test_worked_example_of_positions() -> None:
    text = page('published_defects')
    offsets = [
        [int(o) for o in row.split()] for row in re.search(r'offsets ([\d ]+) in.* and ([\d ]+) in', text).groups()
    ]
    mask = UniformMask(torch.tensor([offsets]), torch.zeros(1, 2, 3, dtype=torch.bool))
    drawing = re.findall(r'^ +\d +([.X] [.X] +[.X] [.X] +[.X] [.X])$', text, re.MULTILINE)
    assert [[mark == 'X' for mark in row.split()] for row in drawing] == (~mask.unsampled()).view(4, 6).tolist()

    (rows,) = (rows for _, head, rows in tables(text) if head[0] == 'cell')
    own, added = used_positions(mask, published=True)
    for cell, unit, position, right in rows:
        place = own[0, int(cell)].tolist(), added[0, int(cell)].tolist()
        assert place == (list(ast.literal_eval(unit)), list(ast.literal_eval(position)))
        assert right == ('yes' if place[0] == place[1] else 'no')
    assert len(rows) == 6
    assert torch.equal(*used_positions(mask, published=False))


def test_share_of_wrong_positions() -> None:
    text = page('published_defects')
    (rows,) = (rows for _, head, rows in tables(text) if head[0] == 'image')
    for image, cells, share in rows:
        side, n = int(image.removesuffix(' px')), int(cells)
        assert side == 32 * n
        assert float(share.removesuffix(' %')) == pytest.approx(100 * (1 - (2 - 2 ** (1 - n)) / n), abs=0.05)
        mask = draw_uniform_mask(1000, (32, side), 0.0, generator=torch.Generator().manual_seed(0))
        own, added = used_positions(mask, published=True)
        wrong = (own != added).any(-1).float()
        assert float(share.removesuffix(' %')) == pytest.approx(100 * wrong.mean().item(), abs=2)
        if side == 256:
            distance = (own - added).float().norm(dim=-1).sum() / wrong.sum()
            told = float(re.search(r'([\d.]+) units away', text)[1])
            assert told == pytest.approx(distance.item(), abs=0.1)


def test_worked_example_of_windows() -> None:
    (table,) = ([head, *rows] for _, head, rows in tables(page('published_defects')) if head[0] == 'sequence')
    rows = {name: [int(cell) for cell in cells] for name, *cells in table}
    images, windows = 4, 2
    sequences = list(range(images * windows))
    assert rows == {
        'sequence': sequences,
        'image, k mod 4': [k % images for k in sequences],
        'window, k mod 2': [k % windows for k in sequences],
        'meant: window, k // 4': [k // images for k in sequences],
    }
    for n, w in ((4, 2), (256, 4), (5, 4), (6, 4)):  # what the page says of any N and W
        assert all(len({k % w for k in range(n * w) if k % n == i}) == w // gcd(n, w) for i in range(n))
