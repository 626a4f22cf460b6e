"""FiniteLossHook: NaN and infinite losses stop a run, and no checkpoint holds them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from mmengine.runner import Runner

from mm_ummae.checkpoints import read_checkpoint
from mm_ummae.engine import FiniteLossHook
from tests.engine.toy_runs import Toy, toy_runner

NAN, INFINITE = float('nan'), float('inf')


def spoil(value: float) -> object:
    """Act that makes all later losses non-finite, and the weights with them."""
    return lambda runner: setattr(runner.model, 'factor', value)


def spoil_weights(runner: Runner) -> None:
    """Act that makes weights non-finite."""
    runner.model.layer.bias.data.fill_(INFINITE)


@pytest.mark.parametrize(('value', 'name'), [(NAN, 'nan'), (INFINITE, 'inf')])
def test_run_stops_at_the_first_bad_loss(value: float, name: str, tmp_path: Path) -> None:
    run = toy_runner(tmp_path, at=(5, spoil(value)), checkpoint=dict(max_keep_ckpts=1))
    with pytest.raises(
        RuntimeError, match=rf'the loss is {name} in iteration 6\. .*last checkpoint is .*epoch_1\.pth.*optimizer\.lr'
    ):
        run.train()
    assert run.iter == 5  # the logger's interval is 1
    assert [path.name for path in tmp_path.glob('*.pth')] == ['epoch_1.pth']
    weights = read_checkpoint(tmp_path / 'epoch_1.pth')['state_dict'].values()
    assert all(bool(torch.isfinite(value).all()) for value in weights)


def test_bad_loss_between_two_log_lines_is_not_saved(tmp_path: Path) -> None:
    run = toy_runner(tmp_path, at=(5, spoil(NAN)))
    next(hook for hook in run.hooks if type(hook).__name__ == 'LoggerHook').interval = 100
    with pytest.raises(RuntimeError, match='the loss is nan in iteration 6'):
        run.train()
    assert run.iter == 8  # at the end of the epoch, before its checkpoint
    assert [path.name for path in tmp_path.glob('*.pth')] == ['epoch_1.pth']


def test_bad_weights_are_not_saved_though_the_loss_was_fine(tmp_path: Path) -> None:
    """Gradients overflowed in the last iteration before a checkpoint."""
    run = toy_runner(tmp_path, at=(8, spoil_weights))
    with pytest.raises(
        RuntimeError, match=r'1 parameters are not finite after iteration 8, the first one is layer\.bias.*epoch_1\.pth'
    ):
        run.train()
    assert [path.name for path in tmp_path.glob('*.pth')] == ['epoch_1.pth']


class Scaler:
    """Loss scaler of float16, whose scale a test sets."""

    def __init__(self) -> None:
        self._scale = torch.tensor(65536.0)

    def is_enabled(self) -> bool:
        return True

    def get_scale(self) -> float:
        return self._scale.item()


def scaled_hook(accumulate: int = 1) -> tuple[FiniteLossHook, SimpleNamespace]:
    wrapper = SimpleNamespace(loss_scaler=Scaler(), should_update=lambda: (runner.iter + 1) % accumulate == 0)
    runner = SimpleNamespace(
        model=Toy(), iter=0, hooks=[], optim_wrapper=wrapper, message_hub=SimpleNamespace(runtime_info={})
    )
    hook = FiniteLossHook(max_skipped=3)
    hook.before_train(runner)
    return hook, runner


def iterate(hook: FiniteLossHook, runner: SimpleNamespace, loss: float, scale: float) -> None:
    runner.optim_wrapper.loss_scaler._scale = torch.tensor(scale)
    hook.after_train_iter(runner, 0, outputs=dict(loss=torch.tensor(loss)))
    hook.check(runner)
    runner.iter += 1


def test_scaler_may_skip_a_few_updates() -> None:
    hook, runner = scaled_hook()
    for loss, scale in ((1.0, 64), (INFINITE, 32), (1.0, 16), (INFINITE, 8), (1.0, 8), (1.0, 4), (NAN, 2), (1.0, 2)):
        iterate(hook, runner, loss, scale)


@pytest.mark.parametrize('loss', [INFINITE, 1.0])  # infinite gradients of a finite loss too
def test_scaler_that_always_skips_stops_the_run(loss: float) -> None:
    hook, runner = scaled_hook()
    iterate(hook, runner, 1.0, 64)
    for scale in (32, 16, 8):
        iterate(hook, runner, loss, scale)
    with pytest.raises(RuntimeError, match=r'skipped more than 3 updates in a row \(max_skipped.*iteration 5.*scale 4'):
        iterate(hook, runner, loss, 4)


def test_skips_count_updates_and_not_iterations() -> None:
    hook, runner = scaled_hook(accumulate=2)
    iterate(hook, runner, 1.0, 64)
    iterate(hook, runner, 1.0, 64)
    for scale in (32, 16, 8):
        iterate(hook, runner, INFINITE, 2 * scale)
        iterate(hook, runner, 1.0, scale)
    with pytest.raises(RuntimeError, match='iteration 10'):
        iterate(hook, runner, INFINITE, 8)
        iterate(hook, runner, 1.0, 4)


def test_no_synchronisation_between_log_lines(tmp_path: Path) -> None:
    """The flag stays on the device: reading a tensor of the meta device would raise."""
    hook, runner = scaled_hook()
    runner.optim_wrapper.loss_scaler = None
    hook._interval = 100
    hook._iteration, hook._loss = hook._iteration.to('meta'), hook._loss.to('meta')
    hook.after_train_iter(runner, 0, outputs=dict(loss=torch.zeros((), device='meta')))
    assert hook._iteration.device.type == 'meta'


def test_limit_is_checked() -> None:
    with pytest.raises(ValueError, match='max_skipped is -1, but it must be 0 or more'):
        FiniteLossHook(max_skipped=-1)
