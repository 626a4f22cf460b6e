"""Runs of a toy model in ResumableRunner: random data, dropout, and a hook that does something at an iteration."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch import Tensor, nn

from mm_ummae.checkpoints import read_checkpoint
from mm_ummae.engine import ResumableRunner

NUMBERS = count()


class Toy(BaseModel):
    """A layer with dropout; it remembers the images that it saw in training, their noise, and a draw of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)
        self.seen: list[tuple[int, ...]] = []
        self.draws: list[tuple[float, ...]] = []
        self.factor = 1.0

    def init_weights(self) -> None:
        nn.init.constant_(self.layer.weight, 0.5)
        nn.init.constant_(self.layer.bias, 0.1)

    def forward(self, inputs: Tensor, index: Tensor, mode: str = 'tensor') -> Any:
        out = nn.functional.dropout(self.layer(inputs), 0.5, self.training)
        if mode == 'loss':
            self.seen.append(tuple(index.tolist()))
            self.draws.append((torch.rand(()).item(), *inputs[:, 2].tolist()))
            return dict(loss=self.factor * (out**2).mean())
        return [out]


class RandomImages:
    """Samples with noise from NumPy's global stream, as transforms draw it."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict:
        return dict(inputs=torch.tensor([index, 1.0, np.random.rand()]).float(), index=index)


class At(Hook):
    """Calls a function after an iteration, before anything else happens there."""

    priority = 'HIGHEST'

    def __init__(self, iteration: int, act: Callable[[Runner], None]) -> None:
        self.iteration, self.act = iteration, act

    def after_train_iter(self, runner: Runner, **kwargs: Any) -> None:
        if runner.iter + 1 == self.iteration:
            self.act(runner)


class Killed(Exception):
    """Ends a run without a trace, as SIGKILL does."""


def kill(runner: Runner) -> None:
    """Act of :class:`At`: the process is gone."""
    raise Killed


def toy_runner(
    work_dir: Path,
    *,
    images: int = 8,
    batch_size: int = 2,
    epochs: int = 3,
    iterations: int = 0,
    resume: bool | Path = False,
    lr: float = 0.1,
    accumulate: int = 1,
    sampler: str = 'DefaultSampler',
    at: tuple[int, Callable] | None = None,
    checkpoint: dict | None = None,
    schedule: list[dict] | None = None,
    runner: type[Runner] = ResumableRunner,
    **kwargs: Any,
) -> Runner:
    """Build a run: ``epochs``, or ``iterations`` if they are given, a cosine over all of it, a file at each epoch."""
    by_epoch = not iterations
    end = iterations or epochs
    cosine = dict(type='CosineAnnealingLR', eta_min=0.0, begin=0, end=end, by_epoch=by_epoch)
    if by_epoch:
        cosine['convert_to_iter_based'] = True
    built = runner(
        Toy(),
        str(work_dir),
        train_dataloader=dict(
            batch_size=batch_size,
            sampler=dict(type=sampler, shuffle=True),
            collate_fn=dict(type='default_collate'),
            dataset=RandomImages(images),
            num_workers=0,
        ),
        train_cfg=dict(by_epoch=True, max_epochs=epochs) if by_epoch else dict(by_epoch=False, max_iters=iterations),
        optim_wrapper=dict(
            optimizer=dict(type='AdamW', lr=lr, weight_decay=0.05),
            accumulative_counts=accumulate,
            paramwise_cfg=dict(bias_decay_mult=0.0),
        ),
        param_scheduler=[cosine] if schedule is None else schedule,
        default_hooks=dict(
            checkpoint=dict(
                type='CheckpointHook', interval=1 if by_epoch else 4, by_epoch=by_epoch, **checkpoint or {}
            ),
            logger=dict(type='LoggerHook', interval=1),
        ),
        custom_hooks=[At(*at)] if at else None,
        randomness=dict(seed=3),
        resume=bool(resume),
        load_from=str(resume) if isinstance(resume, Path) else None,
        default_scope='mmengine',
        experiment_name=f'toy_{next(NUMBERS)}',
        log_level='WARNING',
        **kwargs,
    )
    return built


def state(path: Path) -> dict[str, Tensor]:
    """Weights and moments in a checkpoint."""
    content = read_checkpoint(path)
    moments = content['optimizer']['state']
    return {**content['state_dict'], **{f'{i}.{key}': value for i in moments for key, value in moments[i].items()}}


def assert_same(one: Path, other: Path) -> None:
    """Two checkpoints hold the same weights, moments and losses, bit for bit."""
    first, second = state(one), state(other)
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []
    history, again = (read_checkpoint(path)['run']['history'] for path in (one, other))
    for name in ('train/loss', 'train/lr'):
        assert history[name][0].tolist() == again[name][0].tolist(), name
