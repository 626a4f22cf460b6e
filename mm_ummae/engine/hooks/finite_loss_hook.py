"""Hook that stops a run whose loss or weights are no longer finite."""

from __future__ import annotations

from typing import Any

import torch
from mmengine.dist import all_reduce
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapper
from mmengine.runner import Runner
from torch import Tensor

from mm_ummae.registry import HOOKS

from .lookup import logging_interval, unwrapped

NEVER = torch.iinfo(torch.int64).max


@HOOKS.register_module()
class FiniteLossHook(Hook):
    """Stop with an error that names the first iteration whose loss is NaN or infinite.

    The loss is watched on the device, and the host reads the result only when a line is logged and before a checkpoint
    is written, together with a check of the weights. So checkpoints are always finite, and the last one stays.

    The loss scaler of float16 skips updates with infinite gradients while it looks for a scale. That is normal for a
    few updates and an error for many in a row, because nothing is learned any more.

    Args:
        max_skipped (int): Updates in a row that the loss scaler may skip. From PyTorch's first scale, 65536, twenty
            halvings lead to 0.06. Default 20.

    Raises:
        ValueError: If ``max_skipped`` is negative.
        RuntimeError: While training, see above.
    """

    priority = 'ABOVE_NORMAL'  # before the logger and the checkpoint

    def __init__(self, max_skipped: int = 20) -> None:
        if max_skipped < 0:
            raise ValueError(f'max_skipped is {max_skipped}, but it must be 0 or more')
        self.max_skipped = max_skipped
        self._iteration: Tensor | None = None  # () int64, the first bad iteration, or NEVER

    def before_train(self, runner: Runner) -> None:
        """Create the flags on the device."""
        device = next(runner.model.parameters()).device
        self._iteration = torch.full((), NEVER, dtype=torch.int64, device=device)
        self._loss = torch.zeros((), device=device)
        self._bad = torch.zeros((), dtype=torch.bool, device=device)  # a loss since the last update
        self._skipped = torch.zeros((), dtype=torch.int64, device=device)
        self._scale: Tensor | None = None
        self._interval = logging_interval(runner)

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Look at the loss, without waiting for it."""
        loss = (outputs or {}).get('loss')
        if not isinstance(loss, Tensor):
            return
        loss = loss.detach().float()
        failed = ~torch.isfinite(loss)
        scale = _scale(runner.optim_wrapper)
        if scale is not None:
            failed = self._skips_too_often(failed, scale, runner.optim_wrapper.should_update())
        first = failed & (self._iteration == NEVER)
        self._iteration = self._iteration.masked_fill(first, runner.iter + 1)
        self._loss = torch.where(first, loss, self._loss)
        if self.every_n_train_iters(runner, self._interval):
            self.check(runner)

    def check(self, runner: Runner) -> None:
        """Raise if a loss was not finite, on any process; all of them call this."""
        if self._iteration is None:
            return
        iteration = self._iteration.clone()
        all_reduce(iteration, op='min')
        if iteration.item() == NEVER:
            return
        scaler = getattr(runner.optim_wrapper, 'loss_scaler', None)
        if _scale(runner.optim_wrapper) is None:
            found = f'the loss is {self._loss.item()} in iteration {iteration.item()}'
            if self._iteration.item() != iteration.item():
                found = f'the loss of another process is not finite in iteration {iteration.item()}'
        else:
            found = (
                f'the loss scaler skipped more than {self.max_skipped} updates in a row (max_skipped of '
                f'FiniteLossHook) up to iteration {iteration.item()}: the loss is {self._loss.item()}, the scale '
                f'{scaler.get_scale():g}'
            )
        raise RuntimeError(
            f'{found}. Nothing was saved since then; {_kept(runner)}. Ways out: a lower optim_wrapper.optimizer.lr, a '
            'longer warm-up (param_scheduler), optim_wrapper.clip_grad=dict(max_norm=1.0), '
            "optim_wrapper.dtype='bfloat16' in place of float16; --resume continues from the checkpoint"
        )

    def check_weights(self, runner: Runner) -> None:
        """Raise if the loss or a weight is not finite; all processes call this before a checkpoint is written.

        Raises:
            RuntimeError: Names the parameters.
        """
        self.check(runner)
        names = non_finite(dict(unwrapped(runner.model).named_parameters()))
        if names:
            raise RuntimeError(
                f'{len(names)} parameters are not finite after iteration {runner.iter}, the first one is {names[0]}. '
                f'They are not saved; {_kept(runner)}'
            )

    def _skips_too_often(self, failed: Tensor, scale: Tensor, updated: bool) -> Tensor:
        """Count the updates in a row that the scaler skipped: then it lowers the scale."""
        self._bad = self._bad | failed
        if not updated:
            return torch.zeros_like(failed)
        skipped = self._bad if self._scale is None else self._bad | (scale < self._scale)
        self._skipped = torch.where(skipped, self._skipped + 1, 0)
        self._bad, self._scale = torch.zeros_like(self._bad), scale.clone()
        return self._skipped > self.max_skipped


def _kept(runner: Runner) -> str:
    last = getattr(runner, 'last_saved', None)
    return f'the last checkpoint is {last}' if last else 'there is no earlier checkpoint of this run'


def non_finite(tensors: dict[str, Tensor]) -> list[str]:
    """Names of the tensors that hold NaN or an infinity; the device is waited for once."""
    tensors = {name: value for name, value in tensors.items() if value.is_floating_point() and value.numel()}
    if not tensors:
        return []
    finite = torch.stack([torch.isfinite(value).all() for value in tensors.values()]).tolist()
    return [name for name, good in zip(tensors, finite, strict=True) if not good]


def _scale(optim_wrapper: OptimWrapper) -> Tensor | None:
    """The scale of the loss on the device, or None if the loss is not scaled."""
    scaler = getattr(optim_wrapper, 'loss_scaler', None)
    return getattr(scaler, '_scale', None) if scaler is not None and scaler.is_enabled() else None
