"""ResumableRunner: an interrupted run equals the uninterrupted one, and other settings are applied or refused."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import RUNNERS
from mmengine.runner import Runner
from torch.utils.data import DataLoader

from mm_ummae.checkpoints import read_checkpoint
from tests.engine.toy_runs import Killed, RandomImages, assert_same, kill, toy_runner
from tests.runs import leaf


def terminate(runner: Runner) -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def interrupted(work_dir: Path, iteration: int, **settings: Any) -> None:
    """Train up to an iteration, where SIGTERM saves the run."""
    with pytest.raises(SystemExit) as stop:
        toy_runner(work_dir, at=(iteration, terminate), **settings).train()
    assert stop.value.code == 75


def last_learning_rate(work_dir: Path, **settings: Any) -> float:
    """That of an uninterrupted run."""
    run = toy_runner(work_dir, **settings)
    run.train()
    return run.optim_wrapper.param_groups[0]['lr']


def learning_rates(runner: Runner) -> list[float]:
    return runner.message_hub.get_scalar('train/lr').data[0].tolist()


SETTINGS = {
    'epochs': (dict(), 'epoch_3.pth'),
    'accumulated': (dict(accumulate=3), 'epoch_3.pth'),
    'iterations': (dict(iterations=14), 'iter_14.pth'),
    'iterations, endless sampler': (dict(iterations=14, sampler='InfiniteSampler'), 'iter_14.pth'),
    'incomplete last batch': (dict(images=7), 'epoch_3.pth'),
}


@pytest.mark.parametrize('name', SETTINGS)
@pytest.mark.parametrize('iteration', [1, 4, 6])  # the start, the end of an epoch, the middle
def test_interrupted_run_is_the_same_run(name: str, iteration: int, tmp_path: Path) -> None:
    settings, last = SETTINGS[name]
    whole = toy_runner(tmp_path / 'whole', **settings)
    whole.train()
    interrupted(tmp_path / 'parts', iteration, **settings)
    rest = toy_runner(tmp_path / 'parts', resume=True, **settings)
    rest.train()
    assert_same(tmp_path / 'whole' / last, tmp_path / 'parts' / last)
    # The images that were seen are not seen again, the others are
    assert rest.model.seen == whole.model.seen[iteration:]
    assert not list((tmp_path / 'parts').glob('interrupted*'))


def test_killed_run_is_the_same_run(tmp_path: Path) -> None:
    toy_runner(tmp_path / 'whole').train()
    for start, iteration in ((False, 6), (True, 5), (True, 11)):  # each from the last whole epoch
        with pytest.raises(Killed):
            toy_runner(tmp_path / 'parts', resume=start, at=(iteration, kill)).train()
    toy_runner(tmp_path / 'parts', resume=True).train()
    assert_same(tmp_path / 'whole/epoch_3.pth', tmp_path / 'parts/epoch_3.pth')


def test_draws_do_not_repeat(tmp_path: Path) -> None:
    """Before, each resume replayed the draws of the first iterations."""
    toy_runner(tmp_path, epochs=1).train()
    draws = []
    for epochs in (2, 3):
        run = toy_runner(tmp_path, epochs=epochs, resume=True)
        run.train()
        draws += [draw for iteration in run.model.draws for draw in iteration]
    assert len(set(draws)) == len(draws) == 2 * 4 * 3


def test_finished_epoch_is_resumed_without_its_gradients(tmp_path: Path) -> None:
    """The last update of a run takes what was accumulated: nothing waits."""
    toy_runner(tmp_path, accumulate=5).train()  # 12 iterations
    saved = [read_checkpoint(tmp_path / f'epoch_{epoch}.pth')['run']['gradients'] for epoch in (1, 3)]
    assert sorted(saved[0]) == ['layer.bias', 'layer.weight']
    assert saved[1] == {}


@pytest.mark.parametrize(('change', 'place'), [(dict(accumulate=4), 5), (dict(batch_size=1), 10)])
def test_gradients_that_wait_are_not_put_into_another_update(change: dict, place: int, tmp_path: Path) -> None:
    interrupted(tmp_path, 5, accumulate=3)
    with pytest.raises(
        ValueError,
        match=rf'after 2 of optim_wrapper\.accumulative_counts=3: .* at iteration {place}\. Resume with .* 3 ',
    ):
        toy_runner(tmp_path, resume=True, **(dict(accumulate=3) | change)).train()


def test_other_accumulation_is_applied_where_no_gradient_waits(tmp_path: Path) -> None:
    interrupted(tmp_path, 6, accumulate=3)
    run = toy_runner(tmp_path, resume=True, accumulate=2)
    run.train()
    assert run.iter == 12


def test_checkpoint_is_readable_without_its_own_classes(tmp_path: Path) -> None:
    toy_runner(tmp_path, epochs=1).train()
    content = torch.load(tmp_path / 'epoch_1.pth', weights_only=True)
    assert content['meta']['iter'] == 4


def test_checkpoint_is_resumed_by_mmengine_too(tmp_path: Path) -> None:
    toy_runner(tmp_path, epochs=1).train()
    run = toy_runner(tmp_path, runner=Runner, resume=True, epochs=2)
    run.train()
    assert run.iter == 8


def test_checkpoint_of_mmengine_is_resumed(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        toy_runner(tmp_path / 'short', epochs=2, runner=Runner, at=(6, kill)).train()
    run = toy_runner(tmp_path / 'short', epochs=2, resume=True)
    run.train()
    assert run.iter == 8
    assert run.optim_wrapper.param_groups[0]['lr'] == last_learning_rate(tmp_path / 'whole', epochs=2)


def test_extended_run_follows_the_new_schedule(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """MMEngine restores the old schedule, which ended."""
    toy_runner(tmp_path / 'long', epochs=6).train()
    toy_runner(tmp_path / 'parts', epochs=3).train()
    run = toy_runner(tmp_path / 'parts', epochs=6, resume=True)
    run.train()
    whole = read_checkpoint(tmp_path / 'long/epoch_6.pth')['run']['history']['train/lr'][0].tolist()
    assert learning_rates(run)[12:] == pytest.approx(whole[12:], rel=1e-6)
    assert run.message_hub.get_scalar('train/base_lr').data[0].tolist()[12:] == learning_rates(run)[12:]
    log = capsys.readouterr().out
    assert 'CosineAnnealingLR.T_max 24, before 12' in log
    assert 'learning rate of the first group 0.05' in log


def test_new_learning_rate_and_weight_decay_are_used(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    interrupted(tmp_path, 6)
    run = toy_runner(tmp_path, resume=True, lr=0.01)
    run.train()
    whole = toy_runner(tmp_path / 'other', lr=0.01)
    whole.train()
    assert learning_rates(run)[6:] == pytest.approx(learning_rates(whole)[6:])
    assert 'base_values 0.01, before 0.1' in capsys.readouterr().out


@pytest.mark.parametrize(('iteration', 'batch_size'), [(4, 4), (6, 4), (4, 1)])
def test_changed_batch_keeps_the_place_in_epochs(
    iteration: int, batch_size: int, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    interrupted(tmp_path, iteration)
    seen = iteration * 2
    run = toy_runner(tmp_path, resume=True, batch_size=batch_size)
    run.train()
    text = capsys.readouterr().out
    assert run.iter == 24 // batch_size
    last = last_learning_rate(tmp_path / 'whole', batch_size=batch_size)
    assert run.optim_wrapper.param_groups[0]['lr'] == pytest.approx(last, rel=1e-6)
    images = [image for batch in run.model.seen for image in batch]
    assert len(images) == 24 - seen
    assert sorted(images[: 8 - seen % 8]) == sorted(set(images[: 8 - seen % 8]))
    assert f'1 processes x {batch_size} images x 1 accumulated iterations, before 1 processes x 2 images' in text


def test_place_inside_an_epoch_that_other_batches_do_not_have(tmp_path: Path) -> None:
    interrupted(tmp_path, 5)
    with pytest.raises(
        ValueError, match=r'after 1 iterations of 1 processes x 2 images.*no whole number.*epoch_N\.pth'
    ):
        toy_runner(tmp_path, resume=True, batch_size=4).train()
    run = toy_runner(tmp_path, resume=tmp_path / 'epoch_1.pth', batch_size=4)
    run.train()
    assert run.iter == 6


def test_place_inside_an_epoch_of_other_images(tmp_path: Path) -> None:
    interrupted(tmp_path, 5)
    with pytest.raises(ValueError, match='inside an epoch'):
        toy_runner(tmp_path, resume=True, images=10).train()


def test_iterations_are_kept_when_their_batch_changes(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    settings = dict(iterations=12, sampler='InfiniteSampler')
    whole = toy_runner(tmp_path / 'whole', **settings)
    whole.train()
    interrupted(tmp_path / 'parts', 6, **settings)
    run = toy_runner(tmp_path / 'parts', resume=True, batch_size=4, **settings)
    run.train()
    assert len(run.model.seen) == 6
    assert run.model.seen[0] == whole.model.seen[6] + whole.model.seen[7]  # the stream of images goes on
    assert 'the learning rate is that of the config' in capsys.readouterr().out


def test_other_optimizer_is_refused(tmp_path: Path) -> None:
    interrupted(tmp_path, 5)
    run = toy_runner(tmp_path, resume=True)
    run.optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.1))
    with pytest.raises(ValueError, match=r'is SGD, but the checkpoint holds the state of AdamW.*load_from'):
        run.train()


def test_weights_alone_are_refused(tmp_path: Path) -> None:
    toy_runner(tmp_path, epochs=1).train()
    content = read_checkpoint(tmp_path / 'epoch_1.pth')
    torch.save(dict(state_dict=content['state_dict']), tmp_path / 'weights.pth')
    with pytest.raises(ValueError, match=r'weights\.pth has no epoch, iter, optimizer, message_hub.*load_from'):
        toy_runner(tmp_path, resume=tmp_path / 'weights.pth').train()


def test_seed_of_the_run_is_kept(tmp_path: Path) -> None:
    toy_runner(tmp_path / 'whole').train()
    interrupted(tmp_path / 'parts', 6)
    run = toy_runner(tmp_path / 'parts', resume=True)
    run._randomness_cfg = dict(seed=8)
    run.set_randomness(seed=8)
    run.train()
    assert_same(tmp_path / 'whole/epoch_3.pth', tmp_path / 'parts/epoch_3.pth')


def test_fewer_images_than_a_batch(tmp_path: Path) -> None:
    run = toy_runner(tmp_path, images=5, batch_size=8)
    run._train_dataloader['drop_last'] = True
    with pytest.raises(ValueError, match=r'an epoch has no iteration: 5 images.*batch_size=8'):
        run.train()


@pytest.mark.parametrize('by_epoch', [True, False])
def test_validation_that_was_cut_off_is_made_up_for(
    by_epoch: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint is written before the validation of its place."""
    settings = dict(epochs=3) if by_epoch else dict(iterations=12)
    validated = []

    def build(**more: Any) -> Runner:
        run = toy_runner(tmp_path, **settings, **more)
        run._train_loop['val_interval'] = 1 if by_epoch else 4
        run._val_loop = SimpleNamespace(run=lambda: validated.append(run.iter))
        monkeypatch.setattr(run, 'build_val_loop', lambda loop: loop)
        monkeypatch.setattr(type(run), 'val_loop', property(lambda self: self._val_loop))
        run.model.val_step = lambda data: data
        return run

    with pytest.raises(SystemExit):
        build(at=(4, terminate)).train()
    assert validated == []
    build(resume=True).train()
    assert validated == [4, 8, 12]


