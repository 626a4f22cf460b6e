"""Loading pre-trained weights: all of them, or an error that names what does not fit and no change."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.logging import MMLogger
from mmpretrain.models.classifiers import ImageClassifier
from torch import Tensor

from mm_ummae.models import UMMAE, UMMAEDecoder, UMMAEHead, UMSwin

SMALL = dict(embed_dims=8, depths=(2, 1, 2, 1), num_heads=(1, 2, 2, 4), position_dims=4)
State = dict[str, Tensor]


def made_swin(**kwargs: Any) -> UMSwin:
    return UMSwin(**{'arch': SMALL, 'img_size': 128, **kwargs})


def pretrained(path: Path, **kwargs: Any) -> dict:
    return dict(type='Pretrained', checkpoint=str(path), **kwargs)


def pretraining_state() -> State:
    """The state of a pre-training model, no value of which a new model has by chance."""
    torch.manual_seed(7)
    model = UMMAE(made_swin(secondary_token=True), UMMAEDecoder(64, 32, 1, 2, img_size=128), UMMAEHead(32))
    return {name: torch.randn_like(value) for name, value in model.state_dict().items()}


def inside(state: State) -> State:
    """Names of the backbone, without the prefix."""
    return {name[9:]: value for name, value in state.items() if name.startswith('backbone.')}


def renamed(state: State, prefix: str) -> State:
    return {prefix + name: value for name, value in state.items()}


def copied(model: UMSwin) -> State:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(first: State, second: State) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.fixture
def log() -> Iterator[list[str]]:
    """Messages that reach MMEngine's current logger."""
    messages: list[str] = []

    class Collect(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            messages.append(record.getMessage())

    logger, handler = MMLogger.get_current_instance(), Collect()
    logger.addHandler(handler)
    yield messages
    logger.removeHandler(handler)


# What loads


@pytest.mark.parametrize(
    ('wrap', 'kwargs'),
    [
        (lambda state: dict(state_dict=state), {}),
        (lambda state: dict(state_dict=state, meta=dict(epoch=3), optimizer=dict()), {}),
        (lambda state: dict(state_dict=state), dict(prefix='backbone')),
        (lambda state: dict(state_dict=state), dict(prefix='backbone.')),
        (lambda state: state, {}),
        (lambda state: dict(state_dict=renamed(state, 'module.')), {}),
        (lambda state: dict(state_dict=inside(state)), {}),
        (lambda state: inside(state), {}),
        (lambda state: renamed(inside(state), 'module.'), {}),
        (lambda state: renamed(inside(state), 'encoder.swin.'), dict(prefix='encoder.swin')),
    ],
    ids=[
        'auto',
        'runner',
        'prefix',
        'dot',
        'bare-model',
        'ddp',
        'backbone',
        'bare',
        'bare-ddp',
        'other-prefix',
    ],
)
def test_every_form_of_a_checkpoint_loads(wrap: Any, kwargs: dict, tmp_path: Path) -> None:
    """The file's values arrive, all of them, whatever wraps them."""
    state = pretraining_state()
    torch.save(wrap(state), tmp_path / 'model.pth')
    model = made_swin(secondary_token=True, init_cfg=pretrained(tmp_path / 'model.pth', **kwargs))
    model.init_weights()
    assert same(model.state_dict(), inside(state))


def test_pretraining_only_names_are_left_and_logged(tmp_path: Path, log: list[str]) -> None:
    """A detector's backbone has no secondary token and no last norm: that is said, and no error."""
    state = pretraining_state()
    torch.save(dict(state_dict=state), tmp_path / 'model.pth')
    model = made_swin(final_norm=False, out_indices=(0, 1, 2, 3), init_cfg=pretrained(tmp_path / 'model.pth'))
    model.init_weights()
    only = {'secondary_token', 'norm.weight', 'norm.bias'}
    assert same(model.state_dict(), {name: x for name, x in inside(state).items() if name not in only})
    message = next(message for message in log if 'parameters loaded' in message)
    assert f'all {len(model.state_dict())} parameters' in message and 'model.pth' in message
    assert all(name in message for name in only)

    log.clear()
    made_swin(secondary_token=True, init_cfg=pretrained(tmp_path / 'model.pth')).init_weights()
    message = next(message for message in log if 'parameters loaded' in message)
    assert 'not used' not in message


@pytest.mark.parametrize('host', ['UMMAE', 'ImageClassifier'])
def test_loaded_weights_survive_the_host(host: str, tmp_path: Path) -> None:
    """A model that holds the backbone initialises itself and leaves the loaded weights alone."""
    state = pretraining_state()
    torch.save(dict(state_dict=state), tmp_path / 'model.pth')
    backbone = made_swin(secondary_token=True, init_cfg=pretrained(tmp_path / 'model.pth'))
    if host == 'UMMAE':
        model = UMMAE(backbone, UMMAEDecoder(64, 32, 1, 2, img_size=128), UMMAEHead(32))
    else:
        model = ImageClassifier(
            backbone=backbone,
            neck=dict(type='mm_ummae.AvgPoolNorm', in_channels=64),
            head=dict(type='LinearClsHead', num_classes=10, in_channels=64),
        )
    model.init_weights()
    assert same(model.backbone.state_dict(), inside(state))


def test_without_a_checkpoint_weights_are_drawn() -> None:
    """Xavier for linear layers, zero biases, a small random secondary token: the other branch still works."""
    model = made_swin(secondary_token=True)
    model.init_weights()
    block = model.stages[0].blocks[0]
    assert not block.attn.qkv.bias.any() and not model.patch_embed.projection.bias.any()
    bound = (6 / (8 + 24)) ** 0.5
    assert 0.8 * bound < block.attn.qkv.weight.abs().max() <= bound
    bound = (6 / (8 + 48)) ** 0.5  # a patch convolution counts as a linear layer on 4 x 4 x 3 pixels
    assert 0.8 * bound < model.patch_embed.projection.weight.abs().max() <= bound
    assert 0 < model.secondary_token.abs().max() < 0.1


# What does not


def without(state: State, *names: str) -> State:
    return {name: value for name, value in state.items() if name not in names}


MISFITS = {'x': torch.ones(1), 'norm.bias': torch.ones(2)}
DEEP = 'backbone.stages.2.blocks.1.attn.position_bias.fc1.bias'


@pytest.mark.parametrize(
    ('change', 'kwargs', 'message'),
    [
        (lambda state: without(state, DEEP), {}, r'missing: stages\.2\.blocks\.1\.attn\.position'),
        (lambda state: without(state, 'backbone.norm.weight'), {}, r'missing: norm\.weight'),
        (lambda state: without(state, 'backbone.secondary_token'), {}, 'missing: secondary_token'),
        (lambda state: {**state, 'backbone.extra.weight': torch.ones(1)}, {}, r'unexpected: extra\.weight'),
        (
            lambda state: {**state, 'backbone.norm.bias': torch.ones(63)},
            {},
            r'other shape: norm\.bias \(63,\) instead of \(64,\)',
        ),
        (
            lambda state: renamed({**without(inside(state), 'norm.weight'), **MISFITS}, 'backbone.'),
            {},
            r'nothing was loaded\. missing: norm\.weight; unexpected: x; other shape: norm\.bias',
        ),
        (
            lambda state: renamed(UMSwin('test', secondary_token=True).state_dict(), 'backbone.'),
            {},
            r'loaded\. unexpected: stages.* and 24 more; other shape: norm\.bias \(256,\).* more$',
        ),
        (lambda state: state, dict(prefix='encoder'), r"prefix is 'encoder\.'.*it has backbone\."),
        (lambda state: state, dict(prefix='backbone.stages'), r'missing: norm\.bias.*unexpected: 0\.blocks'),
        (lambda state: state, dict(prefix='back'), r"prefix is 'back\.'"),
        (lambda state: renamed(state, 'model.'), {}, 'missing: .*unexpected: model\\.'),
    ],
    ids=[
        'missing',
        'norm',
        'token',
        'unexpected',
        'shape',
        'all-three',
        'arch',
        'prefix',
        'deep-prefix',
        'half-prefix',
        'wrapper',
    ],
)
def test_what_does_not_fit_is_named(change: Any, kwargs: dict, message: str, tmp_path: Path) -> None:
    """Each misfit raises with its names and leaves the weights as they were: no half-loaded models."""
    torch.save(dict(state_dict=change(pretraining_state())), tmp_path / 'model.pth')
    model = made_swin(secondary_token=True, init_cfg=pretrained(tmp_path / 'model.pth', **kwargs))
    before = copied(model)
    with pytest.raises(ValueError, match=message) as error:
        model.init_weights()
    assert str(tmp_path / 'model.pth') in str(error.value)
    assert same(model.state_dict(), before)


def test_other_arch_names_some_and_counts_the_rest(tmp_path: Path) -> None:
    """A list of hundreds of names helps nobody."""
    torch.save(UMSwin('test').state_dict(), tmp_path / 'model.pth')
    model = made_swin(init_cfg=pretrained(tmp_path / 'model.pth'))
    with pytest.raises(ValueError, match=r'other shape: .*\(256,\) instead of \(64,\).* \d+ more') as error:
        model.init_weights()
    assert str(error.value).count(' instead of ') == 8


def test_missing_file(tmp_path: Path) -> None:
    model = made_swin(init_cfg=pretrained(tmp_path / 'nowhere.pth'))
    before = copied(model)
    with pytest.raises(FileNotFoundError, match=r'the checkpoint .*nowhere\.pth does not exist'):
        model.init_weights()
    assert same(model.state_dict(), before)


def damaged(path: Path, kind: str) -> None:
    if kind == 'truncated':
        torch.save(dict(state_dict=pretraining_state()), path)
        path.write_bytes(path.read_bytes()[:-2000])
    elif kind == 'short':
        torch.save(dict(state_dict=pretraining_state()), path)
        path.write_bytes(path.read_bytes()[:100])
    elif kind == 'empty':
        path.write_bytes(b'')
    elif kind == 'text':
        path.write_text('<html>404: not found</html>')


@pytest.mark.parametrize('kind', ['truncated', 'short', 'empty', 'text'])
def test_damaged_file(kind: str, tmp_path: Path) -> None:
    path = tmp_path / 'model.pth'
    damaged(path, kind)
    model = made_swin(init_cfg=pretrained(path))
    before = copied(model)
    with pytest.raises(ValueError, match=r'the checkpoint .*model\.pth.*cannot be read'):
        model.init_weights()
    assert same(model.state_dict(), before)


@pytest.mark.parametrize(
    'content',
    [
        [1, 2],
        torch.ones(3),
        {},
        dict(epoch=3),
        dict(state_dict={}),
        dict(state_dict=dict(weight=[1, 2])),
        dict(state_dict=[torch.ones(1)]),
        dict(state_dict=None),
        {0: torch.ones(1)},
    ],
    ids=[
        'list',
        'tensor',
        'empty',
        'no-tensors',
        'empty-state',
        'state-of-lists',
        'list-state',
        'none',
        'numbers',
    ],
)
def test_file_that_holds_no_model(content: Any, tmp_path: Path) -> None:
    """Files of torch.save that hold something else are refused with the file's name."""
    torch.save(content, tmp_path / 'model.pth')
    model = made_swin(init_cfg=pretrained(tmp_path / 'model.pth'))
    before = copied(model)
    with pytest.raises(ValueError, match=r'the checkpoint .*model\.pth.*holds no state_dict'):
        model.init_weights()
    assert same(model.state_dict(), before)


@pytest.mark.parametrize('cfg', [dict(type='Pretrained'), dict(type='Pretrained', checkpoint='x', map='cpu')])
def test_unknown_or_missing_keys_of_init_cfg(cfg: dict) -> None:
    with pytest.raises(ValueError, match=r'init_cfg is .*takes checkpoint and optionally prefix'):
        made_swin(init_cfg=cfg).init_weights()
