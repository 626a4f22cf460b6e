"""LearningHook: its values and warnings, and no effect on training."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.dist import utils as dist_utils
from mmengine.hooks import Hook
from mmengine.logging import HistoryBuffer, MessageHub
from mmengine.model import MMDistributedDataParallel
from mmengine.runner import EpochBasedTrainLoop, Runner
from PIL import Image
from pytest import LogCaptureFixture, MonkeyPatch
from torch import nn

from mm_ummae.datasets.image_files import load_batch
from mm_ummae.engine import LearningHook, ResumableRunner
from mm_ummae.engine.hooks import learning_hook
from mm_ummae.models.feature_measures import dead_share, effective_rank, spread
from mm_ummae.models.frozen_features import frozen_features
from tests.builders import MEAN, STD, made_ummae

SIDE = 64
PIPELINE = [
    dict(type='mm_ummae.LoadCompleteImage'),
    dict(type='RandomResizedCrop', scale=SIDE, backend='pillow'),
    dict(type='PackInputs'),
]
WITHOUT_LABELS = ['rank', 'spread', 'dead', 'seconds', 'time_share']


def build() -> nn.Module:
    """UM-MAE with random numbers in training (drop path), and a part that stays in eval mode (frozen)."""
    preprocessor = dict(type='mmpretrain.SelfSupDataPreprocessor', mean=MEAN, std=STD, to_rgb=True)
    backbone = dict(img_size=SIDE, drop_path_rate=0.3, frozen_stages=1)
    return made_ummae(backbone=backbone, neck=dict(img_size=SIDE), data_preprocessor=preprocessor)


@pytest.fixture(scope='module')
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight images in each of two folders: light and dark ones, and a file that is no image."""
    folder, generator = tmp_path_factory.mktemp('images'), np.random.default_rng(0)
    for name, light in (('dark', 0), ('light', 128)):
        (folder / name).mkdir()
        for i in range(8):
            pixels = light + generator.integers(128, size=(5, 6, 3)).repeat(16, 0).repeat(16, 1)
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f'{i}.png')
    (folder / 'light' / '8.png').write_bytes(b'no image')
    return folder


def runner(
    work_dir: Path,
    images: Path,
    hooks: list[Hook | dict],
    epochs: int,
    kind: type[Runner] = ResumableRunner,
    **kwargs: Any,
) -> Runner:
    """A run of two iterations per epoch and eight images per iteration."""
    dataset = dict(type='mm_ummae.PretrainImages', data_root=str(images), max_bad_share=0.5, pipeline=PIPELINE)
    loader = dict(
        batch_size=8,
        num_workers=0,
        drop_last=True,
        sampler=dict(type='DefaultSampler', shuffle=True),
        collate_fn=dict(type='default_collate'),
        dataset=dataset,
    )
    settings: dict[str, Any] = dict(
        model=build(),
        train_dataloader=loader,
        train_cfg=dict(by_epoch=True, max_epochs=epochs),
        optim_wrapper=dict(optimizer=dict(type='AdamW', lr=1e-3)),
        custom_hooks=hooks,
        visualizer=dict(type='UniversalVisualizer', vis_backends=[dict(type='LocalVisBackend')]),
        randomness=dict(seed=0),
        default_scope='mmpretrain',
        experiment_name=f'learning_hook_{work_dir.name}_{id(hooks)}',
    )
    return kind(work_dir=str(work_dir), **{**settings, **kwargs})


def part_of_runner(dataset: Any = None, **parts: Any) -> SimpleNamespace:
    """What the hook needs of a runner."""
    loop, loader = EpochBasedTrainLoop.__new__(EpochBasedTrainLoop), SimpleNamespace(dataset=dataset)
    loop._dataloader, loop.dataloader = loader, range(2)
    own = dict(model=build(), epoch=0, iter=0, max_iters=20, max_epochs=10, train_loop=loop, train_dataloader=loader)
    own |= dict(logger=logging.getLogger('learning'), message_hub=MessageHub(f'learning {id(loop)}'))
    own |= dict(visualizer=SimpleNamespace(add_scalars=lambda *args, **kwargs: None))
    return SimpleNamespace(**own | parts)


