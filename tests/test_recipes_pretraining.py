"""The published pre-training recipes (arXiv 2205.10063, 2206.00790), number by number.

These numbers may not change: they are what the configs claim to reproduce.
"""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
import torch
from mmpretrain.models.selfsup import MAE

from mm_ummae.models import UMMAE, LoMaR, UMSimMIM
from mm_ummae.registry import DATASETS

from .leaves import LEAVES, MASKED, build_model, config, full_model, is_demo, leaf, learning_rates, optimizer_groups


def of_type(*types: str) -> list[Path]:
    return [path for path in LEAVES if not is_demo(path) and config(path).model.type in types]


UMMAES, SIMMIMS, LOMARS = (of_type(kind) for kind in MASKED)
MAES = of_type('MAE')  # MMPretrain's
PRETRAINING = [*UMMAES, *SIMMIMS, *LOMARS, *MAES]
SWIN = leaf('ummae_swin-tiny_8xb128x4-amp-coslr-200e_in1k-256px')
LOMAR = leaf('lomar_vit-base-p16_8xb128x4-amp-coslr-400e_in1k-224px')
SWIN_LARGE = leaf('ummae_swin-large_8xb64x8-amp-coslr-800e_in1k-256px')
# Not in the paper: as Swin-L
SWIN_BASE = leaf('ummae_swin-base_8xb64x8-amp-coslr-800e_in1k-256px')
LARGE_RECIPE = (SWIN_BASE, SWIN_LARGE)
SIMMIM_SWIN = leaf('simmim_swin-tiny_8xb64x8-amp-coslr-200e_in1k-256px')
DEMO = leaf('ummae_swin-test_1xb64-coslr-20e_demo-128px')
# Images per GPU and accumulated iterations, on 8 GPUs; the others have 128 x 4
SPLITS = dict.fromkeys((*LARGE_RECIPE, SIMMIM_SWIN), (64, 8))

every_pretraining = pytest.mark.parametrize('path', PRETRAINING, ids=lambda path: path.stem)


@every_pretraining
def test_pretraining_optimizer(path: Path) -> None:
    """AdamW (0.9, 0.95), 1.5e-4 for 256 images, weight decay 0.05, none on 1-D parameters and biases."""
    wrapper = config(path).optim_wrapper
    assert (wrapper.type, wrapper.loss_scale, wrapper.optimizer.type) == ('AmpOptimWrapper', 'dynamic', 'AdamW')
    assert 'clip_grad' not in wrapper
    parameters = dict(full_model(path).named_parameters())
    kinds = set()
    for name, group in optimizer_groups(path).items():
        assert tuple(group['betas']) == (0.9, 0.95)
        assert group['lr'] == pytest.approx(1.5e-4 * 4096 / 256, rel=1e-12)
        one_dimensional = parameters[name].ndim == 1 or name.endswith('bias')
        kinds.add('bias' if name.endswith('bias') else f'{parameters[name].ndim}-D')
        assert group['weight_decay'] == (0 if one_dimensional else 0.05), name
    assert kinds == {'bias', '1-D', '2-D', '3-D', '4-D'}


@every_pretraining
def test_tokens_decay_and_fixed_positions_do_not_train(path: Path) -> None:
    """Tokens are (1, 1, C), so the published rule does not exempt them."""
    expected = {'backbone.mask_token'} if path in [*SIMMIMS, *LOMARS] else {'neck.mask_token'}
    if path.parent.name == 'ummae':
        expected.add('backbone.secondary_token')
    if 'vit' in path.stem:
        expected.add('backbone.cls_token')
    groups = optimizer_groups(path)
    tokens = {name for name in groups if name.endswith('token')}
    assert tokens == expected
    assert all(groups[name]['weight_decay'] == 0.05 for name in tokens)
    assert not any('pos_embed' in name or 'positions' in name for name in groups)


@every_pretraining
def test_pretraining_batch(path: Path) -> None:
    """4096 images for each step of the optimiser, split as published; the last, smaller batch of an epoch is left."""
    cfg = config(path)
    images, accumulated = SPLITS.get(path, (128, 4))
    assert 8 * images * accumulated == 4096
    assert (cfg.train_dataloader.batch_size, cfg.optim_wrapper.accumulative_counts) == (images, accumulated)
    assert cfg.auto_scale_lr.base_batch_size == 8 * images
    assert cfg.train_dataloader.drop_last


