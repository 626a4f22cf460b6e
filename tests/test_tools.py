"""The tools as a user calls them: train, be interrupted, go on, evaluate, look at images, read the report."""

from __future__ import annotations

import importlib.util
import json
import math
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import mmpretrain
import numpy as np
import pytest
import torch
from mmengine.config import Config
from PIL import Image

from demo import probe as probing
from demo import training
from demo.images import PHOTOGRAPH_CLASSES
from demo.probe import frozen_features, load_labelled, probe
from demo.report import ROWS, cost_table, results_table, save_report
from demo.tasks import PROBED
from demo.training import EPOCH, PROGRESS, TrainingResult, run_training
from demo.make_data import make_demo_data
from mm_ummae.models import UMSwin
from mm_ummae.registry import MODELS
from mm_ummae.visualization.sheets import GREY

ROOT = Path(__file__).parents[1]
TRAIN = ROOT / 'tools' / 'train.py'
DEMO = ROOT / 'configs' / 'demo'
PRETRAIN = DEMO / 'ummae_swin-test_1xb64-coslr-20e_demo-128px.py'
CLASSIFICATION = DEMO / 'um-swin-test_classification_1xb16-100it_demo-128px.py'
EPOCHS, ITERATIONS = 3, 4  # of the interrupted run; iterations of an epoch
HERE = ('num_workers=0', 'persistent_workers=False')  # no loader processes for a handful of images


def tool(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f'{name}_tool', ROOT / 'tools' / f'{name}.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope='module')
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    counts = dict.fromkeys(('num_coco_train', 'num_coco_val', 'num_ade_train', 'num_ade_val'), 1)
    return make_demo_data(
        tmp_path_factory.mktemp('data') / 'demo',
        image_size=128,
        num_pretrain=16,
        num_labelled_train=20,
        num_labelled_val=10,
        **counts,
    )


def pretrain_options(data: Path, epochs: int) -> list[str]:
    """A run of ``epochs`` epochs, the first of which is warm-up, with a checkpoint after each."""
    return [
        f'train_dataloader.dataset.data_root={data / "imagenet"}',
        f'train_dataloader.batch_size={16 // ITERATIONS}',
        *(f'train_dataloader.{option}' for option in HERE),
        f'train_cfg.max_epochs={epochs}',
        'param_scheduler.0.end=1',
        'param_scheduler.1.begin=1',
        f'param_scheduler.1.T_max={EPOCHS - 1}',
        f'param_scheduler.1.end={EPOCHS}',
        'default_hooks.logger.interval=1',
        'default_hooks.checkpoint.interval=1',
    ]


def classification_options(data: Path) -> list[str]:
    splits = ('train', 'val', 'test')
    return [
        *(f'{split}_dataloader.dataset.data_root={data / "imagenet"}/' for split in splits),
        *(f'{split}_dataloader.{option}' for split in splits for option in HERE),
        'train_dataloader.batch_size=10',
    ]


def scalars(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / 'vis_data' / 'scalars.json').read_text().splitlines()]


# Pre-training, interrupted


