"""Loading pre-trained weights: all of them, or an error that names what does not fit and no change."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.registry import MODELS, DefaultScope
from torch import Tensor, nn

from mm_ummae.checkpoints import to_ours
from mm_ummae.models import UMPVT, LoMaRViT, UMSwin, UMViT
from tests.builders import ALL, SMALL, made_ummae
from tests.golden import published, same

State = dict[str, Tensor]
VIT = dict(embed_dims=96, num_layers=2, num_heads=4, feedforward_channels=384)


def small_swin(path: Path | str, **kwargs: Any) -> UMSwin:
    init_cfg = dict(type='Pretrained', checkpoint=str(path), **kwargs)
    return UMSwin(SMALL[UMSwin], 128, secondary_token=True, init_cfg=init_cfg)


def inside(state: State) -> State:
    """Parameters of the backbone, without its prefix."""
    return {name[9:]: value for name, value in state.items() if name.startswith('backbone.')}


def renamed(state: State, prefix: str) -> State:
    return {prefix + name: value for name, value in state.items()}


def without(state: State, *names: str) -> State:
    assert set(names) <= state.keys()
    return {name: value for name, value in state.items() if name not in names}


def refused(model: nn.Module, error: type[Exception], message: str) -> None:
    """Loading raises, and no parameter has changed."""
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(error, match=message):
        model.init_weights()
    assert same(model.state_dict(), before)


@pytest.fixture(scope='module')
def state() -> State:
    """Parameters of a pre-training model, none of which has its initial value."""
    return made_ummae().state_dict()


@pytest.fixture
def log() -> Iterator[list[str]]:
    """Messages about loaded parameters in MMEngine's current logger."""
    messages: list[str] = []

    class Collect(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if 'parameters loaded' in record.getMessage():
                messages.append(record.getMessage())

    logger, handler = MMLogger.get_current_instance(), Collect()
    logger.addHandler(handler)
    yield messages
    logger.removeHandler(handler)


# Checkpoints that fit


@pytest.mark.parametrize(
    ('wrap', 'kwargs'),
    [
        (lambda state: dict(state_dict=state, meta=dict(epoch=3), optimizer={}), {}),
        (lambda state: dict(state_dict=state), dict(prefix='backbone')),
        (lambda state: dict(state_dict=state), dict(prefix='backbone.')),
        (lambda state: state, {}),
        (lambda state: dict(state_dict=renamed(state, 'module.')), {}),
        (lambda state: inside(state), {}),
        (lambda state: renamed(inside(state), 'encoder.swin.'), dict(prefix='encoder.swin')),
    ],
    ids=['runner', 'prefix', 'dot', 'bare-model', 'ddp', 'bare-backbone', 'other-prefix'],
)
def test_every_form_of_a_checkpoint_loads(wrap: Callable, kwargs: dict, state: State, tmp_path: Path) -> None:
    torch.save(wrap(state), tmp_path / 'model.pth')
    model = small_swin(tmp_path / 'model.pth', **kwargs)
    model.init_weights()
    assert same(model.state_dict(), inside(state))


NOT_BACKBONE = ('decoder', 'encoder_pred', 'mask_token', 'fc_norm', 'head', 'backbone.up', 'neck', 'rpn', 'roi')
# File, backbone, its arguments, and what only pre-training has
PYRAMID = dict(arch='test', img_size=128, final_norm=False, out_indices=ALL)
PUBLISHED = {
    'ummae_swin': (UMSwin, PYRAMID, ('norm', 'vis_mask_token')),
    'ummae_pvt': (UMPVT, PYRAMID, ('norm', 'vis_mask_token')),
    'ummae_vit': (UMViT, dict(arch=VIT, img_size=128), ('vis_mask_token',)),  # MAE's names
    'simmim_swin': (UMSwin, PYRAMID, ('norm',)),
    'lomar_vit': (LoMaRViT, dict(arch=VIT), ('pos_embed',)),
    'det_pvt': (UMPVT, PYRAMID, ()),
}


@pytest.mark.parametrize('name', PUBLISHED)
@pytest.mark.parametrize('form', ['encoder', 'encoder without pre-training parts', 'other parts incomplete'])
def test_encoders_in_published_naming_start_a_backbone(name: str, form: str, tmp_path: Path) -> None:
    """Released encoders, and MAE's: only the backbone's own parameters are needed."""
    kind, settings, optional = PUBLISHED[name]
    whole = published(name)
    state = {key: value for key, value in whole.items() if not key.startswith(NOT_BACKBONE)}
    if form == 'encoder without pre-training parts':
        state = {key: value for key, value in state.items() if not key.startswith(optional)}
    elif form == 'other parts incomplete':
        parts = [key for key in whole if key not in state]
        state |= {key: whole[key] for key in parts[: len(parts) // 2]}
    torch.save(dict(model=state), tmp_path / 'encoder.pth')
    expected = inside(to_ours(whole))
    for prefix in (dict(), dict(prefix='backbone'), dict(prefix='backbone.')):
        init_cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'encoder.pth'), **prefix)
        model = kind(init_cfg=init_cfg, **settings)
        model.init_weights()
        found = model.state_dict()
        assert same(found, {key: expected[key] for key in found})


def test_the_last_norm_is_needed_where_there_is_one(tmp_path: Path) -> None:
    state = without(published('ummae_vit'), 'norm.weight', 'norm.bias')
    torch.save(dict(model=state), tmp_path / 'encoder.pth')
    init_cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'encoder.pth'))
    refused(UMViT(VIT, 128, init_cfg=init_cfg), ValueError, r'nothing was loaded\. missing: ln1\.bias, ln1\.weight$')


