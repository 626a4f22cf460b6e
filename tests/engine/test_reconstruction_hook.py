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
from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS
from mmengine.runner import EpochBasedTrainLoop, Runner
from mmengine.runner.priority import get_priority
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from mm_ummae.apis import reconstruct
from mm_ummae.engine import ReconstructionHook
from mm_ummae.registry import HOOKS, MODELS
from mm_ummae.visualization import reconstruction_sheet
from tests.builders import VIT, made_simmim, made_ummae

NUMBERS = count()
SIDE = 64
PREPROCESSOR = dict(
    type='mmpretrain.SelfSupDataPreprocessor',
    mean=[123.675, 116.28, 103.53],
    std=[58.395, 57.12, 57.375],
    to_rgb=True,
)
ALGORITHMS = ('UM-MAE', 'SimMIM', 'MAE', 'LoMaR')


def build(name: str = 'UM-MAE') -> nn.Module:
    """UM-MAE with random numbers in training (drop path) and a part that stays in eval mode (frozen), or another."""
    sizes = dict(backbone=dict(img_size=SIDE), neck=dict(img_size=SIDE), data_preprocessor=PREPROCESSOR)
    if name == 'UM-MAE':
        return made_ummae(**{**sizes, 'backbone': dict(img_size=SIDE, drop_path_rate=0.3, frozen_stages=1)})
    if name == 'MAE':
        sizes['backbone']['secondary_token'] = False
        return made_ummae('vit', 'random', secondary_ratio=0.0, **sizes)
    if name == 'SimMIM':
        return made_simmim('pvt', backbone=sizes['backbone'], data_preprocessor=PREPROCESSOR)
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


