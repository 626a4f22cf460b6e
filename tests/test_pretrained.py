"""Loading pre-trained weights: all of them, or an error that names what does not fit and no change."""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.logging import HistoryBuffer, MMLogger
from mmengine.registry import MODELS as MODEL_REGISTRY
from mmengine.registry import DefaultScope
from mmpretrain.models.classifiers import ImageClassifier
from torch import Tensor, nn

from mm_ummae.checkpoints import files as checkpoint_files
from mm_ummae.checkpoints.conversion import to_ours
from mm_ummae.models import UMMAE, UMPVT, UMMAEDecoder, UMMAEHead, UMSwin, UMViT

from .golden import GoldenCase

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


def copied(model: nn.Module) -> State:
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


# Released files, straight in a config


def released(name: str, path: Path) -> State:
    """Write a file as the published scripts leave it; returns what it holds of the backbone, under our names."""
    state = GoldenCase(name).published_state()
    torch.save(dict(model=state, epoch=199, args=argparse.Namespace(lr=1.5e-4), optimizer=dict(state={})), path)
    return inside(to_ours(state))


@pytest.mark.parametrize('name', ['ummae_swin', 'simmim_swin', 'cls_swin', 'det_swin'])
def test_released_swin_in_a_dense_backbone(name: str, tmp_path: Path, log: list[str]) -> None:
    """Pre-trained with windows of 8 tokens on compact images, used with 16 on full ones of another size."""
    expected = released(name, tmp_path / 'released.pth')
    kwargs = dict(arch='test', img_size=256, window_size=16, out_indices=(0, 1, 2, 3), final_norm=False)
    model = UMSwin(**kwargs, init_cfg=pretrained(tmp_path / 'released.pth'))
    model.init_weights()
    unused = sorted(expected.keys() - model.state_dict().keys())
    assert same(model.state_dict(), {key: value for key, value in expected.items() if key not in unused})
    message = next(message for message in log if 'parameters loaded' in message)
    assert message.startswith(f'UMSwin: all {len(model.state_dict())} parameters loaded from {tmp_path}/released.pth')
    token = dict(ummae=['secondary_token'], simmim=['mask_token']).get(name.split('_')[0])
    assert unused == (sorted(['norm.bias', 'norm.weight', *token]) if token else [])
    assert message.endswith(f', not used: {", ".join(unused)}' if unused else 'released.pth')
    by_hand = UMSwin(**kwargs)
    by_hand.load_state_dict(expected, strict=False)
    images = torch.rand(1, 3, 96, 160)
    maps = model.eval()(images)
    assert [tuple(x.shape[1:]) for x in maps] == [(32, 24, 40), (64, 12, 20), (128, 6, 10), (256, 3, 5)]
    for actual, hand in zip(maps, by_hand.eval()(images), strict=True):
        assert torch.equal(actual, hand)


@pytest.mark.parametrize('size', [(128, 128), (256, 256), (96, 160)])
def test_released_pvt_at_any_size(size: tuple[int, int], tmp_path: Path, log: list[str]) -> None:
    """Its position embedding is resized to the backbone's image, as the published code does, and that is logged."""
    expected = released('cls_pvt', tmp_path / 'released.pth')
    model = UMPVT(
        'test',
        size,
        out_indices=(0, 1, 2, 3),
        final_norm=False,
        init_cfg=pretrained(tmp_path / 'released.pth'),
    )
    model.init_weights()
    grid = (size[0] // 4, size[1] // 4)
    if grid != (32, 32):
        square = expected['pos_embed'].view(1, 32, 32, 32).permute(0, 3, 1, 2)
        resized = F.interpolate(square, grid, mode='bicubic', align_corners=False)
        expected['pos_embed'] = resized.permute(0, 2, 3, 1).flatten(1, 2)
    state = model.state_dict()
    torch.testing.assert_close(state.pop('pos_embed'), expected.pop('pos_embed'))
    assert same(state, expected)
    message = next(message for message in log if 'parameters loaded' in message)
    note = f', resized: pos_embed (1, 1024, 32) to (1, {grid[0] * grid[1]}, 32)'
    assert message.endswith(note) if grid != (32, 32) else 'resized' not in message


def test_released_vit(tmp_path: Path, log: list[str]) -> None:
    """MMPretrain's ViT takes the same weights; the class token's position is not resized with the others."""
    expected = released('ummae_vit', tmp_path / 'released.pth')
    arch = dict(embed_dims=96, num_layers=2, num_heads=4, feedforward_channels=384)
    model = UMViT(arch, 160, final_norm=False, init_cfg=pretrained(tmp_path / 'released.pth'))
    model.init_weights()
    state, positions = model.state_dict(), expected.pop('pos_embed')
    square = positions[:, 1:].view(1, 8, 8, 96).permute(0, 3, 1, 2)
    resized = F.interpolate(square, (10, 10), mode='bicubic', align_corners=False).permute(0, 2, 3, 1).flatten(1, 2)
    found = state.pop('pos_embed')
    torch.testing.assert_close(found[:, 1:], resized)
    assert torch.equal(found[:, :1], positions[:, :1])
    unused = {'secondary_token', 'ln1.weight', 'ln1.bias'}
    assert same(state, {name: value for name, value in expected.items() if name not in unused})
    message = next(message for message in log if 'parameters loaded' in message)
    assert message.endswith(
        'resized: pos_embed (1, 65, 96) to (1, 101, 96), not used: ln1.bias, ln1.weight, secondary_token'
    )


@pytest.mark.parametrize(
    'config',
    [
        'demo/mask-rcnn_um-swin-test_1xb8-200it_demo-128px.py',
        'demo/upernet_um-swin-test_1xb8-150it_demo-128px.py',
        'demo/um-swin-test_classification_1xb16-100it_demo-128px.py',
    ],
)
def test_released_file_in_a_host_config(config: str, tmp_path: Path) -> None:
    """A detector, a segmentor and a classifier start from a released file that only its path names."""
    expected = released('ummae_swin', tmp_path / 'released.pth')
    cfg = Config.fromfile(Path(__file__).parents[1] / 'configs' / config)
    cfg.model.backbone.init_cfg.checkpoint = str(tmp_path / 'released.pth')
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        model = MODEL_REGISTRY.build(cfg.model)
        model.init_weights()
    state = model.backbone.state_dict()
    assert len(state) > 100 and same(state, {name: expected[name] for name in state})


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda state: without(state, 'blocks.3.attn.proj.bias'), r'cannot be converted\. .*missing: blocks\.3\.attn'),
        (lambda state: {**state, 'extra': torch.ones(1)}, r'cannot be converted\. .*unknown: extra'),
        (lambda state: {**state, 'norm.bias': torch.ones(3)}, r'cannot be converted\. .*other shape: norm\.bias'),
    ],
)
def test_released_file_with_a_defect(change: Any, message: str, tmp_path: Path) -> None:
    torch.save(dict(model=change(GoldenCase('ummae_swin').published_state())), tmp_path / 'released.pth')
    model = UMSwin('test', final_norm=False, init_cfg=pretrained(tmp_path / 'released.pth'))
    before = copied(model)
    with pytest.raises(ValueError, match=rf'the checkpoint .*released\.pth {message}'):
        model.init_weights()
    assert same(model.state_dict(), before)