def test_holes_in_an_encoder_are_named(tmp_path: Path) -> None:
    state = {key: value for key, value in published('ummae_swin').items() if not key.startswith(NOT_BACKBONE)}
    del state['blocks.3.attn.qkv.weight']
    torch.save(dict(model=state), tmp_path / 'encoder.pth')
    model = small_swin(tmp_path / 'encoder.pth')
    refused(model, ValueError, r'encoder\.pth cannot be converted\. .*missing: blocks\.3\.attn\.qkv\.weight')


def test_backbone_alone_under_a_fixed_prefix(state: State, tmp_path: Path) -> None:
    """Configs set prefix='backbone', and a file may hold nothing else."""
    torch.save(inside(state), tmp_path / 'model.pth')
    model = small_swin(tmp_path / 'model.pth', prefix='backbone')
    model.init_weights()
    assert same(model.state_dict(), inside(state))


def test_names_of_pretraining_are_optional_and_logged(state: State, tmp_path: Path, log: list[str]) -> None:
    """The backbone of a detector has neither the secondary token nor the last norm."""
    torch.save(dict(state_dict=state), tmp_path / 'model.pth')
    init_cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'model.pth'))
    model = UMSwin(SMALL[UMSwin], 128, final_norm=False, out_indices=ALL, init_cfg=init_cfg)
    model.init_weights()
    assert same(model.state_dict(), without(inside(state), 'secondary_token', 'norm.weight', 'norm.bias'))
    small_swin(tmp_path / 'model.pth').init_weights()
    count = len(model.state_dict())
    assert log[0].startswith(f'UMSwin: all {count} parameters loaded from {tmp_path}/model.pth')
    assert log[0].endswith(', not used: norm.bias, norm.weight, secondary_token') and 'not used' not in log[1]


def test_a_host_keeps_loaded_weights(state: State, tmp_path: Path) -> None:
    """The model that holds the backbone initialises only the rest of itself."""
    torch.save(dict(state_dict=state), tmp_path / 'model.pth')
    model = made_ummae(backbone=dict(init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / 'model.pth'))))
    model.init_weights()
    assert same(model.backbone.state_dict(), inside(state))
    assert not same(model.state_dict(), state)


