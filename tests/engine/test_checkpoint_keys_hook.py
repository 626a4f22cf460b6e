"""CheckpointKeysHook in MMEngine's runner: a checkpoint that does not match the whole model stops the run."""

from __future__ import annotations

import argparse
import re
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import safetensors.torch
import torch
from mmengine.config import Config, DictAction
from mmengine.model import BaseModel
from mmengine.registry import DefaultScope
from mmengine.runner import EpochBasedTrainLoop, Runner
from torch import Tensor, nn

from mm_ummae.engine import CheckpointKeysHook
from mm_ummae.registry import MODELS
from tests.runs import leaf

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


def build_runner(
    work_dir: Path, load_from: Path | None = None, new_parts: tuple[str, ...] = (), **kwargs: Any
) -> Runner:
    """An epoch of two iterations that leave the weights as they are."""
    loader = dict(
        batch_size=1,
        sampler=dict(type='DefaultSampler', shuffle=False),
        collate_fn=dict(type='default_collate'),
        dataset=[dict(inputs=torch.ones(3))] * 2,
    )
    return Runner(
        TwoLayers(),
        str(work_dir),
        train_dataloader=loader,
        train_cfg=dict(by_epoch=True, max_epochs=1),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.0)),
        test_dataloader=loader,
        test_cfg=dict(),
        test_evaluator=[],
        custom_hooks=[dict(type='mm_ummae.CheckpointKeysHook', new_parts=new_parts)],
        load_from=None if load_from is None else str(load_from),
        default_scope='mmengine',
        experiment_name=f'checkpoint_keys_hook_{next(NUMBERS)}',
        log_level='WARNING',
        **kwargs,
    )


def without(state: State, start: str) -> State:
    return {name: value for name, value in state.items() if not name.startswith(start)}


CHANGES = {
    'missing': lambda state: without(state, 'head.'),
    'half missing': lambda state: without(state, 'head.bias'),
    'renamed': lambda state: {name.replace('head.', 'top.'): value for name, value in state.items()},
    'reshaped': lambda state: {**state, 'head.weight': torch.ones(1, 5)},
    'surplus': lambda state: {**state, 'extra': torch.ones(1)},
}


@pytest.mark.parametrize(
    ('use', 'change', 'new_parts', 'message'),
    [
        ('start', 'missing', (), HEAD),
        ('start', 'renamed', (), rf'{HEAD}; unexpected: top\.bias, top\.weight'),
        ('start', 'reshaped', (), r'other shape: head\.weight \(1, 5\) instead of \(1, 2\)'),
        ('start', 'surplus', (), 'unexpected: extra'),
        ('start', 'missing', ('backbone.', 'neck.'), HEAD),  # another part is new
        ('resume', 'missing', ('head.',), HEAD),  # no part is new
        ('resume newest', 'renamed', (), rf'{HEAD}; unexpected: top\.bias, top\.weight'),
        ('test', 'missing', (), HEAD),
        ('test', 'missing', ('head.',), HEAD),
    ],
)
def test_a_checkpoint_that_does_not_match_stops_the_run(
    use: str, change: str, new_parts: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    build_runner(tmp_path).train()
    path = tmp_path / 'epoch_1.pth'
    checkpoint = torch.load(path, weights_only=False)
    torch.save({**checkpoint, 'state_dict': CHANGES[change](checkpoint['state_dict'])}, path)
    named = None if 'newest' in use else path
    runner = build_runner(tmp_path, named, new_parts, resume='resume' in use)
    origin = r'to resume from in .*' if named is None else r'.*epoch_1\.pth \(load_from\)'
    with pytest.raises(
        ValueError, match=rf'the checkpoint {origin} does not fit TwoLayers\. {message}(\. To load all else|$)'
    ):
        runner.test() if use == 'test' else runner.train()


@pytest.mark.parametrize('form', ['runner', 'bare', 'ddp', 'new part', 'safetensors'])
def test_a_checkpoint_that_matches_is_loaded(form: str, tmp_path: Path) -> None:
    """A part that is declared as new starts from random weights."""
    state = {name: torch.ones_like(value) for name, value in TwoLayers().state_dict().items()}
    saved = {f'module.{name}': value for name, value in state.items()} if form == 'ddp' else state
    saved = without(saved, 'head.') if form == 'new part' else saved
    path = tmp_path / ('right.safetensors' if form == 'safetensors' else 'right.pth')
    if form == 'safetensors':
        safetensors.torch.save_file(saved, path)
    else:
        torch.save(saved if form == 'bare' else dict(state_dict=saved), path)
    runner = build_runner(tmp_path, path, ('head.',) if form == 'new part' else ())
    runner.train()
    loaded = {name for name, value in runner.model.state_dict().items() if (value == 1).all()}
    assert loaded == (without(state, 'head.') if form == 'new part' else state).keys()


def test_runs_without_a_checkpoint_and_resumed_runs(tmp_path: Path) -> None:
    first, resumed = build_runner(tmp_path), build_runner(tmp_path, resume=True)
    for runner in (first, resumed):
        runner.train()
        assert (runner.epoch, runner.iter) == (1, 2), 'the only epoch was trained again'
    state = first.model.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in resumed.model.state_dict().items())


