"""LoMaR in BEiT: windows as images of their own, tokens of a tokenizer that stays as it was loaded, fine-tuning."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import scipy.interpolate
import torch
from mmengine.config import Config
from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.registry import DefaultScope
from mmengine.runner import Runner
from mmpretrain.models.backbones import BEiTViT
from mmpretrain.models.selfsup.cae import DALLEEncoder
from torch import Tensor, nn

from demo.make_data import make_demo_data
from mm_ummae.models.selfsup.lomar_beit import LoMaRBEiT, LoMaRBEiTViT, resize_bias_table
from mm_ummae.registry import MODELS

from .leaves import CONFIGS, build_model, build_optimizer
from tests.builders import disturbed, seeded

PATCH, WINDOW, WINDOWS, MASKED = 4, 3, 3, 5  # pixels, patches, windows of a step, masked patches of a window
IMAGES, TOKENIZED = (3, 3, 20, 28), (3, 3, 40, 56)  # 5x7 patches; 8 px a token
ARCH = dict(embed_dims=16, num_layers=2, num_heads=2, feedforward_channels=32)
TOKENIZER = dict(type='DALL-E', n_hid=4, n_blk_per_group=1, vocab_size=11)
HEAD = dict(type='BEiTV1Head', embed_dims=16, num_embed=11, loss=dict(type='CrossEntropyLoss'))
LEAF = CONFIGS / 'lomar' / 'lomar-beit_beit-base-p16_8xb256-amp-coslr-300e_in1k-224px.py'
FINE_TUNING = 'mmpretrain::beit/benchmarks/beit-base-p16_8xb128-coslr-100e_in1k.py'


@pytest.fixture(scope='module')
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A file with the weights of a small random one, which uses many of its tokens."""
    torch.manual_seed(1)
    model = small_tokenizer()
    with torch.no_grad():
        model.blocks.output.conv.b -= model(seeded(*TOKENIZED)).mean((0, 2, 3))
    path = tmp_path_factory.mktemp('tokenizer') / 'tokenizer.pth'
    torch.save(model.state_dict(), path)
    return str(path)


def small_tokenizer() -> DALLEEncoder:
    return DALLEEncoder(**{name: value for name, value in TOKENIZER.items() if name != 'type'})


def recipe(checkpoint: str = '', backbone: dict | None = None, **kwargs: Any) -> dict:
    """As in a config, with other values in ``kwargs``."""
    window = dict(type='BEiTPretrainViT', arch=ARCH, img_size=PATCH * WINDOW, patch_size=PATCH)
    return dict(
        type='mm_ummae.LoMaRBEiT',
        backbone={**window, **(backbone or {})},
        target_generator={**TOKENIZER, 'init_cfg': dict(type='Pretrained', checkpoint=checkpoint)},
        **{'head': HEAD, 'window_size': WINDOW, 'num_windows': WINDOWS, 'mask_ratio': 0.6, **kwargs},
    )


def built(cfg: dict) -> nn.Module:
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        return MODELS.build(cfg)


def made(checkpoint: str, **kwargs: Any) -> LoMaRBEiT:
    """A model in which every parameter but the tokenizer's is moved, so that each matters."""
    torch.manual_seed(0)
    model = built(recipe(checkpoint, **kwargs))
    model.init_weights()
    disturbed(model.backbone)
    disturbed(model.head)
    return model


def pictures() -> list[Tensor]:
    return [seeded(*IMAGES), seeded(*TOKENIZED, seed=1)]


def logits_of(model: LoMaRBEiT, inputs: list[Tensor], seed: int = 0) -> Tensor:
    """What the head says of the masked patches."""
    seen = []
    handle = model.head.cls_head.register_forward_hook(lambda module, args, output: seen.append(output))
    torch.manual_seed(seed)
    model.loss(inputs)
    handle.remove()
    return seen[0]


# One step


def test_loss_equals_a_loop_over_windows(tokenizer: str) -> None:
    """Each window is cropped by hand, goes alone through the network, and its tokens come from the whole image."""
    model = made(tokenizer)
    images, second = pictures()
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