@pytest.mark.parametrize('path', [*PRETRAINING, DEMO], ids=lambda path: path.stem)
def test_pretraining_schedule(path: Path) -> None:
    """A line from 0, then half a cosine to 0, by iteration; MMEngine reaches the top one iteration early."""
    cfg = config(path)
    epochs = int(re.search(r'-(\d+)e_', path.stem)[1])
    # That of 300 epochs of LoMaR is not in the paper: as of 400
    warmups = {300: 10, 400: 10, 800: 20, 1600: 40} if path in LOMARS else {20: 2, 200: 10, 400: 40, 800: 40, 1600: 40}
    warmup = warmups[epochs]
    assert (cfg.train_cfg.type, cfg.train_cfg.max_epochs) == ('EpochBasedTrainLoop', epochs)
    length, base = 11, 2.0
    rates = [rate for (rate,) in learning_rates(cfg, length, (base,))]
    start, end = warmup * length, epochs * length
    assert len(rates) == end
    for i, rate in enumerate(rates):
        if i < start:
            expected = base * i / (start - 1)
        else:
            expected = base * 0.5 * (1 + math.cos(math.pi * (i - start) / (end - start)))
        assert rate == pytest.approx(expected, rel=1e-6, abs=1e-8), f'iteration {i}'
    assert rates[0] < 1e-8 and rates[start] == pytest.approx(base) == max(rates)
    assert 0 <= rates[-1] < 1e-3 * base
    assert len(set(rates[:start])) == start, 'constant within an epoch'


