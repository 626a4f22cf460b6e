"""CheckpointKeysHook in MMEngine's runner: what does not fit the whole model stops the run."""

from __future__ import annotations

from collections.abc import Callable
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


class Line(BaseModel):
    """Two layers, of which a checkpoint may hold one."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Linear(3, 2)
        self.head = nn.Linear(2, 1)

    def forward(self, inputs: Tensor, mode: str = 'tensor') -> Any:
        out = self.head(self.backbone(inputs)).mean()
        return dict(loss=out) if mode == 'loss' else [out]


class KeepWeights(Hook):
    """Remembers the weights that training started from."""

    priority = 'LOWEST'

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        if not hasattr(self, 'weights'):
            self.weights = {name: value.clone() for name, value in runner.model.state_dict().items()}


def runner(
    work_dir: Path, load_from: Path | None, hook: bool = True, new_parts: tuple[str, ...] = (), **kwargs: Any
) -> Runner:
    dataset = [dict(inputs=torch.ones(3))] * 2
    loader = dict(
        batch_size=1,
        sampler=dict(type='DefaultSampler', shuffle=False),
        collate_fn=dict(type='default_collate'),
        dataset=dataset,
    )
    return Runner(
        Line(),
        str(work_dir),
        train_dataloader=loader,
        train_cfg=dict(by_epoch=True, max_epochs=1),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1)),
        custom_hooks=[dict(type='mm_ummae.CheckpointKeysHook', new_parts=new_parts)] if hook else [],
        load_from=None if load_from is None else str(load_from),
        default_scope='mmengine',
        experiment_name=f'test_engine_{next(NUMBERS)}',
        log_level='WARNING',
        **kwargs,
    )


def ones() -> State:
    return {name: torch.ones_like(value) for name, value in Line().state_dict().items()}


def without_head(state: State) -> State:
    return {name: value for name, value in state.items() if not name.startswith('head.')}


def renamed(state: State) -> State:
    return {name.replace('head.', 'top.'): value for name, value in state.items()}


def reshaped(state: State) -> State:
    return {**state, 'head.weight': torch.ones(1, 5)}


MISFITS = pytest.mark.parametrize(
    ('change', 'message'),
    [
        (without_head, r'does not fit Line\. missing: head\.bias, head\.weight$'),
        (
            renamed,
            r'does not fit Line\. missing: head\.bias, head\.weight; unexpected: top\.bias, top\.weight$',
        ),
        (reshaped, r'does not fit Line\. other shape: head\.weight \(1, 5\) instead of \(1, 2\)$'),
        (lambda state: {**state, 'extra': torch.ones(1)}, r'does not fit Line\. unexpected: extra$'),
    ],
    ids=['missing', 'renamed', 'reshaped', 'surplus'],
)


def test_the_hook_is_registered() -> None:
    assert HOOKS.get('CheckpointKeysHook') is CheckpointKeysHook


@MISFITS
def test_load_from_refuses_what_does_not_fit(change: Callable[[State], State], message: str, tmp_path: Path) -> None:
    torch.save(dict(state_dict=change(ones()), meta=dict()), tmp_path / 'other.pth')
    with pytest.raises(ValueError, match=message) as error:
        runner(tmp_path, tmp_path / 'other.pth').train()
    assert str(tmp_path / 'other.pth') in str(error.value)


def test_without_the_hook_mmengine_goes_on(tmp_path: Path) -> None:
    """Why the hook is there: the head would silently start from random weights."""
    torch.save(dict(state_dict=without_head(ones())), tmp_path / 'half.pth')
    keep = KeepWeights()
    alone = runner(tmp_path, tmp_path / 'half.pth', hook=False)
    alone.register_hook(keep)
    alone.train()
    assert torch.equal(keep.weights['backbone.weight'], torch.ones(2, 3))
    assert not torch.equal(keep.weights['head.weight'], torch.ones(1, 2))


@pytest.mark.parametrize('wrap', ['runner', 'bare', 'ddp'])
def test_a_checkpoint_that_fits_is_loaded(wrap: str, tmp_path: Path) -> None:
    state = {f'module.{name}': value for name, value in ones().items()} if wrap == 'ddp' else ones()
    torch.save(state if wrap == 'bare' else dict(state_dict=state), tmp_path / 'right.pth')
    keep = KeepWeights()
    fitting = runner(tmp_path, tmp_path / 'right.pth')
    fitting.register_hook(keep)
    fitting.train()
    assert keep.weights.keys() == ones().keys()
    assert all(bool((value == 1).all()) for value in keep.weights.values())


def test_a_run_without_a_checkpoint_is_left_alone(tmp_path: Path) -> None:
    started = runner(tmp_path, None)
    started.train()
    assert started.iter == 2


def test_a_new_part_may_be_missing_when_training_starts(tmp_path: Path) -> None:
    torch.save(dict(state_dict=without_head(ones())), tmp_path / 'half.pth')
    keep = KeepWeights()
    extended = runner(tmp_path, tmp_path / 'half.pth', new_parts=('head.',))
    extended.register_hook(keep)
    extended.train()
    assert torch.equal(keep.weights['backbone.weight'], torch.ones(2, 3))


def test_half_of_a_new_part_is_refused(tmp_path: Path) -> None:
    """It is not new then, but damaged."""
    state = {name: value for name, value in ones().items() if name != 'head.bias'}
    torch.save(dict(state_dict=state), tmp_path / 'most.pth')
    with pytest.raises(ValueError, match=r'does not fit Line\. missing: head\.bias$'):
        runner(tmp_path, tmp_path / 'most.pth', new_parts=('head.',)).train()


def test_another_part_may_not_be_missing(tmp_path: Path) -> None:
    torch.save(dict(state_dict=without_head(ones())), tmp_path / 'half.pth')
    with pytest.raises(ValueError, match=r'does not fit Line\. missing: head\.bias, head\.weight$'):
        runner(tmp_path, tmp_path / 'half.pth', new_parts=('backbone.', 'neck.')).train()


def test_a_resumed_run_may_not_lack_the_new_part(tmp_path: Path) -> None:
    runner(tmp_path, None).train()
    checkpoint = torch.load(tmp_path / 'epoch_1.pth', weights_only=False)
    checkpoint['state_dict'] = without_head(checkpoint['state_dict'])
    torch.save(checkpoint, tmp_path / 'epoch_1.pth')
    with pytest.raises(ValueError, match=r'missing: head\.bias, head\.weight'):
        runner(tmp_path, None, new_parts=('head.',), resume=True).train()


@pytest.mark.parametrize('named', [True, False], ids=['named', 'newest'])
def test_resume_refuses_what_does_not_fit(named: bool, tmp_path: Path) -> None:
    """Also where the checkpoint was found in the work folder."""
    runner(tmp_path, None).train()
    path = tmp_path / 'epoch_1.pth'
    checkpoint = torch.load(path, weights_only=False)
    checkpoint['state_dict'] = renamed(checkpoint['state_dict'])
    torch.save(checkpoint, path)
    with pytest.raises(ValueError, match=r'missing: head\.bias, head\.weight; unexpected: top\.bias, top\.weight'):
        runner(tmp_path, path if named else None, resume=True).train()


def test_resume_goes_on_from_what_fits(tmp_path: Path) -> None:
    runner(tmp_path, None).train()
    resumed = runner(tmp_path, None, resume=True)
    resumed.train()
    assert resumed.epoch == 1 and resumed.iter == 2, 'the one epoch was trained again'


@pytest.mark.parametrize('new_parts', [(), ('head.',)])
def test_the_test_loop_refuses_what_does_not_fit(new_parts: tuple[str, ...], tmp_path: Path) -> None:
    torch.save(dict(state_dict=without_head(ones())), tmp_path / 'half.pth')
    testing = runner(
        tmp_path,
        tmp_path / 'half.pth',
        new_parts=new_parts,
        test_dataloader=dict(batch_size=1, sampler=dict(type='DefaultSampler'), dataset=[dict(inputs=torch.ones(3))]),
        test_cfg=dict(),
        test_evaluator=[],
    )
    with pytest.raises(ValueError, match=r'does not fit Line\. missing: head\.bias, head\.weight'):
        testing.test()