def build_runner(work_dir: Path, images: Path, hooks: list[Hook | dict], epochs: int = 1, **settings: Any) -> Runner:
    """A run of two iterations per epoch and two images per iteration."""
    loader = dict(
        batch_size=2,
        num_workers=0,
        sampler=dict(type='DefaultSampler', shuffle=True),
        collate_fn=dict(type='default_collate'),
        dataset=dict(
            type='mm_ummae.PretrainImages',
            data_root=str(images),
            max_bad_share=0.5,
            pipeline=[
                dict(type='LoadImageFromFile', imdecode_backend='pillow'),
                dict(type='RandomResizedCrop', scale=SIDE, backend='pillow'),
                dict(type='PackInputs'),
            ],
        ),
    )
    arguments = dict(
        model=build(),
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
    # Own work directories, because MMEngine names the folders inside by the second in which a run starts
    return Runner(work_dir=str(work_dir / f'{next(NUMBERS)}'), **{**arguments, **settings})


def drawn(run: Runner, name: str = 'reconstruction') -> dict[int, np.ndarray]:
    """From the step to the sheet, read from the files of LocalVisBackend."""
    files = Path(run.work_dir).rglob(f'vis_image/{name}_*.png')
    return {int(file.stem.removeprefix(f'{name}_')): np.asarray(Image.open(file)) for file in files}


def expected_sheet(model: nn.Module, files: list, **kwargs: Any) -> np.ndarray:
    return reconstruction_sheet(reconstruct(model.eval(), files, **kwargs), 'epoch 1')


# Content


@pytest.mark.integration
def test_every_backend_gets_a_sheet_per_interval(tmp_path: Path, images: Path) -> None:
    """In five epochs of training; the masks stay the same, the predictions do not."""
    backends = [dict(type='LocalVisBackend'), dict(type='TensorboardVisBackend')]
    hook = dict(type='mm_ummae.ReconstructionHook', images=str(images), interval=2, num_images=3)
    run = build_runner(tmp_path, images, [hook], 5, visualizer=dict(type='UniversalVisualizer', vis_backends=backends))
    run.train()
    run.visualizer.close()
    sheets = drawn(run)
    assert sorted(sheets) == [2, 4]
    columns = (np.array_split(sheets[epoch][40:], 5, axis=1) for epoch in (2, 4))
    same = [np.array_equal(*pair) for pair in zip(*columns, strict=True)]
    assert same == [True, True, True, False, False]

    (events,) = Path(run.work_dir).rglob('events.out.tfevents.*')
    accumulator = EventAccumulator(str(events), size_guidance={'images': 0}).Reload()
    assert accumulator.Tags()['images'] == ['reconstruction']
    logged = accumulator.Images('reconstruction')
    assert [image.step for image in logged] == [2, 4]
    assert [(image.width, image.height) for image in logged] == [sheets[2].shape[1::-1]] * 2


@pytest.mark.parametrize('name', ALGORITHMS)
def test_the_sheet_shows_the_reconstructions_of_the_model(name: str, tmp_path: Path, images: Path) -> None:
    """In eval mode, with the weights after the epoch and the masks of the seed."""
    files = [images / '2.png', str(images / '0.png')]
    hook = ReconstructionHook(images=files, interval=1, seed=5, name='seen')
    run = build_runner(tmp_path, images, [hook], model=build(name))
    run.train()
    expected = expected_sheet(run.model, files, seed=5)
    assert np.array_equal(drawn(run, 'seen')[1], expected)
    assert not np.array_equal(expected_sheet(run.model, files, seed=6), expected)


def test_default_images_and_another_size(tmp_path: Path, images: Path) -> None:
    """The first readable images of the training set, prepared as in a test pipeline and not as in training."""
    for i in range(4):
        (tmp_path / f'{i}.png').write_bytes((images / f'{i}.png').read_bytes() if i != 1 else b'no image')
    run = build_runner(tmp_path, tmp_path, [ReconstructionHook(interval=1, num_images=2, image_size=96)])
    run.train()
    expected = expected_sheet(run.model, [tmp_path / '0.png', tmp_path / '2.png'], image_size=96)
    assert np.array_equal(drawn(run)[1], expected)


# No effect on training


class Watch(Hook):
    """Notes training modes and random state just before or after ReconstructionHook."""

    def __init__(self, priority: str) -> None:
        self.priority, self.notes = priority, []

    def after_train_epoch(self, runner: Runner) -> None:
        modes = {name: module.training for name, module in runner.model.named_modules()}
        self.notes.append((modes, torch.get_rng_state().tolist(), np.random.get_state()[1].tolist()))


@pytest.mark.integration
def test_training_continues_as_without_the_hook(tmp_path: Path, images: Path) -> None:
    """Bit by bit, with drop path, random crops, drawn masks and BatchNorm."""
    states = []
    for drawing in (False, True):
        before, after = Watch('VERY_LOW'), Watch('LOWEST')
        hook = [ReconstructionHook(images=images, interval=1, num_images=2)] if drawing else []
        model = build()
        model.norm = nn.BatchNorm2d(3)  # keeps running statistics
        model.backbone.register_forward_pre_hook(lambda _, inputs, norm=model.norm: (norm(inputs[0]), *inputs[1:]))
        run = build_runner(tmp_path, images, [before, *hook, after], 2, model=model)
        run.train()
        assert len(drawn(run)) == 2 * drawing
        assert len(before.notes) == 2 and before.notes == after.notes
        modes = before.notes[0][0]
        assert modes['neck'] and modes['norm'] and not modes['backbone.stages.0']
        states.append(run.model.state_dict())
    assert int(states[0]['norm.num_batches_tracked']) == 4
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


def test_the_mode_is_restored_after_an_error(tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build()
    hook = ReconstructionHook(images=images, interval=1)
    hook.before_train(
        SimpleNamespace(model=model, train_loop=epoch_loop(), train_dataloader=SimpleNamespace(dataset=[]))
    )
    modes = [module.training for module in model.train().modules()]

    def fail(*_: object, **__: object) -> None:
        raise MemoryError('too large')

    monkeypatch.setattr(model, 'predict', fail)
    with pytest.raises(MemoryError, match='too large'):
        hook.after_train_epoch(SimpleNamespace(model=model, epoch=0))
    assert [module.training for module in model.modules()] == modes


class Autocast(OptimWrapper):
    """Mixed precision as in AmpOptimWrapper, on the CPU."""

    def optim_context(self, model: nn.Module) -> torch.autocast:
        return torch.autocast('cpu', dtype=torch.bfloat16)


def test_mixed_precision(tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sheet of a mixed-precision run is drawn in float32, but drawing inside autocast works as well."""
    monkeypatch.setitem(OPTIM_WRAPPERS._module_dict, 'Autocast', Autocast)
    hook = ReconstructionHook(images=images, interval=1)
    wrapper = dict(type='Autocast', optimizer=dict(type='AdamW', lr=1e-3))
    run = build_runner(tmp_path, images, [hook], optim_wrapper=wrapper)
    run.train()
    expected = expected_sheet(run.model, sorted(images.iterdir()))
    assert np.array_equal(drawn(run)[1], expected)
    seen = []
    visualizer = SimpleNamespace(add_image=lambda name, image, step: seen.append(image))
    with torch.autocast('cpu', dtype=torch.bfloat16):
        hook.after_train_epoch(SimpleNamespace(model=run.model, epoch=0, visualizer=visualizer))
    difference = np.abs(seen[0].astype(int) - expected)
    assert difference.max() > 0 and difference.mean() < 2


# Several processes


def epoch_loop() -> EpochBasedTrainLoop:
    return EpochBasedTrainLoop.__new__(EpochBasedTrainLoop)


def test_a_wrapped_model(tmp_path: Path, images: Path) -> None:
    store = torch.distributed.FileStore(str(tmp_path / 'store'), 1)
    torch.distributed.init_process_group('gloo', store=store, rank=0, world_size=1)
    try:
        model = build()
        hook = ReconstructionHook(images=images, interval=1)
        run = build_runner(tmp_path, images, [hook], model=MMDistributedDataParallel(model))
        run.train()
    finally:
        torch.distributed.destroy_process_group()
    assert np.array_equal(drawn(run)[1], expected_sheet(model, sorted(images.iterdir())))


def test_only_the_main_process_reads_and_draws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other processes do not need the images, but mistakes in the settings stop them as well."""
    monkeypatch.setattr(dist_utils, 'get_rank', lambda group=None: 1)
    run = SimpleNamespace(model=build(), epoch=0, train_loop=epoch_loop(), train_dataloader=None, visualizer=None)
    hook = ReconstructionHook(images=tmp_path / 'nowhere.png', interval=1)
    hook.before_train(run)
    hook.after_train_epoch(run)
    assert hook.batch == {}
    with pytest.raises(ValueError, match='image height is 100 px'):
        ReconstructionHook(image_size=100).before_train(run)


# Wrong settings, found before the first iteration

TENSORS = dict(
    batch_size=1,
    sampler=dict(type='DefaultSampler'),
    collate_fn=dict(type='default_collate'),
    dataset=[dict(inputs=torch.zeros(3, SIDE, SIDE, dtype=torch.uint8))],
)
CLASSIFIER = dict(
    type='ImageClassifier',
    backbone=dict(type='ResNet', depth=18),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', num_classes=2, in_channels=512),
)
WRONG = {
    'no file': (dict(images=['bad.png', 'nowhere']), {}, 'nowhere is neither an image nor a folder with images'),
    'damaged file': (dict(images='bad.png'), {}, r'the image .*bad\.png cannot be read'),
    'size 48': (dict(image_size=48), {}, r'image height is 48 px, but .* multiple of 32 px'),
    'iterations': (
        {},
        dict(train_cfg=dict(by_epoch=False, max_iters=4)),
        'interval counts epochs, but training runs in IterBasedTrainLoop: set train_cfg.by_epoch=True',
    ),
    'classifier': (
        {},
        dict(model=CLASSIFIER),
        r'ImageClassifier does not reconstruct images: it is for mm_ummae\.UMMAE, .*LoMaR',
    ),
    'no paths': (
        {},
        dict(train_dataloader=TENSORS),
        r'images is not set, and list has no file paths in get_data_info\(i\)\["img_path"\]: set images to an image',
    ),
    'no readable file': ({}, {}, 'images is not set, and no image of the training set can be read'),
}


@pytest.mark.parametrize('case', WRONG)
def test_wrong_settings_stop_the_run(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hook, settings, message = WRONG[case]
    monkeypatch.chdir(tmp_path)
    Path('bad.png').write_bytes(b'no image')
    run = build_runner(tmp_path, tmp_path, [ReconstructionHook(**hook)], **settings)
    if case == 'classifier':
        run.model.draw_mask = print  # LoMaRBEiT draws windows and yet predicts visual tokens
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        run.train()
    assert run.iter == 0


def test_numbers_and_priority() -> None:
    for name in ('interval', 'num_images'):
        with pytest.raises(ValueError, match=f'{name} is 0, but it must be at least 1'):
            ReconstructionHook(**{name: 0})
    assert HOOKS.get('ReconstructionHook') is ReconstructionHook
    assert get_priority(ReconstructionHook.priority) > get_priority(CheckpointHook.priority)