def test_released_file_of_another_network(tmp_path: Path) -> None:
    """PVT weights in a Swin: converted, then refused with the names that differ."""
    released('ummae_pvt', tmp_path / 'released.pth')
    model = UMSwin('test', final_norm=False, init_cfg=pretrained(tmp_path / 'released.pth'))
    message = r'does not fit UMSwin, nothing was loaded\. missing: patch_embed\.norm\.bias.*unexpected: pos_embed'
    with pytest.raises(ValueError, match=message):
        model.init_weights()


def test_positions_that_cannot_be_resized(tmp_path: Path) -> None:
    state = GoldenCase('cls_pvt').published_state()
    torch.save(dict(model={**state, 'pos_embed': state['pos_embed'][:, :1000]}), tmp_path / 'released.pth')
    model = UMPVT('test', 128, final_norm=False, init_cfg=pretrained(tmp_path / 'released.pth'))
    with pytest.raises(
        ValueError, match=r'released\.pth does not fit UMPVT, nothing was loaded\. pos_embed .*no square'
    ):
        model.init_weights()


# What a file may hold beside weights


class Attack:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.folder),)


def test_a_file_runs_no_code(tmp_path: Path) -> None:
    torch.save(dict(state_dict=pretraining_state(), message_hub=Attack(tmp_path / 'ran')), tmp_path / 'model.pth')
    model = made_swin(secondary_token=True, init_cfg=pretrained(tmp_path / 'model.pth'))
    with pytest.raises(ValueError, match=r'the checkpoint .*model\.pth cannot be read\. It holds posix\.mkdir'):
        model.init_weights()
    assert not (tmp_path / 'ran').exists()


@pytest.mark.parametrize('can_leave_out', [True, False], ids=['current', 'before-2.6'])
def test_checkpoint_of_a_run(can_leave_out: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """MMEngine's logs are in every checkpoint of a run: they load with every PyTorch."""
    can_leave_out = can_leave_out and checkpoint_files.CAN_LEAVE_OUT
    monkeypatch.setattr(checkpoint_files, 'CAN_LEAVE_OUT', can_leave_out)
    state, logs = pretraining_state(), {'train/loss': HistoryBuffer([1.0, 0.5], [1, 1])}
    torch.save(dict(state_dict=state, message_hub=dict(log_scalars=logs)), tmp_path / 'model.pth')
    model = made_swin(secondary_token=True, init_cfg=pretrained(tmp_path / 'model.pth'))
    model.init_weights()
    assert same(model.state_dict(), inside(state))


def test_address_that_cannot_be_reached(tmp_path: Path) -> None:
    """Addresses go to MMEngine, and its error names them."""
    model = made_swin(init_cfg=dict(type='Pretrained', checkpoint='torchvision://no_such_model'))
    with pytest.raises(ValueError, match=r'the checkpoint torchvision://no_such_model cannot be read\. KeyError'):
        model.init_weights()
