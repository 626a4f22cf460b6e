"""Hook that adds to a checkpoint what a resumed run needs to be the same run."""

from __future__ import annotations

from typing import Any

import torch
from mmengine.dist import all_reduce, get_world_size
from mmengine.hooks import Hook
from mmengine.logging import HistoryBuffer
from mmengine.optim import OptimWrapper
from mmengine.runner import Runner
from torch import Tensor

from mm_ummae.registry import HOOKS

from .lookup import unwrapped

KEY = 'run'  # of a checkpoint


@HOOKS.register_module()
class RunStateHook(Hook):
    """Save the settings of the run, gradients that wait for an update, and the logged history as plain values.

    A checkpoint then holds tensors and plain values only, which PyTorch reads without executing code. MMEngine writes
    the history as objects, and loses the gradients of iterations that were accumulated but not applied.
    """

    priority = 'LOWEST'

    def __init__(self) -> None:
        self.gradients: dict[str, Tensor] = {}

    def collect(self, runner: Runner, iteration: int) -> None:
        """Copy the gradients that wait for an update; all processes call this before the main one saves.

        Args:
            runner (Runner): The runner.
            iteration (int): Finished iterations.
        """
        self.gradients = {}
        counts = getattr(runner.optim_wrapper, '_accumulative_counts', 1)
        if iteration % counts == 0 or iteration == runner.max_iters:
            return
        for name, parameter in unwrapped(runner.model).named_parameters():
            if parameter.grad is not None:
                gradient = parameter.grad.clone()
                # Each process has its own until the update averages them. The mean on all of them gives the same mean.
                all_reduce(gradient, op='mean')
                self.gradients[name] = gradient.cpu()

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Add the state, and replace the objects of MMEngine's log."""
        meta, hub = checkpoint['meta'], checkpoint['message_hub']
        history = {name: buffer.data for name, buffer in hub['log_scalars'].items()}
        hub['log_scalars'] = {}
        hub['runtime_info'] = {name: _plain(value) for name, value in hub['runtime_info'].items()}
        checkpoint[KEY] = dict(
            settings=settings(runner, meta['iter']),
            # Not in a file of weights, such as the best one
            gradients=self.gradients if 'optimizer' in checkpoint else {},
            history={name: tuple(map(torch.as_tensor, arrays)) for name, arrays in history.items()},
        )
        runner.checkpoint_bytes = _bytes(checkpoint)


def settings(runner: Runner, iteration: int) -> dict[str, Any]:
    """Settings of a run that its place depends on.

    Args:
        runner (Runner): The runner, with its training loop.
        iteration (int): Finished iterations.
    Returns:
        dict[str, Any]: Plain values.
    """
    loop = runner.train_loop
    wrapper = runner.optim_wrapper
    sampler = getattr(loop.dataloader.batch_sampler, 'sampler', None)
    return dict(
        seed=runner.base_seed,
        sampler_seed=getattr(sampler, 'seed', None),
        processes=get_world_size(),
        batch_size=getattr(loop.dataloader.batch_sampler, 'batch_size', None),
        accumulative_counts=getattr(wrapper, '_accumulative_counts', 1),
        images=len(loop.dataloader.dataset),
        iterations_per_epoch=len(loop.dataloader),
        images_seen=loop.images_seen(iteration) if hasattr(loop, 'images_seen') else None,
        # That of ZeroRedundancyOptimizer is inside; its whole state is the same
        optimizer=type(getattr(wrapper.optimizer, 'optim', wrapper.optimizer)).__name__
        if isinstance(wrapper, OptimWrapper)
        else None,
    )


def restore_history(runner: Runner, checkpoint: dict) -> None:
    """Put the logged history back into the checkpoint as MMEngine's objects, where MMEngine looks for it."""
    history = checkpoint.get(KEY, {}).get('history', {})
    scalars = checkpoint['message_hub'].setdefault('log_scalars', {})
    scalars.update({name: HistoryBuffer(*(x.cpu().numpy() for x in arrays)) for name, arrays in history.items()})


def restore_gradients(runner: Runner, checkpoint: dict) -> int:
    """Put the gradients that wait for an update back; returns their number."""
    gradients = checkpoint.get(KEY, {}).get('gradients', {})
    parameters = dict(unwrapped(runner.model).named_parameters())
    for name, gradient in gradients.items():
        parameters[name].grad = gradient.to(parameters[name].device)
    return len(gradients)


def _plain(value: Any) -> Any:
    """Numbers of NumPy, such as a best score, as those of Python."""
    return value.item() if hasattr(value, 'item') and getattr(value, 'size', 0) == 1 else value


def _bytes(value: Any) -> int:
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, dict):
        value = list(value.values())
    return sum(map(_bytes, value)) if isinstance(value, (list, tuple)) else 0
