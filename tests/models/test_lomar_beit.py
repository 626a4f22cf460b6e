"""LoMaR in BEiT: windows as images of their own, tokens of a frozen tokenizer, and fine-tuning."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import scipy.interpolate
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmpretrain.models.backbones import BEiTViT
from mmpretrain.models.selfsup.cae import DALLEEncoder
from torch import Tensor, nn

from mm_ummae.models import LoMaRBEiT, LoMaRBEiTViT
from mm_ummae.models.backbones.lomar_beit_vit import resize_bias_table
from mm_ummae.registry import MODELS
from tests.builders import VIT, disturbed, pixels, seeded
from tests.golden import same

PATCH, WINDOW, WINDOWS, MASKED = 4, 3, 3, 5  # pixels, patches, windows of a step, masked patches of a window
IMAGES, TOKENIZED = (3, 3, 20, 28), (3, 3, 40, 56)  # 5x7 patches; 8 px a token
TOKENIZER = dict(n_hid=4, n_blk_per_group=1, vocab_size=11)
HEAD = dict(type='BEiTV1Head', embed_dims=16, num_embed=11, loss=dict(type='CrossEntropyLoss'))


@pytest.fixture(scope='module')
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A checkpoint of a small random tokenizer that uses many of its tokens."""
    torch.manual_seed(1)
    model = DALLEEncoder(**TOKENIZER)
    with torch.no_grad():
        model.blocks.output.conv.b -= model(seeded(*TOKENIZED)).mean((0, 2, 3))
    path = tmp_path_factory.mktemp('tokenizer') / 'tokenizer.pth'
    torch.save(model.state_dict(), path)
    return str(path)


def build(cfg: dict) -> nn.Module:
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        return MODELS.build(cfg)


def built(checkpoint: str = '', backbone: dict | None = None, **kwargs: Any) -> LoMaRBEiT:
    """A model built as from a config."""
    window = dict(type='BEiTPretrainViT', arch=VIT, img_size=PATCH * WINDOW, patch_size=PATCH)
    cfg = dict(
        type='mm_ummae.LoMaRBEiT',
        backbone={**window, **(backbone or {})},
        head=HEAD,
        target_generator=dict(type='DALL-E', init_cfg=dict(type='Pretrained', checkpoint=checkpoint), **TOKENIZER),
        window_size=WINDOW,
        num_windows=WINDOWS,
        mask_ratio=0.6,
    )
    return build({**cfg, **kwargs})


def made(checkpoint: str, **kwargs: Any) -> LoMaRBEiT:
    """A model with disturbed weights, except those of the tokenizer."""
    torch.manual_seed(0)
    model = built(checkpoint, **kwargs)
    model.init_weights()
    disturbed(model.backbone)
    disturbed(model.head)
    return model


def two_images() -> list[Tensor]:
    """For the network and for the tokenizer."""
    return [seeded(*IMAGES), seeded(*TOKENIZED, seed=1)]


# One step