@pytest.mark.parametrize('form', ['reshaped', 'half missing', 'surplus', 'ddp'])
def test_new_parts_start_from_their_initial_weights(form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that fit are loaded, the others are named in the log."""
    state = {name: torch.ones_like(value) for name, value in TwoLayers().state_dict().items()}
    if form in ('reshaped', 'ddp'):
        state['head.weight'] = torch.ones(1, 5)
    elif form == 'half missing':
        del state['head.weight']
    else:
        state['head.old'] = torch.ones(1)
    saved = {f'module.{name}': value for name, value in state.items()} if form == 'ddp' else state
    torch.save(dict(state_dict=saved), tmp_path / 'other.pth')
    runner = build_runner(tmp_path, tmp_path / 'other.pth', ('head.',))
    messages: list[str] = []
    monkeypatch.setattr(runner.logger, 'info', messages.append)
    runner.train()
    loaded = {name for name, value in runner.model.state_dict().items() if (value == 1).all()}
    fresh = set() if form == 'surplus' else {'head.weight'}
    assert loaded == TwoLayers().state_dict().keys() - fresh
    log = '\n'.join(messages)
    assert f'keep their initial weights: {", ".join(fresh)}' in log
    assert ('not used: head.old' in log) == (form == 'surplus')


def test_the_error_names_the_option(tmp_path: Path) -> None:
    """For the command line, where it is tried, and for a config."""
    state = {**TwoLayers().state_dict(), 'head.weight': torch.ones(1, 5)}
    torch.save(dict(state_dict=state), tmp_path / 'other.pth')
    with pytest.raises(ValueError, match=r'To load all else') as error:
        build_runner(tmp_path, tmp_path / 'other.pth').train()
    option = re.search(r'--cfg-options "(.*?)"', str(error.value))[1]
    in_config = re.search(r'or in the config custom_hooks=(.*)$', str(error.value))[1]
    cfg = Config(dict(custom_hooks=[dict(type='mm_ummae.CheckpointKeysHook')]))
    parser = argparse.ArgumentParser()
    parser.add_argument('--cfg-options', nargs='+', action=DictAction)
    cfg.merge_from_dict(parser.parse_args(['--cfg-options', option]).cfg_options)
    assert cfg.custom_hooks == [dict(type='mm_ummae.CheckpointKeysHook', new_parts=['head.'])]
    assert eval(in_config) == [dict(type='mm_ummae.CheckpointKeysHook', new_parts=('head.',))]


def test_no_option_for_another_network(tmp_path: Path) -> None:
    """Weights of which hardly any fits are a mistake, not a transfer."""
    torch.save({'backbone.bias': torch.ones(2), 'stem.weight': torch.ones(1)}, tmp_path / 'other.pth')
    with pytest.raises(ValueError, match=r'unexpected: stem\.weight$'):
        build_runner(tmp_path, tmp_path / 'other.pth').train()


HOSTS = {
    'mask-rcnn_um-swin-test_*': (
        'mmdet',
        dict(roi_head=dict(bbox_head=dict(num_classes=5), mask_head=dict(num_classes=5))),
    ),
    'upernet_um-swin-test_*': ('mmseg', dict(decode_head=dict(num_classes=5), auxiliary_head=dict(num_classes=5))),
    'um-swin-test_classification_*': ('mmpretrain', dict(head=dict(num_classes=5))),
}
CLASS_LAYERS = {
    'mmdet': {'roi_head.bbox_head.fc_cls'},  # boxes and masks of the demo are the same for all classes
    'mmseg': {'decode_head.conv_seg', 'auxiliary_head.conv_seg'},
    'mmpretrain': {'head.fc'},
}


@pytest.mark.parametrize('name', HOSTS)
def test_trained_network_for_other_classes(name: str) -> None:
    """The error names the class layers; with them as new parts everything else is loaded."""
    host, classes = HOSTS[name]
    cfg = Config.fromfile(leaf(f'demo/{name}'))
    cfg.model.backbone.init_cfg = None
    with DefaultScope.overwrite_default_scope(host):
        trained = MODELS.build(cfg.model).state_dict()
        cfg.merge_from_dict(dict(model=classes))
        model = MODELS.build(cfg.model)
    messages: list[str] = []
    runner = SimpleNamespace(
        model=model,
        _train_loop=object.__new__(EpochBasedTrainLoop),
        _resume=False,
        _load_from='ten.pth',
        cfg=dict(custom_hooks=[dict(type='Other'), dict(type='mm_ummae.CheckpointKeysHook')]),
        logger=SimpleNamespace(info=messages.append),
    )
    with pytest.raises(ValueError, match=r'other shape: .*custom_hooks\.1\.new_parts=\[(.*)\]"') as error:
        CheckpointKeysHook().after_load_checkpoint(runner, dict(state_dict=dict(trained)))
    parts = re.search(r'new_parts=\[(.*)\]"', str(error.value))[1].split(',')
    assert set(parts) == {f'{layer}.' for layer in CLASS_LAYERS[host]}
    checkpoint = dict(state_dict=dict(trained))
    CheckpointKeysHook(parts).after_load_checkpoint(runner, checkpoint)
    left = trained.keys() - checkpoint['state_dict'].keys()
    assert {key.rpartition('.')[0] for key in left} == CLASS_LAYERS[host]
    assert all(key in messages[0] for key in left)