@every_pretraining
def test_pretraining_pictures(path: Path) -> None:
    side = int(path.stem.rpartition('-')[2].removesuffix('px'))
    cfg = config(path)
    assert cfg.model.backbone.img_size == side
    if path in UMMAES:
        assert cfg.model.neck.img_size == side
    elif path in MAES:
        assert cfg.model.neck.num_patches == (side // 16) ** 2
    sides = {'vit': {224, 384, 448}, 'pvt': {256}, 'swin': {256}}
    assert side in sides[path.stem.split('_')[1].split('-')[0]]
    dataset = cfg.train_dataloader.dataset
    load, crop, pack = dataset.pipeline
    assert load == dict(type='mm_ummae.LoadCompleteImage')
    assert crop.type == 'mm_ummae.TorchRandomResizedCrop' and crop.scale == side
    assert tuple(crop.crop_ratio_range) == (0.2, 1.0)
    assert (crop.interpolation, crop.flip_prob) == ('bicubic', 0.5)
    assert pack.type == 'PackInputs'
    assert dataset.type == 'mm_ummae.PretrainImages' and dataset.repeats == 1
    assert DATASETS.get('PretrainImages') is not None
    assert full_model(path).data_preprocessor._channel_conversion, 'images are read as BGR'
    assert cfg.model.data_preprocessor.mean == [123.675, 116.28, 103.53]
    assert cfg.model.data_preprocessor.std == [58.395, 57.12, 57.375]


@every_pretraining
def test_pretraining_has_no_moving_average_and_seeds_each_rank(path: Path) -> None:
    cfg = config(path)
    hooks = [hook['type'] for hook in [*cfg.custom_hooks, *cfg.default_hooks.values()]]
    assert not any('EMA' in hook for hook in hooks)
    assert hooks.count('mm_ummae.CheckpointKeysHook') == 1
    assert cfg.randomness.diff_rank_seed, 'all ranks would draw the same masks'
    assert cfg.get('val_cfg') is None and cfg.get('test_cfg') is None


@pytest.mark.parametrize('path', UMMAES, ids=lambda path: path.stem)
def test_published_ummae_models(path: Path) -> None:
    """Sampling, Secondary Masking, target, and the decoder's width, depth and heads."""
    model = full_model(path)
    assert isinstance(model, UMMAE) and model.head.norm_pix
    random = path.parent.name == 'mae'
    assert (model.sampling, model.secondary_ratio) == (('random', 0) if random else ('uniform', 0.25))
    assert (model.backbone.secondary_token is None) == random
    decoder = model.neck
    assert (decoder.embed_dims, len(decoder.blocks)) == (512, 8 if path in LARGE_RECIPE else 2)
    assert {block.attn.num_heads for block in decoder.blocks} == {16}
    assert not getattr(decoder, 'published_positions', False)


@pytest.mark.parametrize('path', SIMMIMS, ids=lambda path: path.stem)
def test_published_simmim_models(path: Path) -> None:
    """Raw pixels, units masked at random, the windows and pooling of whole images."""
    model = full_model(path)
    assert isinstance(model, UMSimMIM) and not model.head.norm_pix
    assert model.sampling == 'random' and model.backbone.secondary_token is None
    if path == SIMMIM_SWIN:
        stages = [stage.window_and_shift(False) for stage in model.backbone.stages]
        assert stages == [(16, 8), (16, 8), (16, 0), (8, 0)]
    else:
        assert [stage.sr_ratio for stage in model.backbone.stages] == [8, 4, 2, 1]


@pytest.mark.parametrize('path', LOMARS, ids=lambda path: path.stem)
def test_published_lomar_models(path: Path) -> None:
    """Windows of 7x7 patches, four at 224 px, six at 384 and nine at 448, 39 of 49 masked; each image sees each."""
    model = full_model(path)
    assert isinstance(model, LoMaR) and model.head.norm_pix and not model.with_neck
    side, patch = config(path).model.backbone.img_size, 8 if 'p8' in path.stem else 16
    assert model.backbone.patch_size == model.head.patch_size == patch
    assert (model.window_size, model.num_windows) == (7, {224: 4, 384: 6, 448: 9}[side])
    mask = model.draw_mask(2, (side, side))
    assert mask.masked.shape == (2 * model.num_windows, 39)
    assert (mask.by_image() // model.num_windows).tolist() == [[i] * model.num_windows for i in range(2)]
    assert model.backbone.positions == 'relative' and model.backbone.pos_embed is None


# Windows and their number of the ablation, and ratios
ABLATION = [(5, 8, 0.8), (7, 4, 0.8), (9, 3, 0.8), (11, 2, 0.8), (14, 1, 0.8), *((7, 4, i / 10) for i in range(3, 10))]


@pytest.mark.parametrize(('window', 'number', 'ratio'), ABLATION)
def test_lomar_ablations_are_options(window: int, number: int, ratio: float) -> None:
    """``--cfg-options model.window_size=5 model.num_windows=8 model.mask_ratio=0.6``."""
    cfg = config(LOMAR)
    cfg.merge_from_dict({'model.window_size': window, 'model.num_windows': number, 'model.mask_ratio': ratio})
    mask = build_model(cfg).draw_mask(2, (224, 224))
    assert mask.masked.shape == (2 * number, int(window**2 * ratio))


@pytest.mark.parametrize('positions', ['relative', 'absolute'])
@pytest.mark.parametrize('asymmetric', [False, True])
def test_lomar_architectures_are_options(positions: str, asymmetric: bool) -> None:
    """The arms of the paper's ablation, from one config."""
    cfg = config(LOMAR)
    options = {'model.backbone.positions': positions, 'model.backbone.learn_positions': False}
    if asymmetric:
        neck = dict(type='mm_ummae.LoMaRDecoder', in_channels=768, positions=positions)
        options |= {'model.backbone.mask_token': False, 'model.neck': neck, 'model.head.in_channels': 512}
    cfg.merge_from_dict(options)
    model = build_model(cfg)
    tables = [name for name, _ in model.named_parameters() if name.endswith('position_table')]
    assert len(tables) == (12 + 8 * asymmetric if positions == 'relative' else 0)
    assert (model.backbone.pos_embed is None) == (positions == 'relative')
    with torch.device('meta'):
        assert model.loss(torch.empty(2, 3, 224, 224))['loss'].shape == ()


@pytest.mark.parametrize('path', MAES, ids=lambda path: path.stem)
def test_mae_models_are_those_of_mmpretrain(path: Path) -> None:
    model = full_model(path)
    assert type(model) is MAE and model.backbone.mask_ratio == 0.75 and model.head.norm_pix
    assert (len(model.neck.decoder_blocks), model.neck.decoder_norm.normalized_shape) == (8, (512,))


@pytest.mark.parametrize('path', [SWIN, SWIN_LARGE], ids=lambda path: path.stem)
def test_published_windows(path: Path) -> None:
    """On 256 px: 8 tokens on the compact image, none shifted where they span it."""
    stages = full_model(path).backbone.stages
    assert [stage.window_and_shift(True) for stage in stages] == [(8, 4), (8, 4), (8, 0), (4, 0)]


@pytest.mark.parametrize('path', [*UMMAES, *SIMMIMS, *LOMARS, DEMO], ids=lambda path: path.stem)
def test_reconstructions_are_shown_at_the_end(path: Path) -> None:
    """And on the way; the demo pays for one sheet."""
    cfg = config(path)
    (hook,) = (hook for hook in cfg.custom_hooks if hook.type == 'mm_ummae.ReconstructionHook')
    assert cfg.train_cfg.max_epochs % hook.interval == 0
    assert path != DEMO or cfg.train_cfg.max_epochs == hook.interval
    assert [backend.type for backend in cfg.vis_backends] == ['LocalVisBackend'], 'TensorBoard is not required'