def scalars(run: Runner) -> list[dict]:
    """Lines of the hook in the file of LocalVisBackend, in order."""
    files = sorted(Path(run.work_dir).rglob('scalars.json'))
    lines = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    return [line for line in lines if 'learning/rank' in line]


class DrawsInEval(Hook):
    """Lets the network draw from all streams whenever it is called, as networks of others may."""

    def before_run(self, runner: Runner) -> None:
        def draw(*_: Any) -> None:
            torch.rand(3), np.random.rand(3)

        runner.model.backbone.register_forward_pre_hook(draw)


def test_values_of_a_run_and_no_effect_on_it(images: Path, tmp_path: Path) -> None:
    """At the start, after every second epoch and after the last; losses and weights are those without the hook.

    In MMEngine's runner: ours starts the random streams anew for each iteration.
    """
    hook = dict(type='mm_ummae.LearningHook', labelled=str(images), interval=2)
    runs = []
    for name, hooks in (('with', [hook]), ('without', [])):
        runs.append(runner(tmp_path / name, images, [DrawsInEval(), *hooks], 3, kind=Runner))
        runs[-1].train()
    run, plain = runs
    found = scalars(run)
    assert [line['step'] for line in found] == [0, 2, 3]
    names = [f'learning/{name}' for name in (*WITHOUT_LABELS[:3], 'knn', 'linear', 'chance', *WITHOUT_LABELS[3:])]
    assert all([*line] == [*names, 'step'] for line in found)
    hub = run.message_hub
    assert all(hub.get_scalar(name).data[0].tolist() == [line[name] for line in found] for name in names)
    assert 0 < found[-1]['learning/time_share'] < 1 and found[-1]['learning/chance'] == 50
    # The values after the last epoch are those of the images that can be read, as in a test pipeline
    batch = load_batch([file for file in sorted(images.rglob('*.png')) if file.name != '8.png'], SIDE)['inputs']
    features = frozen_features(run.model, batch)
    expected = [effective_rank(features), spread(features), dead_share(features)]
    assert [found[-1][name] for name in names[:3]] == pytest.approx(expected)
    assert found[-1]['learning/knn'] > 80  # light and dark are easily told apart
    losses, expected = (each.message_hub.get_scalar('train/loss').data[0] for each in (run, plain))
    assert len(losses) == 6 and np.array_equal(losses, expected)
    for name, value in plain.model.state_dict().items():
        assert torch.equal(value, run.model.state_dict()[name]), name
    assert run.model.neck.training and not run.model.backbone.stages[0].training


def test_a_resumed_run_compares_with_the_start_of_the_run(images: Path, tmp_path: Path) -> None:
    """And does not measure random weights again. Without labels there are no probes."""
    checkpoint = dict(checkpoint=dict(type='CheckpointHook', interval=1))
    first = runner(tmp_path, images, [LearningHook(interval=1)], 1, default_hooks=checkpoint)
    first.train()
    again = runner(tmp_path, images, [LearningHook(interval=1)], 2, default_hooks=checkpoint, resume=True)
    again.train()
    assert again.message_hub.runtime_info[learning_hook.START] == {
        name: scalars(first)[0][f'learning/{name}'] for name in WITHOUT_LABELS[:3]
    }
    assert [line['step'] for line in scalars(again)] == [0, 1, 2]