def test_without_a_checkpoint_weights_are_drawn() -> None:
    """Xavier for linear layers, zero biases, a small random secondary token."""
    model = UMSwin(SMALL[UMSwin], 128, secondary_token=True)
    model.init_weights()
    qkv, patches = model.stages[0].blocks[0].attn.qkv, model.patch_embed.projection
    # A patch convolution is initialised as a linear layer on 4 x 4 x 3 pixels
    for layer, bound in ((qkv, (6 / (8 + 24)) ** 0.5), (patches, (6 / (8 + 48)) ** 0.5)):
        assert not layer.bias.any() and 0.8 * bound < layer.weight.abs().max() <= bound
    assert 0 < model.secondary_token.abs().max() < 0.1


# Checkpoints that do not fit

DEEP = 'backbone.stages.2.blocks.1.attn.position_bias.fc1.bias'
ALL_KINDS = {'x': torch.ones(1), 'norm.bias': torch.ones(2)}


@pytest.mark.parametrize(
    ('change', 'kwargs', 'message'),
    [
        (lambda state: without(state, DEEP), {}, r'missing: stages\.2\.blocks\.1\.attn\.position_bias\.fc1\.bias$'),
        (lambda state: without(state, 'backbone.secondary_token'), {}, 'missing: secondary_token$'),
        (lambda state: {**state, 'backbone.extra.weight': torch.ones(1)}, {}, r'unexpected: extra\.weight$'),
        (
            lambda state: renamed({**without(inside(state), 'norm.weight'), **ALL_KINDS}, 'backbone.'),
            {},
            r'missing: norm\.weight; unexpected: x; other shape: norm\.bias \(2,\) instead of \(64,\)$',
        ),
        (
            lambda state: UMSwin('test', secondary_token=True).state_dict(),
            {},
            r' and 24 more; other shape: (\S+ \([\d, ]+\) instead of \([\d, ]+\),? ){8}and 107 more$',
        ),
        (lambda state: state, dict(prefix='encoder'), r"prefix is 'encoder\.', but no parameter .*it has backbone\."),
        (lambda state: state, dict(prefix='backbone.stages'), r'missing: norm\.bias.*unexpected: 0\.blocks'),
        (lambda state: state, dict(prefix='back'), r"prefix is 'back\.'"),
        (lambda state: renamed(state, 'model.'), {}, 'missing: .*unexpected: model\\.'),
    ],
    ids=['missing', 'token', 'unexpected', 'all-kinds', 'arch', 'prefix', 'deep-prefix', 'half-prefix', 'wrapper'],
)
def test_misfits_are_named(change: Callable, kwargs: dict, message: str, state: State, tmp_path: Path) -> None:
    torch.save(dict(state_dict=change(state)), tmp_path / 'model.pth')
    message = rf'the checkpoint {tmp_path}/model\.pth.*{message}' if 'prefix' not in message else message
    refused(small_swin(tmp_path / 'model.pth', **kwargs), ValueError, message)


@pytest.mark.parametrize(
    ('write', 'error', 'message'),
    [
        (lambda path: None, FileNotFoundError, r'the checkpoint .*model\.pth does not exist'),
        (lambda path: path.write_bytes(b'PK'), ValueError, r'the checkpoint .*model\.pth cannot be read\. It is trunc'),
        (lambda path: torch.save(dict(epoch=3), path), ValueError, r'the checkpoint .*model\.pth holds no state_dict'),
        (lambda path: torch.save(nn.Linear(2, 2), path), ValueError, r'cannot be read\. It holds torch\.nn\.modules'),
    ],
    ids=['missing', 'cut', 'no-state', 'object'],
)
def test_unreadable_files(write: Callable, error: type[Exception], message: str, tmp_path: Path) -> None:
    write(tmp_path / 'model.pth')
    refused(small_swin(tmp_path / 'model.pth'), error, message)