def test_each_image_goes_through_each_window(tokenizer: str) -> None:
    """And nothing else: the network gets crops of a window's size, three of each image, at places that all share."""
    model = made(tokenizer)
    seen = []
    model.backbone.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    images, second = pictures()
    model.loss([images, second])
    (crops,) = seen
    side = WINDOW * PATCH
    assert crops.shape == (3 * WINDOWS, 3, side, side)
    places: dict[int, list] = {}
    for crop in crops:
        found = [
            (image, top, left)
            for image in range(3)
            for top in range(0, IMAGES[2] - side + 1, PATCH)
            for left in range(0, IMAGES[3] - side + 1, PATCH)
            if torch.equal(images[image, :, top : top + side, left : left + side], crop)
        ]
        ((image, top, left),) = found
        places.setdefault(image, []).append((top, left))
    assert list(places) == [0, 1, 2] and places[0] == places[1] == places[2]
    assert len({top for top, _ in places[0]}) == len({left for _, left in places[0]}) == WINDOWS


def test_published_pairing_shows_each_image_one_window(tokenizer: str) -> None:
    mask = made(tokenizer, pairing='published').draw_mask(3, IMAGES[2:])
    assert mask.image.tolist() == 3 * [0, 1, 2]
    assert all(len(mask.corner[mask.image == image].unique(dim=0)) == 1 for image in range(3))


def test_hidden_patches_do_not_leak(tokenizer: str) -> None:
    """Only visible patches inside windows say something about the masked ones."""
    model = made(tokenizer, num_windows=1).eval()
    images, second = pictures()
    torch.manual_seed(0)
    mask = model.draw_mask(3, IMAGES[2:])
    hidden = mask.hidden().view(3, 1, 5, 7).repeat_interleave(PATCH, 2).repeat_interleave(PATCH, 3)
    before = logits_of(model, [images, second])
    noise = 100 * seeded(*IMAGES, seed=2)
    assert torch.equal(logits_of(model, [torch.where(hidden, noise, images), second]), before)
    assert torch.equal(logits_of(model, [images, torch.zeros_like(second)]), before)  # of targets nothing
    assert not torch.allclose(logits_of(model, [torch.where(hidden, images, noise), second]), before)


def test_a_step_moves_the_network_and_never_the_tokenizer(tokenizer: str) -> None:
    """With weight decay; and nothing that trains is left without a gradient, as distributed training needs."""
    torch.manual_seed(0)
    model = built(recipe(tokenizer))
    model.init_weights()
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.5)
    model.loss(pictures())['loss'].backward()
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    optimizer.step()
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == trained
    assert {name.split('.')[0] for name in trained} == {'backbone', 'head'}


# The tokenizer's file


def test_tokenizer_is_what_the_file_holds(tokenizer: str) -> None:
    model, state = made(tokenizer), torch.load(tokenizer)
    own = model.target_generator.state_dict()
    assert own.keys() == state.keys() and all(torch.equal(own[name], state[name]) for name in own)


@pytest.mark.parametrize('init_cfg', [dict(type='Pretrained', checkpoint=''), None], ids=['empty', 'none'])
def test_training_without_tokenizer_stops_with_the_option(init_cfg: dict | None) -> None:
    model = built({**recipe(), 'target_generator': {**TOKENIZER, 'init_cfg': init_cfg}})
    with pytest.raises(ValueError, match=r'--cfg-options model\.target_generator\.init_cfg\.checkpoint=PATH'):
        model.init_weights()


def test_tokenizer_that_does_not_fit_is_an_error(tokenizer: str, tmp_path: Path) -> None:
    state = torch.load(tokenizer)
    lacking = {name: value for name, value in state.items() if name != 'blocks.input.b'}
    other = {**state, 'blocks.output.conv.b': torch.zeros(12), 'decoder.w': torch.zeros(1)}
    for content, problem in (
        (lacking, 'missing: blocks.input.b'),
        (other, r'unexpected: decoder.w; other shape: blocks.output.conv.b \(12,\) instead of \(11,\)'),
    ):
        torch.save(content, tmp_path / 'other.pth')
        model = built(recipe(str(tmp_path / 'other.pth')))
        with pytest.raises(ValueError, match=f'does not fit DALLEEncoder, nothing was loaded. {problem}'):
            model.init_weights()
    with pytest.raises(FileNotFoundError, match=r'none\.pth does not exist'):
        built(recipe(str(tmp_path / 'none.pth'))).init_weights()