def test_loader_from_outside_is_named(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    run = toy_runner(tmp_path, epochs=1)
    loader = DataLoader(RandomImages(4), batch_size=2)
    assert run.build_dataloader(loader) is loader
    assert 'built outside the runner' in capsys.readouterr().out


@pytest.mark.parametrize(
    ('name', 'neck', 'message'),
    [
        ('um-swin-test_classification_*', dict(in_channels=128), r'AvgPoolNorm is 128, .*model\.neck\.in_channels=256'),
        (
            'upernet_um-swin-test_*',
            dict(in_channels=[128, 128]),
            r'StageProjection is \[128, 128\].*=\[128, 256\]',
        ),
        ('mask-rcnn_um-swin-test_*', None, r'StageProjection is \[128, 256\], .*=\[32, 64, 128\]'),
    ],
)
def test_neck_that_does_not_fit_its_backbone(name: str, neck: dict | None, message: str, tmp_path: Path) -> None:
    cfg = Config.fromfile(leaf(f'demo/{name}'))
    cfg.merge_from_dict(dict(work_dir=str(tmp_path), model=dict(backbone=dict(init_cfg=None))))
    if neck is None:  # a list of modules in MMDetection
        cfg.model.backbone.out_indices = (0, 1, 2)
    else:
        cfg.model.neck.update(neck)
    with pytest.raises(ValueError, match=rf'neck\.in_channels of {message}'):
        RUNNERS.build(cfg)
