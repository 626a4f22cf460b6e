"""ReconstructionHook in MMEngine's runner: content and times of the sheets, and no effect on training."""

from __future__ import annotations

from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.dist import utils as dist_utils
from mmengine.hooks import CheckpointHook, Hook
from mmengine.model import MMDistributedDataParallel
from mmengine.runner import EpochBasedTrainLoop, Runner
from mmengine.runner.priority import get_priority
from PIL import Image
from pytest import MonkeyPatch
from torch import nn

from mm_ummae.apis import reconstruct
from mm_ummae.datasets import PretrainImages
from mm_ummae.engine import ReconstructionHook
from mm_ummae.registry import MODELS
from mm_ummae.visualization import reconstruction_sheet
from tests.builders import MEAN, STD, VIT, made_ummae

NUMBERS = count()
SIDE = 64
PREPROCESSOR = dict(type='mmpretrain.SelfSupDataPreprocessor', mean=MEAN, std=STD, to_rgb=True)
PIPELINE = [
    dict(type='LoadImageFromFile', imdecode_backend='pillow'),
    dict(type='RandomResizedCrop', scale=SIDE, backend='pillow'),
    dict(type='PackInputs'),
]


def build(name: str = 'UM-MAE') -> nn.Module:
    """UM-MAE with random numbers in training (drop path) and a part that stays in eval mode (frozen), or LoMaR."""
    if name == 'UM-MAE':
        backbone = dict(img_size=SIDE, drop_path_rate=0.3, frozen_stages=1)
        return made_ummae(backbone=backbone, neck=dict(img_size=SIDE), data_preprocessor=PREPROCESSOR)
    backbone = dict(type='mm_ummae.LoMaRViT', arch=VIT, img_size=SIDE, patch_size=8, mask_token=True)
    head = dict(type='mm_ummae.LoMaRHead', in_channels=VIT['embed_dims'], patch_size=8)
    lomar = dict(type='mm_ummae.LoMaR', data_preprocessor=PREPROCESSOR, window_size=3, num_windows=2)
    return MODELS.build(dict(**lomar, backbone=backbone, head=head))