@pytest.mark.parametrize(
    ('init_cfg', 'message'),
    [
        (dict(type='Pretrained'), r'init_cfg is .*takes checkpoint and optionally prefix'),
        (dict(type='Pretrained', checkpoint='x', map='cpu'), r'init_cfg is .*takes checkpoint and optionally prefix'),
        (dict(type='Pretrained', checkpoint=''), r'init_cfg\.checkpoint is empty, .*--cfg-options.*init_cfg=None'),
        ([dict(type='Pretrained', checkpoint='x'), dict(type='Xavier')], r'init_cfg is .* must be the only entry'),
        (
            dict(type='Pretrained', checkpoint='torchvision://no_such_model'),
            r'the checkpoint torchvision://no_such_model cannot be read\. KeyError',
        ),
    ],
    ids=['no-file', 'unknown-key', 'empty', 'among-others', 'address'],
)
def test_illegal_init_cfg(init_cfg: dict | list, message: str) -> None:
    refused(UMSwin(SMALL[UMSwin], 128, init_cfg=init_cfg), ValueError, message)


# Published files, named in a config


def released(name: str, path: Path) -> tuple[State, dict]:
    """Write a published file; its backbone under our names, and the init_cfg that loads it."""
    torch.save(dict(model=published(name), epoch=199, optimizer=dict(state={})), path)
    return inside(to_ours(published(name))), dict(type='Pretrained', checkpoint=str(path))


@pytest.mark.parametrize(
    ('name', 'unused'),
    [
        ('ummae_swin', ['norm.bias', 'norm.weight', 'secondary_token']),
        ('simmim_swin', ['mask_token', 'norm.bias', 'norm.weight']),
        ('cls_swin', []),
        ('det_swin', []),
    ],
)
def test_published_swin(name: str, unused: list[str], tmp_path: Path, log: list[str]) -> None:
    """Pre-trained with windows of 8 tokens on compact images, fine-tuned with windows of 16 on another size."""
    expected, init_cfg = released(name, tmp_path / 'released.pth')
    model = UMSwin('test', 256, window_size=16, out_indices=ALL, final_norm=False, init_cfg=init_cfg)
    model.init_weights()
    assert same(model.state_dict(), without(expected, *unused))
    maps = model.eval()(torch.rand(1, 3, 96, 160))
    assert [tuple(x.shape[1:]) for x in maps] == [(32, 24, 40), (64, 12, 20), (128, 6, 10), (256, 3, 5)]
    assert log[0].endswith(f', not used: {", ".join(unused)}' if unused else 'released.pth')


def resized(positions: Tensor, side: int, grid: tuple[int, int]) -> Tensor:
    """(1, side * side, C) -> (1, rows * columns, C), bicubically."""
    square = positions.unflatten(1, (side, side)).permute(0, 3, 1, 2)
    return F.interpolate(square, grid, mode='bicubic', align_corners=False).flatten(2).transpose(1, 2)


