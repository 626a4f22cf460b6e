"""LoMaR in the demo: its configs agree, both starts get the same, and what the report says of it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config, DictAction
from mmengine.registry import DefaultScope
from mmpretrain import get_model
from PIL import Image

from demo import chain
from demo.images import PHOTOGRAPH_CLASSES
from demo.report import STARTS
from demo.tasks import LOMAR_TASK, PRETRAIN, PRETRAIN_LOMAR, TASKS
from demo.training import TrainingResult
from demo.make_data import make_demo_data
from mm_ummae.visualization.sheets import GREY, WINDOW_COLOURS

from .leaves import CONFIGS, build_model, config
from .test_tools import tool

PRETRAINING = CONFIGS / 'demo' / PRETRAIN_LOMAR
CLASSIFICATION = CONFIGS / 'demo' / LOMAR_TASK.config
SIZES = dict(num_pretrain=2, num_labelled_train=10, num_labelled_val=10, num_coco_train=1, num_coco_val=3)


@pytest.fixture(scope='module')
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_demo_data(tmp_path_factory.mktemp('lomar') / 'data', **SIZES, num_ade_train=1, num_ade_val=1)


# Configs


def test_classification_starts_where_pretraining_ends() -> None:
    """The file that the pre-training config writes last, in MMEngine's default work folder; the same backbone."""
    cfg, pretraining = config(CLASSIFICATION), config(PRETRAINING)
    epochs, interval = pretraining.train_cfg.max_epochs, pretraining.default_hooks.checkpoint.interval
    assert epochs % interval == 0
    assert cfg.model.backbone.init_cfg.checkpoint == f'work_dirs/{PRETRAINING.stem}/epoch_{epochs}.pth'
    for key in ('type', 'arch', 'img_size', 'patch_size'):
        assert cfg.model.backbone[key] == pretraining.model.backbone[key]
    assert f'-{epochs}e_' in PRETRAINING.stem and f'1xb{pretraining.train_dataloader.batch_size}-' in PRETRAINING.stem
    warmup, cosine = pretraining.param_scheduler
    assert warmup.end == cosine.begin and cosine.begin + cosine.T_max == cosine.end == epochs


def test_classification_loads_the_pretrained_encoder(tmp_path: Path) -> None:
    """Every weight but the mask token and the last norm, which pre-training alone has."""
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        pretrained = get_model(config(PRETRAINING), pretrained=False, device='cpu')
    torch.manual_seed(0)
    for parameter in pretrained.parameters():
        parameter.data.normal_()
    torch.save(dict(state_dict=pretrained.state_dict()), tmp_path / 'lomar.pth')
    cfg = config(CLASSIFICATION)
    cfg.model.backbone.init_cfg.checkpoint = str(tmp_path / 'lomar.pth')
    model = build_model(cfg, 'cpu')
    model.backbone.init_weights()
    ours, theirs = model.backbone.state_dict(), pretrained.backbone.state_dict()
    assert set(theirs) - set(ours) == {'mask_token', 'ln1.weight', 'ln1.bias'}
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    assert model(torch.zeros(1, 3, 128, 128), mode='tensor').shape == (1, 10)


def test_it_differs_from_the_demo_only_in_network_and_schedule() -> None:
    ours, theirs = config(PRETRAINING).to_dict(), config(CONFIGS / 'demo' / PRETRAIN).to_dict()
    for cfg in (ours, theirs):
        cfg['train_dataloader']['batch_size'] = 0
    schedule = {'optim_wrapper', 'param_scheduler', 'train_cfg', 'default_hooks', 'custom_hooks'}
    names = {'model', 'max_epochs', 'warmup_epochs'} | schedule
    assert {key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key)} <= names
    assert ours['model']['data_preprocessor'] == theirs['model']['data_preprocessor']
    ours, theirs = config(CLASSIFICATION), config(CONFIGS / 'demo' / TASKS['classification'].config)
    assert ours.model.head.num_classes == len(PHOTOGRAPH_CLASSES)
    assert {key for key in ours if ours[key] != theirs[key]} == {'model', 'pretrained'}


# Images


def test_visualize_shows_windows_and_compares_seeds(data: Path, tmp_path: Path) -> None:
    """One checkpoint and seed: a sheet of windows. More: whole images, side by side."""
    torch.save(dict(state_dict=build_model(config(PRETRAINING), 'cpu').state_dict()), tmp_path / 'lomar.pth')
    words = [str(word) for word in (PRETRAINING, tmp_path / 'lomar.pth', data / 'coco' / 'val2017', '--limit', 2)]
    words += ['--out', str(tmp_path / 'sheet.png'), '--seeds', '1']
    visualize = tool('visualize')
    sheets = [np.asarray(Image.open(visualize.main(arguments))) for arguments in (words, [*words, '2'])]
    for sheet, columns in zip(sheets, (5, 3), strict=True):
        assert columns * 256 < sheet.shape[1] < (columns + 1) * 256 and 4 * 256 < sheet.shape[0] < 5 * 256
    lines = [[(sheet == colour).all(2).any() for colour in WINDOW_COLOURS] for sheet in sheets]
    assert all(lines[0]) and not any(lines[1])