@pytest.fixture(scope='module')
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four images of 96x80 px with large areas of one colour."""
    folder = tmp_path_factory.mktemp('images')
    generator = np.random.default_rng(0)
    for i in range(4):
        pixels = generator.integers(256, size=(5, 6, 3), dtype=np.uint8).repeat(16, 0).repeat(16, 1)
        Image.fromarray(pixels).save(folder / f'{i}.png')
    return folder


def train(work_dir: Path, images: Path, hooks: list[Hook], epochs: int = 1, model: nn.Module | None = None) -> Runner:
    """A run of two iterations per epoch and two images per iteration."""
    dataset = dict(type='mm_ummae.PretrainImages', data_root=str(images), max_bad_share=0.5, pipeline=PIPELINE)
    loader = dict(
        batch_size=2,
        num_workers=0,
        sampler=dict(type='DefaultSampler', shuffle=True),
        collate_fn=dict(type='default_collate'),
        dataset=dataset,
    )
    run = Runner(
        model or build(),
        str(work_dir / f'{next(NUMBERS)}'),  # MMEngine names the folders inside by the second in which a run starts
        train_dataloader=loader,
        train_cfg=dict(by_epoch=True, max_epochs=epochs),
        optim_wrapper=dict(optimizer=dict(type='AdamW', lr=1e-3)),
        custom_hooks=hooks,
        visualizer=dict(type='UniversalVisualizer', vis_backends=[dict(type='LocalVisBackend')]),
        randomness=dict(seed=0),
        default_scope='mmpretrain',
        experiment_name=f'reconstruction_hook_{next(NUMBERS)}',
        log_level='WARNING',
    )
    run.train()
    return run


def part_of_runner(dataset: Any = None, **parts: Any) -> SimpleNamespace:
    """What the hook needs of a runner."""
    loop, loader = EpochBasedTrainLoop.__new__(EpochBasedTrainLoop), SimpleNamespace(dataset=dataset)
    return SimpleNamespace(**{'model': build(), 'epoch': 0, 'train_loop': loop, 'train_dataloader': loader, **parts})


def drawn(run: Runner, name: str = 'reconstruction') -> dict[int, np.ndarray]:
    """From the step to the sheet, read from the files of LocalVisBackend."""
    files = Path(run.work_dir).rglob(f'vis_image/{name}_*.png')
    return {int(file.stem.removeprefix(f'{name}_')): np.asarray(Image.open(file)) for file in files}


def expected_sheet(model: nn.Module, files: list, **kwargs: Any) -> np.ndarray:
    return reconstruction_sheet(reconstruct(model.eval(), files, **kwargs), 'epoch 1')


def test_a_sheet_per_interval(tmp_path: Path, images: Path) -> None:
    """The masks stay the same, the predictions do not."""
    hook = dict(type='mm_ummae.ReconstructionHook', images=str(images), interval=2, num_images=3)
    sheets = drawn(train(tmp_path, images, [hook], epochs=5))
    assert sorted(sheets) == [2, 4]
    columns = (np.array_split(sheets[epoch][40:], 5, axis=1) for epoch in (2, 4))
    same = [np.array_equal(*pair) for pair in zip(*columns, strict=True)]
    assert same == [True, True, True, False, False]


@pytest.mark.parametrize('name', ['UM-MAE', 'LoMaR'])
def test_the_sheet_shows_the_reconstructions_of_the_model(name: str, tmp_path: Path, images: Path) -> None:
    """In eval mode, with the weights after the epoch and the masks of the seed."""
    files = [images / '2.png', str(images / '0.png')]
    hook = ReconstructionHook(images=files, interval=1, seed=5, name='seen')
    run = train(tmp_path, images, [hook], model=build(name))
    expected = expected_sheet(run.model, files, seed=5)
    assert np.array_equal(drawn(run, 'seen')[1], expected)
    assert not np.array_equal(expected_sheet(run.model, files, seed=6), expected)


def test_default_images_and_another_size(tmp_path: Path, images: Path) -> None:
    """The first readable images of the training set, prepared as in a test pipeline and not as in training."""
    for i in range(4):
        (tmp_path / f'{i}.png').write_bytes((images / f'{i}.png').read_bytes() if i != 1 else b'no image')
    run = train(tmp_path, tmp_path, [ReconstructionHook(interval=1, num_images=2, image_size=96)])
    expected = expected_sheet(run.model, [tmp_path / '0.png', tmp_path / '2.png'], image_size=96)
    assert np.array_equal(drawn(run)[1], expected)


class Watched(ReconstructionHook):
    """Drawing changes neither training modes nor random states."""

    def after_train_epoch(self, runner: Runner) -> None:
        def states() -> tuple:
            modes = {name: module.training for name, module in runner.model.named_modules()}
            return modes, torch.get_rng_state().tolist(), np.random.get_state()[1].tolist()

        before = states()
        super().after_train_epoch(runner)
        assert before == states()
        assert before[0]['neck'] and before[0]['norm'] and not before[0]['backbone.stages.0']


@pytest.mark.integration
def test_training_continues_as_without_the_hook(tmp_path: Path, images: Path) -> None:
    """Bit by bit, with drop path, random crops, drawn masks and BatchNorm."""
    states = []
    for hooks in ([], [Watched(images=images, interval=1, num_images=2)]):
        model = build()
        model.norm = nn.BatchNorm2d(3)  # keeps running statistics
        model.backbone.register_forward_pre_hook(lambda _, inputs, norm=model.norm: (norm(inputs[0]), *inputs[1:]))
        run = train(tmp_path, images, hooks, 2, model)
        assert len(drawn(run)) == 2 * len(hooks)
        states.append(run.model.state_dict())
    assert int(states[0]['norm.num_batches_tracked']) == 4
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


def test_the_mode_is_restored_after_an_error(images: Path, monkeypatch: MonkeyPatch) -> None:
    hook, run = ReconstructionHook(images=images, interval=1), part_of_runner()
    hook.before_train(run)
    run.model.train().neck.eval()
    modes = [module.training for module in run.model.modules()]
    monkeypatch.setattr(run.model, 'predict', None)  # fails
    with pytest.raises(TypeError):
        hook.after_train_epoch(run)
    assert [module.training for module in run.model.modules()] == modes


def test_drawing_in_mixed_precision(images: Path) -> None:
    hook, seen = ReconstructionHook(images=images, interval=1), []
    run = part_of_runner(visualizer=SimpleNamespace(add_image=lambda name, image, step: seen.append(image)))
    hook.before_train(run)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        hook.after_train_epoch(run)
    difference = np.abs(seen[0].astype(int) - expected_sheet(run.model, sorted(images.iterdir())))
    assert difference.max() > 0 and difference.mean() < 2


def test_a_wrapped_model(tmp_path: Path, images: Path) -> None:
    store = torch.distributed.FileStore(str(tmp_path / 'store'), 1)
    torch.distributed.init_process_group('gloo', store=store, rank=0, world_size=1)
    model = build()
    try:
        hook = ReconstructionHook(images=images, interval=1)
        run = train(tmp_path, images, [hook], model=MMDistributedDataParallel(model))
    finally:
        torch.distributed.destroy_process_group()
    assert np.array_equal(drawn(run)[1], expected_sheet(model, sorted(images.iterdir())))


def test_only_the_main_process_reads_and_draws(tmp_path: Path, monkeypatch: MonkeyPatch) -> None:
    """The other processes do not need the images, but mistakes in the settings stop them as well."""
    monkeypatch.setattr(dist_utils, 'get_rank', lambda group=None: 1)
    run, hook = part_of_runner(visualizer=None), ReconstructionHook(images=tmp_path / 'nowhere.png', interval=1)
    hook.before_train(run)
    hook.after_train_epoch(run)
    assert hook.batch == {}
    with pytest.raises(ValueError, match='image height is 100 px'):
        ReconstructionHook(image_size=100).before_train(run)


@pytest.mark.parametrize(
    ('hook', 'parts', 'message'),
    [
        (dict(images=['bad.png', 'nowhere']), {}, 'nowhere is neither an image nor a folder with images'),
        (dict(images='bad.png'), {}, r'the image .*bad\.png cannot be read'),
        (dict(image_size=48), {}, r'image height is 48 px, but .* multiple of 32 px'),
        ({}, dict(train_loop=object()), 'counts epochs, but training runs in object: set train_cfg.by_epoch=True'),
        ({}, dict(model=nn.Linear(1, 1)), r'Linear does not reconstruct images: it is for mm_ummae\.UMMAE, .*LoMaR'),
        (
            {},
            dict(dataset=[0]),
            r'images takes files of the data set, but list has no file paths in .*\["img_path"\]: set',
        ),
        ({}, {}, 'images is not set, and no image of the training set can be read'),
    ],
)
def test_wrong_settings_are_found_before_training(
    hook: dict, parts: dict, message: str, tmp_path: Path, monkeypatch: MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path('bad.png').write_bytes(b'no image')
    run = part_of_runner(**{'dataset': PretrainImages(data_root='.', pipeline=[]), **parts})
    run.model.draw_mask = getattr(run.model, 'draw_mask', print)  # LoMaRBEiT draws windows, but predicts visual tokens
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        ReconstructionHook(**hook).before_train(run)


def test_numbers_and_priority() -> None:
    for name in ('interval', 'num_images'):
        with pytest.raises(ValueError, match=f'{name} is 0, but it must be at least 1'):
            ReconstructionHook(**{name: 0})
    assert get_priority(ReconstructionHook.priority) > get_priority(CheckpointHook.priority)