def test_a_wrapped_model(images: Path, tmp_path: Path) -> None:
    """The wrapper, whose forward pass waits for other processes, is not called."""
    store = torch.distributed.FileStore(str(tmp_path / 'store'), 1)
    torch.distributed.init_process_group('gloo', store=store, rank=0, world_size=1)
    try:
        wrapped = MMDistributedDataParallel(build())
        wrapped.forward = None
        run, hook = part_of_runner(model=wrapped), LearningHook(images=images)
        hook.before_train(run)
    finally:
        torch.distributed.destroy_process_group()
    expected = effective_rank(frozen_features(wrapped.module, hook.loaded))
    assert run.message_hub.get_scalar('learning/rank').current() == pytest.approx(expected)


def test_measuring_in_mixed_precision(images: Path) -> None:
    run, hook = part_of_runner(), LearningHook(images=images, labelled=str(images))
    with torch.autocast('cpu', dtype=torch.bfloat16):
        hook.before_train(run)
    expected = effective_rank(frozen_features(run.model, hook.loaded))
    assert run.message_hub.get_scalar('learning/rank').current() == pytest.approx(expected, rel=0.1)


def test_only_the_main_process_reads_and_measures(tmp_path: Path, monkeypatch: MonkeyPatch) -> None:
    """The others go on, and wait for it where they exchange gradients; mistakes in the settings stop them too."""
    monkeypatch.setattr(dist_utils, 'get_rank', lambda group=None: 1)
    run, hook = part_of_runner(visualizer=None, epoch=9), LearningHook(images=tmp_path / 'nowhere')
    hook.before_train(run)
    hook.after_train_epoch(run)
    assert hook.loaded is None
    with pytest.raises(ValueError, match='counts epochs, but training runs in object'):
        hook.before_train(part_of_runner(train_loop=object()))


# Warnings


def warned(run: SimpleNamespace, hook: LearningHook, caplog: LogCaptureFixture) -> list[str]:
    """Warnings after the tenth of ten epochs."""
    run.epoch, run.iter = 9, 20
    caplog.clear()
    hook.after_train_epoch(run)
    return [record.message for record in caplog.records if record.levelname == 'WARNING']


@pytest.fixture
def started(images: Path) -> tuple[SimpleNamespace, LearningHook]:
    """A run that was measured at the start."""
    run, hook = part_of_runner(), LearningHook(images=images, labelled=str(images))
    hook.before_train(run)
    return run, hook