# Errors


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        (dict(window_size=4), r'backbone\.img_size is \(12, 12\), a grid of \(3, 3\) .* must be \(16, 16\)'),
        (
            dict(backbone=dict(patch_cfg=dict(stride=2, padding=0))),
            r'a grid of \(5, 5\) patches, .* square patches side by side',
        ),
        (dict(mask_ratio=0.1), r'mask_ratio is 0\.1, but it must be in \(0, 1\), and mask at least one'),
        (dict(mask_ratio=1.0), r'mask_ratio is 1\.0, but'),
        (dict(pairing='both'), r"pairing is 'both', but it must be one of all, published"),
        (dict(neck=dict(type='BEiTV2Neck')), r"neck is \{'type': 'BEiTV2Neck'\}, but it must be None"),
    ],
)
def test_parts_that_do_not_fit_are_named(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        built(recipe(**changes))


@pytest.mark.parametrize(
    ('images', 'second', 'message'),
    [
        ((20, 26), (40, 52), 'image width is 26 px, but masking needs a positive multiple of 4 px'),
        ((20, 8), (40, 16), r'window_size is 3, but it must be in 1\.\.2: the image is a grid of 5x2 patches'),
        ((16, 28), (32, 56), r'num_windows is 3, but it must be in 1\.\.2'),
        ((20, 28), (40, 40), r'\(40, 40\) px, .* \(5, 5\) tokens, but the first has \(5, 7\) patches: change second'),
    ],
)
def test_pictures_that_do_not_fit_are_named(tokenizer: str, images: tuple, second: tuple, message: str) -> None:
    model = made(tokenizer)
    with pytest.raises(ValueError, match=message):
        model.loss([torch.zeros(2, 3, *images), torch.zeros(2, 3, *second)])


def test_one_picture_is_not_enough(tokenizer: str) -> None:
    model, (images, second) = made(tokenizer), pictures()
    for inputs in (images, images[:2], [images], [images, second, second]):
        with pytest.raises(ValueError, match='inputs must be two batches of images, one for the network and one for'):
            model.loss(inputs)


def test_head_of_another_vocabulary_is_an_error(tokenizer: str) -> None:
    model = made(tokenizer, head={**HEAD, 'num_embed': 10})
    with pytest.raises(ValueError, match=r'head\.num_embed is 10, but the tokenizer has 11 tokens'):
        model.loss(pictures())


# Fine-tuning


def table(side: int, heads: int = 2) -> Tensor:
    return seeded(side**2 + 3, heads)


def test_tables_stretch_and_neighbours_stay() -> None:
    """13 to 27 differences: the outermost become the outermost, those next to a patch keep their values."""
    old = table(13)
    new = resize_bias_table(old, 27)
    assert new.shape == (27**2 + 3, 2) and torch.equal(new[-3:], old[-3:])
    old, new = old[:-3].view(13, 13, 2), new[:-3].view(27, 27, 2)
    torch.testing.assert_close(new[::26, ::26], old[::12, ::12])
    torch.testing.assert_close(new[12:15, 12:15], old[5:8, 5:8])


def test_a_cubic_function_stays_what_it_is() -> None:
    """Three differences on each side at 1, 1 + q and 1 + q + q^2 = 7, so q = 2."""

    def value(rows: Tensor, columns: Tensor) -> Tensor:
        return rows[:, None] ** 3 - 2 * rows[:, None] * columns**2 + columns + 3

    old, new = table(7), torch.arange(-7.0, 8)
    places = torch.tensor([-7.0, -3, -1, 0, 1, 3, 7])
    old[:-3, 0] = value(places, places).flatten()
    torch.testing.assert_close(resize_bias_table(old, 15)[:-3, 0].view(15, 15), value(new, new), rtol=1e-5, atol=1e-3)


def test_tables_are_cut_and_kept() -> None:
    old = table(9)
    assert torch.equal(resize_bias_table(old, 9), old)
    cut = resize_bias_table(old, 5)
    torch.testing.assert_close(cut[:-3].view(5, 5, 2), old[:-3].view(9, 9, 2)[2:7, 2:7])
    assert torch.equal(cut[-3:], old[-3:])


def test_table_of_no_square_is_an_error() -> None:
    with pytest.raises(ValueError, match=r'relative_position_bias_table has 48 rows, but .* S \* S \+ 3 with S odd'):
        resize_bias_table(table(9)[:48], 5)


class Interp2d:
    """What SciPy's notes on ``interp2d`` put in its place."""

    def __init__(self, x: list, y: list, z: Any, kind: str) -> None:
        assert kind == 'cubic'
        self.spline = scipy.interpolate.RectBivariateSpline(x, y, z.T)

    def __call__(self, x: Any, y: Any) -> Any:
        return self.spline(x, y).T


def pretrained(tokenizer: str, tmp_path: Path, **kwargs: Any) -> tuple[LoMaRBEiT, str]:
    model = made(tokenizer, **kwargs)
    path = tmp_path / 'epoch_300.pth'
    torch.save(dict(state_dict=model.state_dict(), meta={}), path)
    return model, str(path)


def fine_tuning(path: str, **kwargs: Any) -> dict:
    """Of 8x8 patches; the rest as MMPretrain's config of BEiT's fine-tuning has it."""
    init_cfg = dict(type='Pretrained', checkpoint=path, prefix='backbone.')
    return dict(arch=ARCH, img_size=32, patch_size=PATCH, init_cfg=init_cfg, **kwargs)


def test_fine_tuning_starts_as_in_mmpretrain(tokenizer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where MMPretrain's own class could still call SciPy's function it has the same parameters and output."""
    # Windows of 5x5 patches: 9 differences become 15, which MMPretrain's can still reach
    _, path = pretrained(tokenizer, tmp_path, window_size=5, num_windows=1, backbone=dict(img_size=20))
    ours = LoMaRBEiTViT(**fine_tuning(path))
    ours.init_weights()
    monkeypatch.setattr(scipy.interpolate, 'interp2d', Interp2d)
    theirs = BEiTViT(**fine_tuning(path))
    theirs.init_weights()
    expected = theirs.state_dict()
    assert ours.state_dict().keys() == expected.keys()
    for name, value in ours.state_dict().items():
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-4, msg=name)
    images = seeded(2, 3, 32, 32)
    torch.testing.assert_close(ours(images), theirs(images), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize('shared', [False, True])
def test_backbone_on_its_window_is_the_pretrained_one(tokenizer: str, tmp_path: Path, shared: bool) -> None:
    """One table in each layer, or the one that all share."""
    model, path = pretrained(tokenizer, tmp_path)
    cfg = fine_tuning(path, use_rel_pos_bias=not shared, use_shared_rel_pos_bias=shared, final_norm=True)
    backbone = LoMaRBEiTViT(**{**cfg, 'img_size': PATCH * WINDOW, 'out_type': 'raw'})
    backbone.init_weights()
    images = seeded(2, 3, 12, 12)
    nothing = torch.zeros(2, WINDOW, WINDOW)
    torch.testing.assert_close(backbone(images)[0], model.backbone(images, nothing)[0])


def test_fine_tuning_checkpoint_that_does_not_fit_is_an_error(tokenizer: str, tmp_path: Path) -> None:
    _, path = pretrained(tokenizer, tmp_path)
    for changes, problem in (
        (dict(arch={**ARCH, 'num_layers': 1}), 'unexpected: layers.1'),
        (dict(arch={**ARCH, 'num_heads': 4}), r'other shape: .*relative_position_bias_table \(\d+, 2\) instead of'),
        (dict(use_rel_pos_bias=False), 'unexpected: rel_pos_bias.relative_position_bias_table'),
    ):
        backbone = LoMaRBEiTViT(**{**fine_tuning(path), **changes})
        with pytest.raises(ValueError, match=f'does not fit LoMaRBEiTViT, nothing was loaded. .*{problem}'):
            backbone.init_weights()


def test_fine_tuning_with_the_config_of_mmpretrain(tokenizer: str, tmp_path: Path) -> None:
    """Its own, with another backbone and the checkpoint; here of a small network with the windows of full size."""
    sizes = dict(window_size=7, backbone=dict(img_size=7 * 16, patch_size=16))
    _, path = pretrained(tokenizer, tmp_path, **sizes)
    child = tmp_path / 'fine-tuning.py'
    child.write_text(f'_base_ = [{FINE_TUNING!r}]\n')
    cfg = Config.fromfile(child)
    options = {'model.backbone.type': 'mm_ummae.LoMaRBEiTViT', 'model.backbone.init_cfg.checkpoint': path}
    cfg.merge_from_dict({**options, 'model.head.in_channels': 16})
    cfg.model.backbone.arch = ARCH
    model = build_model(cfg, 'cpu')
    model.init_weights()
    assert model.backbone.layers[1].attn.relative_position_bias_table.shape == (27**2 + 3, 2)
    assert model.eval()(seeded(1, 3, 224, 224)).shape == (1, 1000)


# The config


def leaf_config() -> Config:
    cfg = Config.fromfile(LEAF)
    cfg.model.target_generator.device = 'meta'  # it asks for the CPU by itself
    return cfg


def test_config_builds_at_full_size() -> None:
    """BEiT-B on windows of 112 px; a batch of 2048 images for 300 epochs; nothing is fetched from anywhere."""
    cfg = leaf_config()
    model = build_model(cfg)
    assert isinstance(model, LoMaRBEiT) and model.pairing == 'all'
    assert (model.window_size, model.num_windows, model.mask_ratio) == (7, 4, 0.8)
    assert model.backbone.rel_pos_bias.relative_position_bias_table.shape == (13**2 + 3, 12)
    assert 8 * cfg.train_dataloader.batch_size == cfg.auto_scale_lr.base_batch_size == 2048
    assert cfg.train_cfg.max_epochs == cfg.param_scheduler[-1].end == 300
    assert '://' not in cfg.pretty_text
    mask = model.draw_mask(2, (224, 224), device='meta')
    assert (len(mask.image), mask.masked.shape[1]) == (8, 39)
    with torch.device('meta'), pytest.raises(ValueError, match=r'target_generator\.init_cfg\.checkpoint=PATH'):
        model.init_weights()


def test_config_steps_through_its_own_pipeline(tokenizer: str, tmp_path: Path) -> None:
    """On generated images, with a small network and tokenizer."""
    cfg = Config.fromfile(LEAF)
    make_demo_data(
        tmp_path / 'demo',
        image_size=64,
        num_pretrain=4,
        num_labelled_train=10,
        num_labelled_val=10,
        **dict.fromkeys(('num_coco_train', 'num_coco_val', 'num_ade_train', 'num_ade_val'), 2),
    )
    cfg.train_dataloader.update(batch_size=2, num_workers=0, persistent_workers=False, pin_memory=False)
    cfg.train_dataloader.dataset.update(data_root=f'{tmp_path}/demo/imagenet/', data_prefix='unlabelled')
    cfg.model.backbone.arch = ARCH
    cfg.model.head.update(embed_dims=16, num_embed=11)
    cfg.model.target_generator.update({name: value for name, value in TOKENIZER.items() if name != 'type'})
    cfg.merge_from_dict({'model.target_generator.init_cfg.checkpoint': tokenizer})
    torch.manual_seed(0)
    model = build_model(cfg, 'cpu')
    model.init_weights()
    before = {name: value.clone() for name, value in model.named_parameters()}
    wrapper = build_optimizer(cfg, model)
    for group in wrapper.optimizer.param_groups:
        group['lr'] = 0.01
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        batch = next(iter(Runner.build_dataloader(cfg.train_dataloader, seed=0)))
        assert [tuple(image.shape) for image in batch['inputs']] == [(2, 3, 224, 224), (2, 3, 112, 112)]
        losses = model.train_step(batch, wrapper)
    assert losses['loss'].isfinite()
    moved = {name for name, value in model.named_parameters() if not torch.equal(value, before[name])}
    assert moved == {name for name in before if not name.startswith('target_generator.')}


def test_config_is_registered_for_a_run() -> None:
    """A runner finds the class by its name alone."""
    assert MMENGINE_MODELS.get('mm_ummae.LoMaRBEiT') is LoMaRBEiT
