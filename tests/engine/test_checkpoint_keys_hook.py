"""CheckpointKeysHook in MMEngine's runner: a checkpoint that does not match the whole model stops the run."""

from __future__ import annotations

from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch import Tensor, nn

from mm_ummae.engine import CheckpointKeysHook
from mm_ummae.registry import HOOKS

State = dict[str, Tensor]
NUMBERS = count()
HEAD = r'missing: head\.bias, head\.weight'


class TwoLayers(BaseModel):
    """A backbone and a head of one layer each."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Linear(3, 2)
        self.head = nn.Linear(2, 1)

    def forward(self, inputs: Tensor, mode: str = 'tensor') -> Any:
        out = self.head(self.backbone(inputs)).mean()
        return dict(loss=out) if mode == 'loss' else [out]


class KeepWeights(Hook):
    """Keeps the weights that training starts from."""

    def before_train(self, runner: Runner) -> None:
        self.weights = {name: value.clone() for name, value in runner.model.state_dict().items()}


def build_runner(
    work_dir: Path, load_from: Path | None, hook: bool = True, new_parts: tuple[str, ...] = (), **kwargs: Any
) -> tuple[Runner, KeepWeights]:
    loader = dict(
        batch_size=1,
        sampler=dict(type='DefaultSampler', shuffle=False),
        collate_fn=dict(type='default_collate'),
        dataset=[dict(inputs=torch.ones(3))] * 2,
    )
    keep = KeepWeights()
    runner = Runner(
        TwoLayers(),
        str(work_dir),
        train_dataloader=loader,
        train_cfg=dict(by_epoch=True, max_epochs=1),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1)),
        test_dataloader=loader,
        test_cfg=dict(),
        test_evaluator=[],
        custom_hooks=[keep, *([dict(type='mm_ummae.CheckpointKeysHook', new_parts=new_parts)] if hook else [])],
        load_from=None if load_from is None else str(load_from),
        default_scope='mmengine',
        experiment_name=f'checkpoint_keys_hook_{next(NUMBERS)}',
        log_level='WARNING',
        **kwargs,
    )
    return runner, keep


def ones() -> State:
    return {name: torch.ones_like(value) for name, value in TwoLayers().state_dict().items()}


def without(state: State, *starts: str) -> State:
    return {name: value for name, value in state.items() if not name.startswith(starts)}


def renamed(state: State) -> State:
    return {name.replace('head.', 'top.'): value for name, value in state.items()}


CHANGES = {
    'missing': lambda state: without(state, 'head.'),
    'half missing': lambda state: without(state, 'head.bias'),
    'renamed': renamed,
    'reshaped': lambda state: {**state, 'head.weight': torch.ones(1, 5)},
    'surplus': lambda state: {**state, 'extra': torch.ones(1)},
}


@pytest.mark.parametrize(
    ('change', 'new_parts', 'message'),
    [
        ('missing', (), HEAD),
        ('renamed', (), rf'{HEAD}; unexpected: top\.bias, top\.weight'),
        ('reshaped', (), r'other shape: head\.weight \(1, 5\) instead of \(1, 2\)'),
        ('surplus', (), 'unexpected: extra'),
        ('missing', ('backbone.', 'neck.'), HEAD),  # another part is new
        ('half missing', ('head.',), r'missing: head\.bias'),  # a new part is missing completely
    ],
)
def test_load_from_needs_a_checkpoint_that_matches(
    change: str, new_parts: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    torch.save(dict(state_dict=CHANGES[change](ones()), meta=dict()), tmp_path / 'other.pth')
    runner, _ = build_runner(tmp_path, tmp_path / 'other.pth', new_parts=new_parts)
    expected = rf'the checkpoint .*other\.pth \(load_from\) does not fit TwoLayers\. {message}$'
    with pytest.raises(ValueError, match=expected):
        runner.train()


@pytest.mark.parametrize(
    ('named', 'change', 'new_parts', 'message'),
    [
        (True, 'renamed', (), rf'\(load_from\) .*{HEAD}; unexpected: top\.bias, top\.weight'),
        (False, 'renamed', (), rf'to resume from in .*{HEAD}; unexpected: top\.bias, top\.weight'),
        (False, 'missing', ('head.',), HEAD),
    ],
    ids=['named', 'newest', 'new part'],
)
def test_resuming_needs_every_parameter(
    named: bool, change: str, new_parts: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    """Whether the checkpoint is named or found in the work directory, and even of a new part."""
    build_runner(tmp_path, None)[0].train()
    path = tmp_path / 'epoch_1.pth'
    checkpoint = torch.load(path, weights_only=False)
    torch.save({**checkpoint, 'state_dict': CHANGES[change](checkpoint['state_dict'])}, path)
    runner, _ = build_runner(tmp_path, path if named else None, new_parts=new_parts, resume=True)
    with pytest.raises(ValueError, match=message):
        runner.train()


def test_a_test_run_needs_every_parameter(tmp_path: Path) -> None:
    torch.save(dict(state_dict=without(ones(), 'head.')), tmp_path / 'part.pth')
    for new_parts in ((), ('head.',)):
        runner, _ = build_runner(tmp_path, tmp_path / 'part.pth', new_parts=new_parts)
        with pytest.raises(ValueError, match=rf'does not fit TwoLayers\. {HEAD}'):
            runner.test()


@pytest.mark.parametrize('form', ['runner', 'bare', 'ddp'])
def test_a_checkpoint_that_matches_is_loaded(form: str, tmp_path: Path) -> None:
    state = {f'module.{name}': value for name, value in ones().items()} if form == 'ddp' else ones()
    torch.save(state if form == 'bare' else dict(state_dict=state), tmp_path / 'right.pth')
    runner, keep = build_runner(tmp_path, tmp_path / 'right.pth')
    runner.train()
    assert keep.weights.keys() == ones().keys() and all(bool((value == 1).all()) for value in keep.weights.values())


@pytest.mark.parametrize('hook', [True, False])
def test_a_new_part_starts_from_random_weights(hook: bool, tmp_path: Path) -> None:
    """If it is declared; without the hook MMEngine continues in any case, which is the reason for the hook."""
    torch.save(dict(state_dict=without(ones(), 'head.')), tmp_path / 'part.pth')
    runner, keep = build_runner(tmp_path, tmp_path / 'part.pth', hook, new_parts=('head.',))
    runner.train()
    assert torch.equal(keep.weights['backbone.weight'], torch.ones(2, 3))
    assert not torch.equal(keep.weights['head.weight'], torch.ones(1, 2))


def test_runs_without_a_checkpoint_and_resumed_runs(tmp_path: Path) -> None:
    assert HOOKS.get('CheckpointKeysHook') is CheckpointKeysHook
    runner, _ = build_runner(tmp_path, None)
    runner.train()
    assert (runner.epoch, runner.iter) == (1, 2)
    resumed, keep = build_runner(tmp_path, None, resume=True)
    resumed.train()
    assert (resumed.epoch, resumed.iter) == (1, 2), 'the only epoch was trained again'
    assert all(torch.equal(value, runner.model.state_dict()[name]) for name, value in keep.weights.items())