def test_a_network_that_keeps_its_features_is_not_warned_about(
    started: tuple[SimpleNamespace, LearningHook], caplog: LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        assert warned(*started, caplog) == []
    (line,) = caplog.messages
    assert line.startswith('features of 16 images after 10 epochs: rank ') and line.endswith('% of the time so far')
    assert '(first ' in line and 'chance % 50.0;' in line


def test_collapsed_features(started: tuple[SimpleNamespace, LearningHook], caplog: LogCaptureFixture) -> None:
    """The same for all images; the warning says what to do."""
    run, hook = started
    run.model.backbone.norm.weight.data.zero_()
    first, second = warned(run, hook, caplog)
    assert first.startswith(
        'after 10 epochs the features have collapsed, images can hardly be told apart: rank 1.0, spread'
    )
    assert 'the features are worse than those of the start: k-NN %' in second
    for word in ('optim_wrapper.optimizer.lr', 'mask_ratio', 'secondary_ratio', 'image_size'):
        assert word in first and word in second


@pytest.mark.parametrize(
    ('last', 'iteration', 'expected'),
    [
        (0.995, 20, ['after 10 epochs the loss is stuck: 1.0000 in the first epoch, 0.9950 in the last one']),
        (0.98, 20, []),
    ],
)
def test_a_loss_that_is_stuck(
    last: float,
    iteration: int,
    expected: list[str],
    started: tuple[SimpleNamespace, LearningHook],
    caplog: LogCaptureFixture,
) -> None:
    run, hook = started
    losses = np.array([1.1, 0.9, *[0.5] * 14, 0.0, 0.0, last, last])
    run.message_hub._log_scalars['train/loss'] = HistoryBuffer(losses, np.ones(20))
    assert [text.partition('. Ways')[0] for text in warned(run, hook, caplog)] == expected


def test_neither_loss_nor_probes_are_judged_early(
    started: tuple[SimpleNamespace, LearningHook], caplog: LogCaptureFixture
) -> None:
    """In the first quarter of the run; a collapse is."""
    run, hook = started
    run.message_hub._log_scalars['train/loss'] = HistoryBuffer(np.ones(4), np.ones(4))
    run.model.backbone.norm.weight.data.zero_()
    run.max_iters = 100
    (text,) = warned(run, hook, caplog)
    assert text.startswith('after 10 epochs the features have collapsed')


def test_features_that_are_not_finite(started: tuple[SimpleNamespace, LearningHook], caplog: LogCaptureFixture) -> None:
    run, hook = started
    run.model.backbone.norm.weight.data.fill_(torch.nan)
    assert warned(run, hook, caplog) == ['the features after 10 epochs are not finite, and are not measured']


# Settings


def test_the_images_are_evenly_spaced_in_the_training_set(images: Path) -> None:
    files = sorted(images.rglob('[0-7].png'))
    dataset = type('Files', (), dict(__len__=lambda _: 16, get_data_info=lambda _, i: dict(img_path=str(files[i]))))()
    hook = LearningHook(num_images=4, start=False)
    hook.before_train(part_of_runner(dataset))
    assert torch.equal(hook.loaded, load_batch([files[i] for i in (0, 5, 10, 15)], SIDE)['inputs'])


def test_labelled_images_are_drawn_evenly_among_classes() -> None:
    """The same ones each time; of very many classes ten images each."""
    labels = np.repeat(np.arange(100), 30)
    for number, classes, each in ((1000, 100, 10), (200, 20, 10), (2000, 100, 20), (5, 2, 2)):
        chosen = learning_hook._choose(labels, number)
        counts = np.bincount(labels[chosen])
        assert len(set(chosen)) == len(chosen) and chosen == learning_hook._choose(labels, number)
        assert sorted(counts[counts > 0]) == [each] * classes
    assert learning_hook._choose(np.array([0, 0, 0, 1]), 1000) != [] and len(learning_hook._choose(labels[:3], 9)) == 3


@pytest.mark.parametrize(
    ('hook', 'parts', 'message'),
    [
        ({}, dict(model=nn.Linear(1, 1)), 'Linear has no extract_feat: it is for pre-training models'),
        ({}, dict(dataset=[0, 0]), r'LearningHook\.images takes files of the data set, but list has no file paths'),
        (dict(images='bad'), {}, 'at least two images that can be read, but of 1 0 can'),
        (dict(images='good', labelled='one'), {}, 'labelled is one, of which 2 images of 1 classes are taken, but'),
        (dict(images='good', labelled='nowhere'), {}, 'nowhere'),
    ],
)
def test_wrong_settings_are_found_before_training(
    hook: dict, parts: dict, message: str, images: Path, tmp_path: Path, monkeypatch: MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, files in (('bad', ['8']), ('good', '01'), ('one/class', '01')):
        Path(name).mkdir(parents=True)
        for file in files:
            (Path(name) / f'{file}.png').symlink_to(images / 'light' / f'{file}.png')
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        LearningHook(**hook).before_train(part_of_runner(**parts))


def test_numbers_and_missing_package(monkeypatch: MonkeyPatch) -> None:
    for name in ('interval', 'num_images', 'num_labelled', 'batch_size'):
        with pytest.raises(ValueError, match=f'{name} is 0, but it must be at least 1'):
            LearningHook(**{name: 0})
    monkeypatch.setattr(learning_hook.importlib.util, 'find_spec', lambda name: None)
    with pytest.raises(ImportError, match='scikit-learn is not installed: pip install scikit-learn'):
        LearningHook(labelled='folder').before_train(part_of_runner())