@pytest.fixture(scope='module')
def resumed(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Work folder of a run that was killed after the first epoch's checkpoint and then resumed."""
    work_dir = tmp_path_factory.mktemp('resumed')
    command = [sys.executable, str(TRAIN), str(PRETRAIN), '--work-dir', str(work_dir)]
    options = ['--cfg-options', *pretrain_options(data, EPOCHS)]
    with (work_dir / 'output.txt').open('w') as output:
        process = subprocess.Popen([*command, *options], stdout=output, stderr=subprocess.STDOUT)
        try:
            while not (work_dir / 'last_checkpoint').exists():
                assert process.poll() is None, (work_dir / 'output.txt').read_text()
                time.sleep(0.02)
        finally:
            process.kill()
            process.wait()
    assert not (work_dir / f'epoch_{EPOCHS}.pth').exists(), 'it had finished before'
    done = subprocess.run([*command, '--resume', *options], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return work_dir


def test_a_killed_run_goes_on_after_its_last_checkpoint(resumed: Path) -> None:
    """Not from the start and not from the weights alone: epoch, iteration and learning rate continue."""
    killed, second = sorted(path for path in resumed.iterdir() if path.is_dir())
    assert scalars(killed)[0]['step'] == 1
    steps = scalars(second)
    first = steps[0]['epoch']
    assert 1 < first <= EPOCHS
    assert [record['step'] for record in steps] == list(range((first - 1) * ITERATIONS + 1, EPOCHS * ITERATIONS + 1))
    assert [record['epoch'] for record in steps] == [e for e in range(first, EPOCHS + 1) for _ in range(ITERATIONS)]
    total = (EPOCHS - 1) * ITERATIONS
    for record in steps:
        done = record['step'] - 1 - ITERATIONS
        assert record['lr'] == pytest.approx(1.5e-3 * 0.5 * (1 + math.cos(math.pi * done / total)), rel=1e-3)
    log = next(second.glob('*.log')).read_text()
    assert re.search(rf'resumed epoch: {first - 1}, iter: {(first - 1) * ITERATIONS}', log)


def test_a_resumed_run_finishes(resumed: Path) -> None:
    assert {path.name for path in resumed.glob('*.pth')} == {f'epoch_{i}.pth' for i in range(1, EPOCHS + 1)}
    assert Path((resumed / 'last_checkpoint').read_text()).name == f'epoch_{EPOCHS}.pth'
    checkpoint = torch.load(resumed / f'epoch_{EPOCHS}.pth', weights_only=False)
    assert checkpoint['meta']['iter'] == EPOCHS * ITERATIONS
    assert all(value.isfinite().all() for value in checkpoint['state_dict'].values())


def test_mim_trains_through_the_hosts_own_script(data: Path, tmp_path: Path) -> None:
    """The README's command: mmpretrain's tools/train.py with our config, from a folder that is not ours."""
    command = [str(Path(sys.executable).parent / 'mim'), 'train', 'mmpretrain', str(PRETRAIN)]
    command += ['--work-dir', str(tmp_path / 'run'), '--cfg-options', *pretrain_options(data, 1)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    script = Path(mmpretrain.__file__).parent / '.mim' / 'tools' / 'train.py'
    assert f'{script} {PRETRAIN}' in done.stdout
    assert (tmp_path / 'run' / 'epoch_1.pth').is_file()
    (run,) = (path for path in (tmp_path / 'run').iterdir() if path.is_dir())
    assert [record['step'] for record in scalars(run)] == list(range(1, ITERATIONS + 1))


# Fine-tuning and evaluation


@pytest.fixture(scope='module')
def finetuned(resumed: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, TrainingResult]:
    """Two iterations of classification, as the demo starts it; its work folder and result."""
    work_dir = tmp_path_factory.mktemp('finetuned') / 'run'
    return work_dir, run_training('classification', TRAIN, CLASSIFICATION, work_dir, finetune_options(resumed, data))


def finetune_options(resumed: Path, data: Path) -> list[str]:
    checkpoint = resumed / f'epoch_{EPOCHS}.pth'
    start = f'model.backbone.init_cfg.checkpoint={checkpoint}'
    short = ('train_cfg.max_iters=2', 'train_cfg.val_interval=2', 'default_hooks.logger.interval=1')
    return [*classification_options(data), start, *short]


def test_run_training_reports_what_the_run_left(finetuned: tuple[Path, TrainingResult], resumed: Path) -> None:
    work_dir, result = finetuned
    assert result.seconds > 1 and 0.1 < result.peak_memory_gb < 16
    assert 0 <= result.metrics['accuracy/top1'] <= 100
    assert Path(result.checkpoint) == work_dir / 'iter_2.pth' and Path(result.checkpoint).is_file()
    assert Path(result.scalars).is_relative_to(work_dir)
    output = (work_dir / 'output.txt').read_text()
    assert f'parameters loaded from {resumed / f"epoch_{EPOCHS}.pth"}' in output
    assert re.search(r'\(train\) .*\[2/2\]', output)


def test_run_training_reuses_a_finished_run_only_with_the_same_options(
    finetuned: tuple[Path, TrainingResult], resumed: Path, data: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    work_dir, result = finetuned
    options = finetune_options(resumed, data)
    kept = (work_dir / 'result.json').read_text()

    def started(*_: object) -> None:
        raise InterruptedError('it was started')

    monkeypatch.setattr(training, '_run', started)
    assert run_training('x', TRAIN, CLASSIFICATION, work_dir, options, again=False) == result
    for changed, again in ((options, True), ([*options, 'randomness.seed=1'], False)):
        (work_dir / 'result.json').write_text(kept)
        with pytest.raises(InterruptedError, match=r'it was started'):
            run_training('x', TRAIN, CLASSIFICATION, work_dir, changed, again=again)
        assert not (work_dir / 'result.json').exists(), 'an interrupted run counts as finished'
    (work_dir / 'result.json').write_text(kept)
    with pytest.raises(InterruptedError, match=r'it was started'):
        run_training('x', TRAIN, CLASSIFICATION, tmp_path / 'new', options, again=False)


def test_run_training_shows_the_end_of_a_failed_run(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r'failed with status 1; all is in .*output\.txt') as error:
        run_training('broken', TRAIN, PRETRAIN, tmp_path / 'run', ['model.backbone.windw_size=16'])
    assert 'windw_size' in str(error.value).splitlines()[-1]
    assert len(str(error.value).splitlines()) <= 16
    assert 'windw_size' in (tmp_path / 'run' / 'output.txt').read_text()
    assert not (tmp_path / 'run' / 'result.json').exists()


@pytest.fixture(scope='module')
def evaluated(
    finetuned: tuple[Path, TrainingResult], data: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, float]]:
    """Work folder and metrics of ten validation images, with --show-dir."""
    work_dir = tmp_path_factory.mktemp('evaluated')
    arguments = [str(CLASSIFICATION), finetuned[1].checkpoint, '--work-dir', str(work_dir), '--show-dir', 'seen']
    return work_dir, tool('test').main([*arguments, '--cfg-options', *classification_options(data)])


def test_evaluation_gives_the_accuracy_of_the_run(
    finetuned: tuple[Path, TrainingResult], evaluated: tuple[Path, dict[str, float]]
) -> None:
    """The number that the run itself got from the same weights, also in the log."""
    work_dir, metrics = evaluated
    assert metrics['accuracy/top1'] == pytest.approx(finetuned[1].metrics['accuracy/top1'])
    (log,) = work_dir.glob('*/*.log')
    assert f'accuracy/top1: {metrics["accuracy/top1"]:.4f}' in log.read_text()


def test_show_dir_gets_every_picture(evaluated: tuple[Path, dict[str, float]]) -> None:
    """As with mmdet and mmseg; mmpretrain's hook by itself draws one image of 5,000."""
    assert len(list((evaluated[0] / 'seen').rglob('*.png'))) == 10


# Command lines


class Recorded(Exception):
    """Stops a tool where it would build its runner."""


@pytest.fixture
def configs(monkeypatch: pytest.MonkeyPatch) -> list[Config]:
    """Configs that reach MMEngine's runner; nothing runs."""
    from mmengine.runner import Runner

    seen: list[Config] = []

    def record(cfg: Config) -> None:
        seen.append(cfg)
        raise Recorded

    monkeypatch.setattr(Runner, 'from_cfg', record)
    return seen


def started(name: str, configs: list[Config], *arguments: object) -> Config:
    with pytest.raises(Recorded):
        tool(name).main([str(argument) for argument in arguments])
    return configs[-1]


def test_train_options(configs: list[Config], tmp_path: Path) -> None:
    cfg = started('train', configs, PRETRAIN)
    assert cfg.work_dir == f'work_dirs/{PRETRAIN.stem}' and cfg.launcher == 'none'
    assert cfg.load_from is None and cfg.resume is False and cfg.optim_wrapper.type == 'OptimWrapper'
    cfg = started('train', configs, PRETRAIN, '--work-dir', tmp_path, '--amp', '--resume', '--launcher', 'pytorch')
    assert (cfg.work_dir, cfg.launcher, cfg.resume, cfg.load_from) == (str(tmp_path), 'pytorch', True, None)
    assert (cfg.optim_wrapper.type, cfg.optim_wrapper.loss_scale) == ('AmpOptimWrapper', 'dynamic')
    cfg = started('train', configs, PRETRAIN, '--resume', 'epoch_3.pth')
    assert cfg.resume is True and cfg.load_from == 'epoch_3.pth'


def test_train_from_scratch_is_an_option(configs: list[Config]) -> None:
    cfg = started('train', configs, CLASSIFICATION, '--cfg-options', 'model.backbone.init_cfg=None')
    assert cfg.model.backbone.init_cfg is None


def test_auto_scaling_needs_a_base(configs: list[Config]) -> None:
    full = ROOT / 'configs' / 'ummae' / 'ummae_swin-tiny_8xb128x4-amp-coslr-200e_in1k-256px.py'
    assert started('train', configs, full, '--auto-scale-lr').auto_scale_lr == dict(base_batch_size=1024, enable=True)
    configs.clear()
    with pytest.raises(ValueError, match=rf'--auto-scale-lr needs auto_scale_lr\.base_batch_size.*{PRETRAIN.stem}'):
        tool('train').main([str(PRETRAIN), '--auto-scale-lr'])
    assert not configs


@pytest.mark.parametrize(
    ('name', 'switch'),
    [
        ('demo/um-swin-test_classification_1xb16-100it_demo-128px', 'enable'),
        ('mask_rcnn/mask-rcnn_um-swin-tiny_fpn_amp-1x_coco', 'draw'),
        ('upernet/upernet_um-swin-tiny_8xb2-amp-160k_ade20k-512x512', 'draw'),
    ],
)
def test_show_dir_switches_the_hosts_hook_on(name: str, switch: str, configs: list[Config], tmp_path: Path) -> None:
    path = ROOT / 'configs' / f'{name}.py'
    off = started('test', configs, path, 'x.pth', '--work-dir', tmp_path)
    assert not off.default_hooks.visualization.get(switch, False) and 'save_dir' not in off.visualizer
    assert off.load_from == 'x.pth'
    on = started('test', configs, path, 'x.pth', '--work-dir', tmp_path, '--show-dir', 'seen')
    hook = on.default_hooks.visualization
    assert hook[switch] is True and {'enable', 'draw'} & set(hook) == {switch}
    assert on.visualizer.save_dir == str(tmp_path / 'seen')


def test_show_dir_needs_a_hook(configs: list[Config], tmp_path: Path) -> None:
    (tmp_path / 'bare.py').write_text("default_hooks = dict(logger=dict(type='LoggerHook'))\n")
    with pytest.raises(ValueError, match=r'--show-dir needs default_hooks\.visualization, which .*bare\.py'):
        tool('test').main([str(tmp_path / 'bare.py'), 'x.pth', '--show-dir', 'seen'])
    assert not configs


def test_distributed_script_says_how_it_is_called() -> None:
    done = subprocess.run(['bash', str(ROOT / 'tools' / 'dist_train.sh')], capture_output=True, text=True)
    assert done.returncode == 2 and 'tools/dist_train.sh CONFIG GPUS' in done.stderr


# Reconstructions


@pytest.fixture
def visualize() -> ModuleType:
    return tool('visualize')


def reconstruct(visualize: ModuleType, resumed: Path, images: Path, *arguments: object) -> Path:
    words = [PRETRAIN, resumed / f'epoch_{EPOCHS}.pth', images, *arguments]
    return visualize.main([str(word) for word in words])


def test_reconstructions_of_a_folder(
    visualize: ModuleType, resumed: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A row for each of the first images, below the folder and in order of their names."""
    folder = data / 'imagenet'
    images = visualize.find_images(folder / 'unlabelled', 3)
    assert [path.name for path in images] == ['00000000.jpg', '00000001.jpg', '00000002.jpg']
    sheet = reconstruct(visualize, resumed, folder / 'unlabelled', '--limit', 3, '--out', tmp_path / 'new' / 'a.png')
    assert sheet == tmp_path / 'new' / 'a.png'
    picture = Image.open(sheet)
    assert picture.format == 'PNG' and picture.width > 5 * 256 and picture.height > 3 * 256
    assert (np.asarray(picture.convert('RGB')) == GREY).all(2).any(), 'no masked units to see'
    assert capsys.readouterr().out.endswith(f'3 reconstructions in {sheet}\n')
    assert len(visualize.find_images(folder / 'val', 100)) == 10, 'subfolders count'


def test_reconstructions_repeat_with_their_seed(
    visualize: ModuleType, resumed: Path, data: Path, tmp_path: Path
) -> None:
    image = data / 'imagenet' / 'unlabelled' / '00000003.jpg'
    sheets = []
    for i, seed in enumerate((0, 0, 1)):
        sheet = reconstruct(visualize, resumed, image, '--out', tmp_path / f'{i}.png', '--seed', seed)
        sheets.append(np.asarray(Image.open(sheet)))
    assert np.array_equal(sheets[0], sheets[1]) and not np.array_equal(sheets[0], sheets[2])


def test_reconstructions_of_another_size(visualize: ModuleType, resumed: Path, data: Path, tmp_path: Path) -> None:
    image = data / 'imagenet' / 'unlabelled' / '00000003.jpg'
    assert reconstruct(visualize, resumed, image, '--out', tmp_path / 'a.png', '--image-size', 192).is_file()
    with pytest.raises(ValueError, match=r'image height is 100 px, but Uniform Sampling needs .* multiple of 32'):
        reconstruct(visualize, resumed, image, '--out', tmp_path / 'b.png', '--image-size', 100)


def test_reconstruction_names_what_is_missing(visualize: ModuleType, resumed: Path, data: Path, tmp_path: Path) -> None:
    for path in (tmp_path / 'nowhere', tmp_path):
        with pytest.raises(FileNotFoundError, match=rf'{re.escape(str(path))} is no image and no folder with'):
            reconstruct(visualize, resumed, path)
    with pytest.raises(FileNotFoundError, match=r'nowhere\.pth does not exist'):
        visualize.main([str(PRETRAIN), str(tmp_path / 'nowhere.pth'), str(data)])


def test_reconstruction_names_the_corrupt_picture(
    visualize: ModuleType, resumed: Path, data: Path, tmp_path: Path
) -> None:
    for i in range(3):
        shutil.copy(data / 'imagenet' / 'unlabelled' / f'0000000{i}.jpg', tmp_path)
    bad = tmp_path / '00000001.jpg'
    bad.write_bytes(bad.read_bytes()[:700])
    with pytest.raises(ValueError, match=r'the image .*00000001\.jpg cannot be read: \w+: .'):
        reconstruct(visualize, resumed, tmp_path, '--out', tmp_path / 'sheet.png')
    assert not (tmp_path / 'sheet.png').exists()


def test_reconstruction_refuses_a_truncated_checkpoint(
    visualize: ModuleType, resumed: Path, data: Path, tmp_path: Path
) -> None:
    whole = (resumed / f'epoch_{EPOCHS}.pth').read_bytes()
    (tmp_path / 'cut.pth').write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r'cut\.pth cannot be read'):
        visualize.main([str(PRETRAIN), str(tmp_path / 'cut.pth'), str(data)])


def test_reconstruction_refuses_another_models_checkpoint(
    visualize: ModuleType, finetuned: tuple[Path, TrainingResult], data: Path
) -> None:
    checkpoint = finetuned[1].checkpoint
    message = r'iter_2\.pth does not fit UMMAE, nothing .* missing: .*backbone\.secondary_token.*unexpected: head\.fc'
    with pytest.raises(ValueError, match=message):
        visualize.main([str(PRETRAIN), checkpoint, str(data)])


@pytest.fixture
def columns(visualize: ModuleType, monkeypatch: pytest.MonkeyPatch) -> dict[str, list]:
    """What the tool compares: column title to samples."""
    seen: dict[str, list] = {}
    draw = visualize.comparison_sheet
    monkeypatch.setattr(visualize, 'comparison_sheet', lambda columns: (seen.update(columns), draw(columns))[1])
    return seen


def same_masks(first: list, second: list) -> bool:
    return all(torch.equal(a.hidden, b.hidden) for a, b in zip(first, second, strict=True))


def test_checkpoints_and_seeds_are_compared_side_by_side(
    visualize: ModuleType, resumed: Path, data: Path, tmp_path: Path, columns: dict[str, list]
) -> None:
    """UM-MAE twice and SimMIM: a seed gives the same masks to models that mask alike."""
    simmim = DEMO / 'simmim_swin-test_1xb64-coslr-20e_demo-128px.py'
    torch.manual_seed(0)
    model = MODELS.build(Config.fromfile(simmim).model)
    torch.save(dict(state_dict=model.state_dict()), tmp_path / 'simmim.pth')
    others = ('--compare', PRETRAIN, resumed / 'epoch_1.pth', '--compare', simmim, tmp_path / 'simmim.pth')
    arguments = ('--limit', 2, '--seeds', 3, 4, '--out', tmp_path / 'sheet.png')
    sheet = reconstruct(visualize, resumed, data / 'imagenet' / 'unlabelled', *others, *arguments)
    picture = Image.open(sheet)
    assert 7 * 256 < picture.width < 8 * 256 and 4 * 256 < picture.height < 5 * 256
    names = (f'UMMAE, UMSwin\n{resumed.name}/epoch_{EPOCHS}', f'UMMAE, UMSwin\n{resumed.name}/epoch_1')
    names += (f'UMSimMIM, UMSwin\n{tmp_path.name}/simmim',)
    assert list(columns) == [f'{name}\nmask seed {seed}' for name in names for seed in (3, 4)]
    last, last_4, first, first_4, simmim_3, simmim_4 = columns.values()
    assert same_masks(last, first) and same_masks(last_4, first_4)
    assert not same_masks(last, last_4) and not same_masks(simmim_3, simmim_4) and not same_masks(last, simmim_3)
    for samples in columns.values():
        assert all(torch.equal(a.image, b.image) for a, b in zip(samples, last, strict=True))
    assert not torch.equal(last[0].reconstruction, first[0].reconstruction)


def test_columns_have_the_names_that_are_given(
    visualize: ModuleType, resumed: Path, data: Path, tmp_path: Path, columns: dict[str, list]
) -> None:
    image = data / 'imagenet' / 'unlabelled' / '00000003.jpg'
    newest = resumed / f'epoch_{EPOCHS}.pth'
    out = ('--out', tmp_path / 'a.png')
    reconstruct(visualize, resumed, image, '--compare', PRETRAIN, newest, '--titles', 'one', 'two', *out)
    assert list(columns) == ['one\nmask seed 0', 'two\nmask seed 0']
    columns.clear()
    reconstruct(visualize, resumed, image, '--compare', PRETRAIN, newest, *out)
    assert [name.count('(2)') for name in columns] == [0, 1], 'columns of one name replace each other'


def test_comparison_refuses_names_that_do_not_fit(visualize: ModuleType, resumed: Path, tmp_path: Path) -> None:
    """Before anything is read."""
    nowhere = tmp_path / 'nowhere'
    with pytest.raises(ValueError, match=r'--titles has 1 names, but there are 2 checkpoints'):
        reconstruct(visualize, resumed, nowhere, '--compare', PRETRAIN, nowhere, '--titles', 'one')
    with pytest.raises(ValueError, match=r'--seeds \[1, 1\] must not repeat'):
        reconstruct(visualize, resumed, nowhere, '--seeds', 1, 1)
    with pytest.raises(ValueError, match=r"sheet\.txt has the suffix '\.txt', but a sheet is written as \.png"):
        reconstruct(visualize, resumed, nowhere, '--out', tmp_path / 'sheet.txt')
    with pytest.raises(ValueError, match=r'limit is 0, but at least one image is needed'):
        reconstruct(visualize, resumed, tmp_path, '--limit', 0)


# Feature maps


def test_feature_maps_of_every_checkpoint(
    resumed: Path,
    finetuned: tuple[Path, TrainingResult],
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Of a pre-training, and of the classifier that was fine-tuned from it, at the size of its config or another."""
    visualize = tool('visualize_features')
    images = data / 'imagenet' / 'unlabelled'
    sheets = {}
    for name, config, checkpoint, options in (
        ('pre-trained', PRETRAIN, resumed / f'epoch_{EPOCHS}.pth', ()),
        ('fine-tuned', CLASSIFICATION, finetuned[1].checkpoint, ()),
        ('start', CLASSIFICATION, resumed / f'epoch_{EPOCHS}.pth', ()),
        ('small', PRETRAIN, resumed / f'epoch_{EPOCHS}.pth', ('--image-size', 96)),
    ):
        out = tmp_path / 'new' / f'{name}.png'
        words = (config, checkpoint, images, '--out', out, '--limit', 2, *options)
        assert visualize.main([str(word) for word in words]) == out
        assert capsys.readouterr().out.endswith(f'feature maps of 2 images in {out}\n')
        sheets[name] = np.asarray(Image.open(out).convert('RGB'))[60:]
    assert sheets['pre-trained'].shape == sheets['fine-tuned'].shape != sheets['small'].shape
    assert not np.array_equal(sheets['pre-trained'], sheets['fine-tuned'])
    # The backbone a fine-tuning starts from: the same stages but for the last norm, which classifiers do not have
    four = sheets['start'].shape[1] * 4 // 5 - 6
    assert np.array_equal(sheets['start'][:, :four], sheets['pre-trained'][:, :four])


def test_feature_maps_name_what_is_wrong(resumed: Path, data: Path, tmp_path: Path) -> None:
    visualize = tool('visualize_features')
    checkpoint = resumed / f'epoch_{EPOCHS}.pth'
    for words, error, message in (
        ((PRETRAIN, checkpoint, tmp_path), FileNotFoundError, r'is no image and no folder with images'),
        ((PRETRAIN, checkpoint, data, '--out', tmp_path / 'a.gif'), ValueError, r"a\.gif has the suffix '\.gif'"),
        ((PRETRAIN, checkpoint, data, '--image-size', 0), ValueError, r'image_size is 0, but a side must be positive'),
        ((PRETRAIN, tmp_path / 'nowhere.pth', data), FileNotFoundError, r'nowhere\.pth does not exist'),
    ):
        with pytest.raises(error, match=message):
            visualize.main([str(word) for word in words])


# What MMEngine logs

HEAD = '11/21 06:53:25 - mmengine - INFO - '
LINES = [
    (
        'Epoch(train) [1][1/2]  base_lr: 1.5000e-12 lr: 1.5000e-12  eta: 0:00:00  time: 0.2362  '
        'data_time: 0.0121  loss: 1.2891',
        ('train', '1', '2', '0:00:00', '1.2891'),
        '1',
    ),
    (
        'Epoch(train)  [12][ 5/31]  lr: 1.4e-03  eta: 0:04:39  time: 0.24  data_time: 0.01  memory: 812  '
        'grad_norm: 1.2  loss: 0.7985  loss_rpn_cls: 0.1  acc: 93.75',
        ('train', '5', '31', '0:04:39', '0.7985'),
        '12',
    ),
    (
        'Iter(train) [  5/150]  base_lr: 2.9e-04 lr: 2.9e-04  eta: 12:01:30  time: 0.3  loss: 4.2  decode.loss_ce: 3.0',
        ('train', '5', '150', '12:01:30', '4.2'),
        None,
    ),
    ('Iter(val) [ 5/13]    eta: 0:00:03  time: 0.41  data_time: 0.02  ', ('val', '5', '13', '0:00:03', None), None),
    ('Iter(val) [13/13]    coco/bbox_mAP: 0.1230  coco/segm_mAP: 0.0950  data_time: 0.01', None, None),
    ('Saving checkpoint at 1 epochs', None, None),
]


@pytest.mark.parametrize(('line', 'progress', 'epoch'), LINES, ids=[line[0][:22] for line in LINES])
def test_progress_is_read_from_the_log(line: str, progress: tuple | None, epoch: str | None) -> None:
    found = PROGRESS.search(HEAD + line)
    assert (found and found.groups()) == progress
    found = EPOCH.search(HEAD + line)
    assert (found and found[1]) == epoch


def test_progress_of_real_runs_is_read(finetuned: tuple[Path, TrainingResult]) -> None:
    lines = (finetuned[0] / 'output.txt').read_text().splitlines()
    found = [PROGRESS.search(line) for line in lines if '(train)' in line and 'loss:' in line]
    assert len(found) == 2 and all(found)
    assert all(math.isfinite(float(match[5])) for match in found)


def test_screen_writes_seldom_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    seldom, often = training.Screen('one', every=3600), training.Screen('two', every=0)
    for screen in (seldom, often):
        screen.show('loss 1.0')
        screen.close('done')
    assert re.fullmatch(r'one  done  \(\d+ s\)\ntwo  loss 1\.0\ntwo  done  \(\d+ s\)\n', capsys.readouterr().out)


# The report


def seed_results(seed: int, gain: float) -> dict:
    scratch = {row: 10.0 * i + seed for i, row in enumerate(ROWS)}
    return dict(
        seed=seed,
        accuracy={'pre-trained': {row: value + gain for row, value in scratch.items()}, 'scratch': scratch},
        cost={
            'pre-training': dict(seconds=100.4 + seed, peak_memory_gb=1.234),
            'UperNet': dict(seconds=9.6, peak_memory_gb=2.0),
        },
    )


def test_table_of_one_seed() -> None:
    assert results_table([seed_results(0, 2.5)]) == (
        '| task | metric | pre-trained | scratch | pre-trained wins |\n'
        '|---|---|---|---|---|\n'
        '| linear probe, frozen features | top-1 % | 2.5 | 0.0 | 1 of 1 |\n'
        '| 10 nearest neighbours, frozen features | top-1 % | 12.5 | 10.0 | 1 of 1 |\n'
        '| classification, fine-tuned | top-1 % | 22.5 | 20.0 | 1 of 1 |\n'
        '| Mask R-CNN | box AP | 32.5 | 30.0 | 1 of 1 |\n'
        '| Mask R-CNN | mask AP | 42.5 | 40.0 | 1 of 1 |\n'
        '| UperNet | mIoU % | 52.5 | 50.0 | 1 of 1 |'
    )


def test_table_of_several_seeds_has_spreads_and_losses() -> None:
    """Values 1, 3, 5 less 1: mean and sample deviation; a tie is no win."""
    table = results_table([seed_results(1, 0.0), seed_results(3, -2.0), seed_results(5, 4.0)])
    row = table.splitlines()[2]
    assert row == '| linear probe, frozen features | top-1 % | 3.7 ± 4.6 | 3.0 ± 2.0 | 1 of 3 |'


def test_cost_table() -> None:
    assert cost_table([seed_results(0, 0.0), seed_results(2, 0.0)]) == (
        '| step | seconds | peak memory, GB |\n|---|---|---|\n| pre-training | 101 | 1.23 |\n| UperNet | 10 | 2.00 |'
    )


def test_report_is_written_as_text_and_data(tmp_path: Path) -> None:
    results = [seed_results(0, 2.5)]
    text = save_report(results, tmp_path / 'new', {'loss curve': Path('seed0/loss.png')})
    assert text == f'{results_table(results)}\n\n{cost_table(results)}\n\n* loss curve: `seed0/loss.png`\n'
    assert (tmp_path / 'new' / 'report.md').read_text() == text
    assert json.loads((tmp_path / 'new' / 'report.json').read_text()) == results


# The probe


def test_labels_are_the_sorted_folders(data: Path) -> None:
    images, labels = load_labelled(data / 'imagenet' / 'train')
    assert images.shape == (20, 3, 128, 128) and images.is_contiguous()
    assert labels.tolist() == sorted(2 * list(range(10)))
    for index in (0, 7, 19):
        folder = data / 'imagenet' / 'train' / PHOTOGRAPH_CLASSES[labels[index]]
        pixels = np.asarray(Image.open(folder / f'{folder.name}_{index % 2:06d}.jpg').convert('RGB')).astype(np.float64)
        expected = (pixels - np.array(probing.MEAN)) / np.array(probing.STD)
        assert np.allclose(images[index].permute(1, 2, 0).numpy(), expected, atol=1e-4)


def test_labelled_images_must_be_there(tmp_path: Path) -> None:
    (tmp_path / 'cat').mkdir()
    with pytest.raises(FileNotFoundError, match=rf'{re.escape(str(tmp_path))} holds no <class>/\*\.jpg'):
        load_labelled(tmp_path)


def test_features_are_means_of_the_map() -> None:
    """In batches as in one, without dropout and without gradients."""
    torch.manual_seed(0)
    backbone = UMSwin('test', img_size=64, out_indices=(2,), drop_path_rate=0.5)
    images = torch.randn(5, 3, 64, 64)
    features = frozen_features(backbone, images, batch_size=2)
    with torch.no_grad():
        expected = backbone.eval()(images)[0].mean((2, 3)).numpy()
    assert features.shape == (5, 128) and np.allclose(features, expected, atol=1e-5)


@pytest.mark.parametrize('trained', [True, False], ids=['checkpoint', 'random'])
def test_probe_looks_at_the_right_weights(
    trained: bool, resumed: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[dict[str, Any]] = []

    def record(backbone: UMSwin, images: torch.Tensor) -> np.ndarray:
        seen.append({name: value.clone() for name, value in backbone.state_dict().items()})
        return frozen_features(backbone, images)

    monkeypatch.setattr(probing, 'frozen_features', record)
    path = resumed / f'epoch_{EPOCHS}.pth'
    results = [probe(PROBED, str(path) if trained else None, data / 'imagenet', seed=s) for s in (3, 3)]
    assert results[0] == results[1] and results[0].keys() == {'linear', 'knn'}
    assert all(0 <= value <= 100 and round(value / 10, 6).is_integer() for value in results[0].values())
    state = torch.load(path, weights_only=False)['state_dict']
    same = [torch.equal(value, state[f'backbone.{name}']) for name, value in seen[0].items()]
    assert all(same) if trained else not all(same)
    assert all(torch.equal(value, seen[2][name]) for name, value in seen[0].items())


def test_probe_without_a_file(data: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r'nowhere\.pth'):
        probe(PROBED, str(tmp_path / 'nowhere.pth'), data / 'imagenet', seed=0)