def test_loss_equals_a_loop_over_windows(tokenizer: str) -> None:
    """Each window is cropped by hand and encoded alone; its tokens come from the whole second image."""
    model, (images, second) = made(tokenizer, pairing='published'), two_images()
    assert model.sampler == (WINDOW, WINDOWS, 0.6, 'published')
    torch.manual_seed(3)
    loss = model.loss([images, second])['loss']
    torch.manual_seed(3)
    mask = model.draw_mask(3, IMAGES[2:])
    total, tokens_seen = [], set()
    for image, (row, column), hidden in zip(mask.image, mask.corner.tolist(), mask.masked.tolist(), strict=True):
        top, left, side = row * PATCH, column * PATCH, WINDOW * PATCH
        crop = images[image, :, top : top + side, left : left + side]
        masked = torch.tensor([place in hidden for place in range(WINDOW**2)])
        features = model.backbone(crop[None], masked.view(1, WINDOW, WINDOW))[0][0, 1:]  # without class token
        tokens = model.target_generator(second[image, None])[0].argmax(0)
        for place in hidden:
            token = int(tokens[row + place // WINDOW, column + place % WINDOW])
            tokens_seen.add(token)
            total.append(-model.head.cls_head(features[place]).log_softmax(0)[token])
    assert len(total) == 3 * WINDOWS * MASKED and len(tokens_seen) > 5
    torch.testing.assert_close(loss, torch.stack(total).mean())


def test_hidden_patches_do_not_leak(tokenizer: str) -> None:
    """Only visible patches inside windows have an effect on what the head gets."""
    model, images = made(tokenizer, num_windows=1).eval(), seeded(*IMAGES)
    mask = model.draw_mask(3, IMAGES[2:])
    hidden, noise = pixels(mask.hidden(), IMAGES[2], PATCH), 100 * seeded(*IMAGES, seed=2)
    features = model._encode(images, mask)
    assert torch.equal(model._encode(torch.where(hidden, noise, images), mask), features)
    assert not torch.allclose(model._encode(torch.where(hidden, images, noise), mask), features)


def test_a_step_trains_all_but_the_tokenizer(tokenizer: str) -> None:
    """That of the file stays even with weight decay; all else has a gradient, as distributed training needs."""
    torch.manual_seed(0)
    model = built(tokenizer).train()
    assert model.sampler == (WINDOW, WINDOWS, 0.6, 'all')
    model.init_weights()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.5)
    model.loss(two_images())['loss'].backward()
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    optimizer.step()
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == trained and {name.split('.')[0] for name in trained} == {'backbone', 'head'}
    assert same(model.target_generator.state_dict(), torch.load(tokenizer))


# Errors


@pytest.mark.parametrize('init_cfg', [dict(type='Pretrained', checkpoint=''), None], ids=['empty', 'none'])
def test_missing_tokenizer_is_named_with_the_option(init_cfg: dict | None) -> None:
    model = built(target_generator=dict(type='DALL-E', init_cfg=init_cfg, **TOKENIZER))
    with pytest.raises(ValueError, match=r'--cfg-options model\.target_generator\.init_cfg\.checkpoint=PATH'):
        model.init_weights()


def test_tokenizer_that_does_not_fit_is_refused(tokenizer: str, tmp_path: Path) -> None:
    state, path = torch.load(tokenizer), tmp_path / 'other.pth'
    lacking = {name: value for name, value in state.items() if name != 'blocks.input.b'}
    other = {**state, 'blocks.output.conv.b': torch.zeros(12), 'decoder.w': torch.zeros(1)}
    for content, problem in (
        (lacking, 'missing: blocks.input.b'),
        (other, r'unexpected: decoder.w; other shape: blocks.output.conv.b \(12,\) instead of \(11,\)'),
    ):
        torch.save(content, path)
        with pytest.raises(ValueError, match=f'does not fit DALLEEncoder, nothing was loaded. {problem}'):
            built(str(path)).init_weights()
    with pytest.raises(FileNotFoundError, match=r'none\.pth does not exist'):
        built(str(tmp_path / 'none.pth')).init_weights()


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        (dict(window_size=4), r'backbone\.img_size is \(12, 12\), a grid of \(3, 3\) .* must be \(16, 16\)'),
        (dict(backbone=dict(patch_cfg=dict(stride=2, padding=0))), r'a grid of \(5, 5\) patches, .* side by side'),
        (dict(mask_ratio=0.1), r'mask_ratio is 0\.1, but it must be in \(0, 1\), and mask at least one'),
        (dict(pairing='both'), r"pairing is 'both', but it must be one of all, published"),
        (
            dict(head=dict(HEAD, embed_dims=24)),
            r'head\.embed_dims is 24, .* 16 channels: set model\.head\.embed_dims=16',
        ),
        (dict(neck=dict(type='BEiTV2Neck')), r"neck is \{'type': 'BEiTV2Neck'\}, but it must be None"),
    ],
    ids=str,
)
def test_illegal_arguments(kwargs: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        built(**kwargs)


@pytest.mark.parametrize(
    ('size', 'second_size', 'kwargs', 'message'),
    [
        ((20, 26), (40, 52), {}, 'image width is 26 px, but masking needs a positive multiple of 4 px'),
        ((20, 8), (40, 16), {}, r'window_size is 3, but it must be in 1\.\.2: the image is a grid of 5x2 patches'),
        ((16, 28), (32, 56), {}, r'num_windows is 3, but it must be in 1\.\.2'),
        ((20, 28), (40, 40), {}, r'\(40, 40\) px, .* \(5, 5\) tokens, but the first has \(5, 7\) patches: change sec'),
        ((20, 28), (40, 56), dict(head={**HEAD, 'num_embed': 10}), r'num_embed is 10, but the tokenizer has 11 tokens'),
    ],
)
def test_images_and_heads_that_do_not_fit(
    tokenizer: str, size: tuple[int, int], second_size: tuple[int, int], kwargs: dict, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        made(tokenizer, **kwargs).loss([torch.zeros(2, 3, *size), torch.zeros(2, 3, *second_size)])


def test_two_images_are_needed(tokenizer: str) -> None:
    model, (images, second) = made(tokenizer), two_images()
    for inputs in (images, images[:2], [images], [images, second, second]):
        with pytest.raises(ValueError, match='inputs must be two batches of images, one for the network and one for'):
            model.loss(inputs)


# Tables of relative positions


def bias_table(side: int) -> Tensor:
    return seeded(side**2 + 3, 2)


@pytest.mark.parametrize(('side', 'places', 'order'), [(7, (1, 3, 7), 3), (5, (1, 7), 3), (3, (1,), 2)])
def test_a_polynomial_is_interpolated_exactly(side: int, places: tuple[int, ...], order: int) -> None:
    """Differences at 1, 1 + q and 1 + q + q^2: the last is the largest new one, 7, so q is 2 for three, 6 for two."""

    def value(rows: Tensor, columns: Tensor) -> Tensor:
        return rows[:, None] ** order - 2 * rows[:, None] * columns**2 + columns + 3

    old, new = bias_table(side), torch.arange(-7.0, 8)
    known = torch.tensor([*(-place for place in reversed(places)), 0, *places])
    old[:-3, 0] = value(known, known).flatten()
    resized = resize_bias_table(old, 15)
    torch.testing.assert_close(resized[:-3, 0].view(15, 15), value(new, new), rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize('side', [5, 9, 27])
def test_a_table_is_cut_kept_or_stretched(side: int) -> None:
    """Differences next to a patch keep their values, the outermost become the outermost, the class token's stay."""
    old = bias_table(9)
    new = resize_bias_table(old, side)
    assert new.shape == (side**2 + 3, 2) and torch.equal(new[-3:], old[-3:])
    before, after, middle = old[:-3].view(9, 9, 2), new[:-3].view(side, side, 2), side // 2
    torch.testing.assert_close(after[middle - 1 : middle + 2, middle - 1 : middle + 2], before[3:6, 3:6])
    kept = before[2:7, 2:7] if side == 5 else before
    torch.testing.assert_close(after[:: side - 1, :: side - 1], kept[:: len(kept) - 1, :: len(kept) - 1])
    if side <= 9:
        torch.testing.assert_close(after, kept)


def test_a_table_of_no_square_is_refused() -> None:
    with pytest.raises(ValueError, match=r'relative_position_bias_table has 48 rows, but .* S \* S \+ 3 with S odd'):
        resize_bias_table(bias_table(9)[:48], 5)


# Fine-tuning


def interp2d(x: list, y: list, z: Any, kind: str) -> Callable[[Any, Any], Any]:
    """SciPy's documented replacement for its own ``interp2d``."""
    assert kind == 'cubic'
    spline = scipy.interpolate.RectBivariateSpline(x, y, z.T)
    return lambda x, y: spline(x, y).T


def pretrained(tokenizer: str, tmp_path: Path, **kwargs: Any) -> tuple[LoMaRBEiT, str]:
    model, path = made(tokenizer, **kwargs), tmp_path / 'epoch_300.pth'
    torch.save(dict(state_dict=model.state_dict(), meta={}), path)
    return model, str(path)


def fine_tuning(path: str, **kwargs: Any) -> dict:
    """8x8 patches; the rest as in MMPretrain's config for fine-tuning BEiT."""
    init_cfg = dict(type='Pretrained', checkpoint=path, prefix='backbone.')
    return dict(arch=VIT, img_size=32, patch_size=PATCH, init_cfg=init_cfg) | kwargs


def test_fine_tuning_starts_as_in_mmpretrain(tokenizer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the parameters of MMPretrain's class, if that can call the function SciPy removed."""
    # From windows of 5x5 patches: 9 differences become 15, which MMPretrain's search still reaches
    _, path = pretrained(tokenizer, tmp_path, window_size=5, num_windows=1, backbone=dict(img_size=20))
    ours = LoMaRBEiTViT(**fine_tuning(path))
    ours.init_weights()
    monkeypatch.setattr(scipy.interpolate, 'interp2d', interp2d)
    theirs = BEiTViT(**fine_tuning(path))
    theirs.init_weights()
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('shared', [False, True])
def test_backbone_on_its_window_is_the_pretrained_one(tokenizer: str, tmp_path: Path, shared: bool) -> None:
    """With a table in each layer, or with the one that all layers share."""
    model, path = pretrained(tokenizer, tmp_path)
    tables = dict(use_rel_pos_bias=not shared, use_shared_rel_pos_bias=shared)
    backbone = LoMaRBEiTViT(**fine_tuning(path, img_size=PATCH * WINDOW, out_type='raw', final_norm=True, **tables))
    backbone.init_weights()
    images, nothing = seeded(2, 3, 12, 12), torch.zeros(2, WINDOW, WINDOW)
    torch.testing.assert_close(backbone(images)[0], model.backbone(images, nothing)[0])


@pytest.mark.parametrize(
    ('changes', 'problem'),
    [
        (dict(arch={**VIT, 'num_heads': 4}), r'other shape: .*relative_position_bias_table \(\d+, 2\) instead of'),
        (dict(use_rel_pos_bias=False), 'unexpected: rel_pos_bias.relative_position_bias_table'),
    ],
    ids=['heads', 'no tables'],
)
def test_fine_tuning_checkpoint_that_does_not_fit(changes: dict, problem: str, tokenizer: str, tmp_path: Path) -> None:
    _, path = pretrained(tokenizer, tmp_path)
    with pytest.raises(ValueError, match=f'does not fit LoMaRBEiTViT, nothing was loaded. .*{problem}'):
        LoMaRBEiTViT(**fine_tuning(path, **changes)).init_weights()


@pytest.mark.integration
def test_fine_tuning_with_the_config_of_mmpretrain(tokenizer: str, tmp_path: Path) -> None:
    """Its own config, with another backbone and the checkpoint; here a small network with full-size windows."""
    _, path = pretrained(tokenizer, tmp_path, window_size=7, backbone=dict(img_size=7 * 16, patch_size=16))
    base = 'mmpretrain::beit/benchmarks/beit-base-p16_8xb128-coslr-100e_in1k.py'
    cfg = Config.fromstring(f'_base_ = [{base!r}]\n', '.py').model
    cfg.backbone.update(type='mm_ummae.LoMaRBEiTViT', arch=VIT)
    cfg.backbone.init_cfg.checkpoint = path
    cfg.head.in_channels = 16
    model = build(cfg).eval()
    model.init_weights()
    assert model.backbone.layers[1].attn.relative_position_bias_table.shape == (27**2 + 3, 2)
    assert model(seeded(1, 3, 224, 224)).shape == (1, 1000)