@pytest.mark.parametrize('size', [(128, 128), (96, 160)])
def test_published_pvt(size: tuple[int, int], tmp_path: Path, log: list[str]) -> None:
    """Its position embedding is resized to the backbone's image size, and the log tells it."""
    expected, init_cfg = released('cls_pvt', tmp_path / 'released.pth')
    model = UMPVT('test', size, final_norm=False, init_cfg=init_cfg)
    model.init_weights()
    state, positions, grid = model.state_dict(), expected.pop('pos_embed'), (size[0] // 4, size[1] // 4)
    found = state.pop('pos_embed')
    torch.testing.assert_close(found, positions if size == (128, 128) else resized(positions, 32, grid))
    assert same(state, expected)
    note = f', resized: pos_embed (1, 1024, 32) to (1, {grid[0] * grid[1]}, 32)'
    assert log[0].endswith('released.pth' if size == (128, 128) else note)


def test_published_vit(tmp_path: Path, log: list[str]) -> None:
    """The position of the class token is not resized with the others."""
    expected, init_cfg = released('ummae_vit', tmp_path / 'released.pth')
    model = UMViT(VIT, 160, final_norm=False, init_cfg=init_cfg)
    model.init_weights()
    state, positions = model.state_dict(), expected.pop('pos_embed')
    found = state.pop('pos_embed')
    torch.testing.assert_close(found[:, 1:], resized(positions[:, 1:], 8, (10, 10)))
    assert torch.equal(found[:, :1], positions[:, :1])
    unused = ['ln1.bias', 'ln1.weight', 'secondary_token']
    assert same(state, without(expected, *unused))
    assert log[0].endswith(f'resized: pos_embed (1, 65, 96) to (1, 101, 96), not used: {", ".join(unused)}')


@pytest.mark.parametrize(
    ('kwargs', 'unused'),
    [
        (dict(img_size=(160, 384), final_norm=False), ['mask_token', 'ln1.weight', 'ln1.bias']),
        (dict(img_size=224), ['mask_token']),
        (dict(img_size=224, mask_token=True), []),
    ],
    ids=['fine-tuning', 'pre-training', 'mask-token'],
)
def test_published_lomar(kwargs: dict, unused: list[str], tmp_path: Path) -> None:
    """Any image size: there is no position embedding to resize."""
    expected, init_cfg = released('lomar_vit', tmp_path / 'released.pth')
    model = LoMaRViT(VIT, init_cfg=init_cfg, **kwargs)
    model.init_weights()
    assert same(model.state_dict(), without(expected, *unused))


@pytest.mark.parametrize('config', ['mask-rcnn_um-swin', 'upernet_um-swin', 'um-swin-test_classification'])
def test_published_file_in_the_config_of_a_host(config: str, tmp_path: Path) -> None:
    """A detector, a segmentor and a classifier start from a published file."""
    expected, init_cfg = released('ummae_swin', tmp_path / 'released.pth')
    cfg = Config.fromfile(next((Path(__file__).parents[2] / 'configs' / 'demo').glob(f'{config}*.py')))
    cfg.model.backbone.init_cfg.update(init_cfg)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        model = MODELS.build(cfg.model)
        model.init_weights()
    state = model.backbone.state_dict()
    assert len(state) > 100 and same(state, {name: expected[name] for name in state})


@pytest.mark.parametrize(
    ('name', 'change', 'message'),
    [
        ('ummae_swin', lambda state: without(state, 'norm.bias'), r'cannot be converted\. .*missing: norm\.bias$'),
        ('ummae_swin', lambda state: {**state, 'extra': torch.ones(1)}, r'cannot be converted\. .*unknown: extra$'),
        (
            'ummae_swin',
            lambda state: {**state, 'blocks.5.attn.qkv.weight': torch.ones(383, 128)},
            r'does not fit UMSwin, nothing was loaded\. other shape: \S+\.qkv\.weight \(383, 128\) instead of \(384,',
        ),
        (
            'ummae_pvt',
            lambda state: state,
            r'does not fit UMSwin, nothing was loaded\. missing: patch_embed\.norm\.bias.*unexpected: pos_embed',
        ),
        (
            'cls_pvt',
            lambda state: {**state, 'pos_embed': state['pos_embed'][:, :1000]},
            r'does not fit UMPVT, nothing was loaded\. pos_embed .*no square',
        ),
        (
            'cls_pvt',
            lambda state: {**state, 'pos_embed': state['pos_embed'][0]},
            r'does not fit UMPVT, nothing was loaded\. other shape: pos_embed \(1024, 32\) instead of \(1, 1024, 32\)$',
        ),
    ],
    ids=['missing', 'unknown', 'shape', 'other-network', 'positions', 'rank'],
)
def test_published_files_that_do_not_fit(name: str, change: Callable, message: str, tmp_path: Path) -> None:
    torch.save(dict(model=change(published(name))), tmp_path / 'released.pth')
    backbone = UMPVT if name == 'cls_pvt' else UMSwin
    init_cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'released.pth'))
    refused(backbone('test', 128, final_norm=False, init_cfg=init_cfg), ValueError, rf'released\.pth {message}')