# The chain


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[tuple[str, Path, Config, bool]]:
    """Trainings that leave a random checkpoint and an accuracy: 60 % from it and 50 % from scratch."""
    demo = tool('demo_lomar')
    found: list[tuple[str, Path, Config, bool]] = []
    scalars = tmp_path / 'scalars.json'
    scalars.write_text('{"step": 1, "loss": 1.0}\n{"step": 2, "loss": 0.5}\n')

    def train(title: str, script: Path, path: Path, work_dir: Path, options: list[str], again: bool) -> TrainingResult:
        assert script.is_file()
        cfg = Config.fromfile(path)
        parse = DictAction._parse_iterable
        cfg.merge_from_dict({key: parse(value) for key, value in (option.split('=', 1) for option in options)})
        found.append((title, work_dir, cfg, again))
        checkpoint = tmp_path / f'seed{cfg.randomness.seed}.pth'
        if cfg.model.type == 'mm_ummae.LoMaR':
            with DefaultScope.overwrite_default_scope('mmpretrain'):
                model = get_model(cfg, pretrained=False, device='cpu')
            torch.save(dict(state_dict=model.state_dict()), checkpoint)
        top1 = 50.0 if cfg.model.backbone.get('init_cfg') is None else 60.0
        return TrainingResult(7.0, 1.5, {'accuracy/top1': top1}, str(checkpoint), str(scalars))

    monkeypatch.setattr(demo, 'run_training', train)
    monkeypatch.setattr(chain, 'make_demo_data', lambda path, **sizes: (found.append(sizes), path.resolve())[1])
    found.append(demo)
    return found


def test_both_starts_get_the_same_but_for_the_weights(runs: list, data: Path, tmp_path: Path) -> None:
    demo = runs.pop()
    demo.main(['--seeds', '2', '--out', str(tmp_path / 'out'), '--data', str(data), '--resume'])
    sizes, *trainings = runs
    assert sizes == {}, 'the full size'
    what = ('pre-training', 'classification, pre-trained', 'classification, scratch')
    assert [title for title, *_ in trainings] == [f'[seed {seed}] {step}' for seed in (0, 1) for step in what]
    for i, (title, work_dir, cfg, again) in enumerate(trainings):
        assert cfg.randomness.seed == i // 3 and not again
        assert work_dir.parent == tmp_path / 'out' / f'seed{i // 3}'
        assert Path(cfg.train_dataloader.dataset.data_root) == data / 'imagenet', title
    for (_, _, first, _), (_, _, trained, _), (_, _, scratch, _) in (trainings[:3], trainings[3:]):
        assert trained.model.backbone.init_cfg.checkpoint == str(tmp_path / f'seed{first.randomness.seed}.pth')
        assert scratch.model.backbone.init_cfg is None
        trained.model.backbone.init_cfg = None
        assert trained.to_dict() == scratch.to_dict()
    assert len({work_dir for _, work_dir, *_ in trainings}) == 6


def test_the_tool_reports(runs: list, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Table, cost, and the images it names; windows are to be seen on the sheet."""
    demo, out = runs.pop(), tmp_path / 'out'
    demo.main(['--seeds', '2', '--out', str(out), '--data', str(data)])
    text = (out / 'report.md').read_text()
    assert text in capsys.readouterr().out
    assert '| classification, fine-tuned | top-1 % | 60.0 ± 0.0 | 50.0 ± 0.0 | 2 of 2 |' in text
    assert '| linear probe, frozen features | top-1 % |' in text and '| pre-training | 7 | 1.50 |' in text
    assert 'Mask R-CNN' not in text
    seeds = json.loads((out / 'report.json').read_text())
    assert [run['seed'] for run in seeds] == [0, 1]
    assert [seeds[1]['accuracy'][start]['top1'] for start in STARTS] == [60.0, 50.0]
    assert all(seeds[1]['accuracy'][start].keys() == {'linear', 'knn', 'top1'} for start in STARTS)
    for name in ('reconstruction.png', 'loss.png'):
        assert f'`{out / "seed0" / name}`' in text and (out / 'seed1' / name).is_file()
    picture = Image.open(out / 'seed0' / 'reconstruction.png')
    assert 5 * 256 < picture.width < 6 * 256 and 6 * 256 < picture.height < 7 * 256, 'an image and four windows'
    assert (np.asarray(picture) == GREY).all(2).any(), 'no masked patches to see'


def test_the_smallest_size_is_small(runs: list, data: Path, tmp_path: Path) -> None:
    demo = runs.pop()
    demo.main(['--size', 'smoke', '--out', str(tmp_path / 'out'), '--data', str(data)])
    sizes, (_, _, pretraining, again), *finetunings = runs
    assert sizes['num_pretrain'] >= 2 * pretraining.train_dataloader.batch_size and again
    assert pretraining.train_cfg.max_epochs == pretraining.param_scheduler[0].end == 1
    for _, _, cfg, _ in finetunings:
        assert cfg.train_cfg.max_iters == cfg.train_cfg.val_interval == 4


def test_each_size_has_its_folders(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Data are shared with make demo, which has the same sizes."""
    monkeypatch.chdir(tmp_path)
    full, smoke = (chain.parse_args('', 'work_dirs/demo-lomar', words) for words in ([], ['--size', 'smoke']))
    assert (full.out, full.data) == (tmp_path / 'work_dirs/demo-lomar', Path('data/demo'))
    assert (smoke.out, smoke.data) == (tmp_path / 'work_dirs/demo-lomar-smoke', Path('data/demo-smoke'))


@pytest.mark.parametrize('number', ['0', '-1'])
def test_at_least_one_seed(number: str) -> None:
    with pytest.raises(ValueError, match=rf'--seeds is {number}, but at least one is needed'):
        tool('demo_lomar').main(['--seeds', number])


def test_unknown_size(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        tool('demo_lomar').main(['--size', 'huge'])
    assert "invalid choice: 'huge' (choose from" in capsys.readouterr().err
