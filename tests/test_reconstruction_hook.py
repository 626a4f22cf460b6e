"""ReconstructionHook in MMEngine's runner: what is drawn and when, and that training does not notice."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.dist import utils as dist_utils
from mmengine.hooks import Hook
from mmengine.model import MMDistributedDataParallel
from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS
from mmengine.runner import Runner
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from mm_ummae.engine import ReconstructionHook
from mm_ummae.apis.inference import reconstruct
from mm_ummae.registry import HOOKS, MODELS
from mm_ummae.visualization.sheets import reconstruction_sheet

NUMBERS = count()
SIDE = 64
VIT = dict(embed_dims=48, num_layers=1, num_heads=2, feedforward_channels=48)
PREPROCESSOR = dict(
    type='SelfSupDataPreprocessor', mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True
)
DECODER = dict(embed_dims=32, depth=1, num_heads=2, img_size=SIDE)
SWIN = dict(
    type='mm_ummae.UMMAE',
    data_preprocessor=PREPROCESSOR,
    # Random numbers in training (drop path), and a part that stays in evaluation mode (frozen)
    backbone=dict(
        type='mm_ummae.UMSwin', arch='test', img_size=SIDE, secondary_token=True, drop_path_rate=0.3, frozen_stages=1
    ),
    neck=dict(type='mm_ummae.UMMAEDecoder', in_channels=256, **DECODER),
    head=dict(type='mm_ummae.UMMAEHead', in_channels=32),
)
MODELS_TO_SHOW = {
    'UM-MAE': SWIN,
    'SimMIM': dict(
        type='mm_ummae.UMSimMIM',
        data_preprocessor=PREPROCESSOR,
        backbone=dict(type='mm_ummae.UMPVT', arch='test', img_size=SIDE, learn_positions=False, mask_token=True),
        head=dict(type='mm_ummae.UMSimMIMHead', in_channels=128),
    ),
    'MAE': dict(
        type='mm_ummae.UMMAE',
        data_preprocessor=PREPROCESSOR,
        sampling='random',
        secondary_ratio=0.0,
        backbone=dict(type='mm_ummae.UMViT', arch=VIT, img_size=SIDE, learn_positions=False),
        neck=dict(type='mm_ummae.UMViTDecoder', in_channels=48, **DECODER),
        head=dict(type='mm_ummae.UMMAEHead', in_channels=32),
    ),
    'LoMaR': dict(
        type='mm_ummae.LoMaR',
        data_preprocessor=PREPROCESSOR,
        window_size=3,
        num_windows=2,
        backbone=dict(type='mm_ummae.LoMaRViT', arch=VIT, img_size=SIDE, patch_size=8, mask_token=True),
        head=dict(type='mm_ummae.LoMaRHead', in_channels=48, patch_size=8),
    ),
}


@pytest.fixture(scope='module')
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four images of 96x80 px with large patches of colour."""
    folder = tmp_path_factory.mktemp('pictures')
    generator = np.random.default_rng(0)
    for i in range(4):
        pixels = generator.integers(256, size=(5, 6, 3), dtype=np.uint8).repeat(16, 0).repeat(16, 1)
        Image.fromarray(pixels).save(folder / f'{i}.png')
    return folder


def runner(work_dir: Path, pictures: Path, hooks: list[Hook | dict], epochs: int = 2, **settings: Any) -> Runner:
    """Two iterations an epoch of two images each."""
    loader = dict(
        batch_size=2,
        num_workers=0,
        sampler=dict(type='DefaultSampler', shuffle=True),
        collate_fn=dict(type='default_collate'),
        dataset=dict(
            type='mm_ummae.PretrainImages',
            data_root=str(pictures),
            max_bad_share=0.5,
            pipeline=[
                dict(type='LoadImageFromFile', imdecode_backend='pillow'),
                dict(type='RandomResizedCrop', scale=SIDE, backend='pillow'),
                dict(type='PackInputs'),
            ],
        ),
    )
    arguments = dict(
        model=SWIN,
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
    # A work folder for each: MMEngine names a run's folder by the second it starts in
    return Runner(work_dir=str(work_dir / f'{next(NUMBERS)}'), **{**arguments, **settings})


def drawn(run: Runner, name: str = 'reconstruction') -> dict[int, np.ndarray]:
    """Step to sheet, from the files of LocalVisBackend."""
    files = Path(run.work_dir).rglob(f'vis_image/{name}_*.png')
    return {int(file.stem.removeprefix(f'{name}_')): np.asarray(Image.open(file)) for file in files}


class Watch(Hook):
    """Notes modes and random state just before and after ReconstructionHook, which has the lowest priority."""

    def __init__(self, priority: str, notes: list) -> None:
        self.priority, self.notes = priority, notes

    def after_train_epoch(self, runner: Runner) -> None:
        modes = {name: module.training for name, module in runner.model.named_modules()}
        self.notes.append((modes, torch.get_rng_state().tolist(), np.random.get_state()[1].tolist()))


# What is drawn


def test_every_backend_gets_a_sheet_every_interval(tmp_path: Path, pictures: Path) -> None:
    """PNG files and TensorBoard, in a whole training of five epochs."""
    backends = [dict(type='LocalVisBackend'), dict(type='TensorboardVisBackend')]
    hook = dict(type='mm_ummae.ReconstructionHook', images=str(pictures), interval=2, num_images=3)
    run = runner(
        tmp_path, pictures, [hook], epochs=5, visualizer=dict(type='UniversalVisualizer', vis_backends=backends)
    )
    run.train()
    run.visualizer.close()
    sheets = drawn(run)
    assert sorted(sheets) == [2, 4]
    assert sheets[2].shape == sheets[4].shape and not np.array_equal(sheets[2], sheets[4]), 'nothing was learnt'

    (events,) = Path(run.work_dir).rglob('events.out.tfevents.*')
    accumulator = EventAccumulator(str(events), size_guidance={'images': 0}).Reload()
    assert accumulator.Tags()['images'] == ['reconstruction']
    images = accumulator.Images('reconstruction')
    assert [image.step for image in images] == [2, 4]
    assert [(image.width, image.height) for image in images] == [sheets[2].shape[1::-1]] * 2


@pytest.mark.parametrize('name', MODELS_TO_SHOW)
def test_the_sheet_is_what_the_model_reconstructs(name: str, tmp_path: Path, pictures: Path) -> None:
    """As tools/visualize.py draws it: evaluation mode, the weights after the epoch, the masks of the seed."""
    files = [pictures / '2.png', str(pictures / '0.png')]
    hook = ReconstructionHook(images=files, interval=1, seed=5, name='seen')
    run = runner(tmp_path, pictures, [hook], epochs=1, model=MODELS_TO_SHOW[name])
    run.train()
    model = run.model.eval()
    expected = reconstruction_sheet(reconstruct(model, files, seed=5), 'epoch 1')
    assert np.array_equal(drawn(run, 'seen')[1], expected)
    other = reconstruction_sheet(reconstruct(model, files, seed=6), 'epoch 1')
    assert not np.array_equal(expected, other)


def test_masks_stay_the_same_from_epoch_to_epoch(tmp_path: Path, pictures: Path) -> None:
    """The first three columns do not change, the prediction does."""
    hook = ReconstructionHook(images=pictures, interval=1, num_images=2)
    run = runner(tmp_path, pictures, [hook])
    run.train()
    first, second = (sheet[40:] for _, sheet in sorted(drawn(run).items()))
    columns = (np.array_split(sheet, 5, axis=1) for sheet in (first, second))
    same = [np.array_equal(*pair) for pair in zip(*columns, strict=True)]
    assert same == [True, True, True, False, False]


def test_pictures_of_the_training_set_by_default(tmp_path: Path, pictures: Path) -> None:
    """The first ones that can be read, resized and cropped as in a test and not as in training."""
    folder = tmp_path / 'data'
    folder.mkdir()
    for i in range(4):
        (folder / f'{i}.png').write_bytes((pictures / f'{i}.png').read_bytes())
    (folder / '1.png').write_bytes(b'no image')
    run = runner(tmp_path, folder, [ReconstructionHook(interval=1, num_images=2)], epochs=1)
    run.train()
    samples = reconstruct(run.model.eval(), [folder / '0.png', folder / '2.png'])
    assert np.array_equal(drawn(run)[1], reconstruction_sheet(samples, 'epoch 1'))


def test_another_size(tmp_path: Path, pictures: Path) -> None:
    hook = ReconstructionHook(images=pictures / '0.png', interval=1, image_size=128)
    run = runner(tmp_path, pictures, [hook], epochs=1)
    run.train()
    samples = reconstruct(run.model.eval(), [pictures / '0.png'], image_size=128)
    assert samples[0].image.shape == (3, 128, 128)
    assert np.array_equal(drawn(run)[1], reconstruction_sheet(samples, 'epoch 1'))


# Training does not notice


class NormedUMMAE(MODELS.get('UMMAE')):
    """With BatchNorm on the images, which keeps running statistics."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.norm = nn.BatchNorm2d(3)

    def forward(self, inputs: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        return super().forward(self.norm(inputs), *args, **kwargs)


def test_training_goes_on_as_without_the_hook(tmp_path: Path, pictures: Path) -> None:
    """Bit by bit, with drop path, random crops, drawn masks and BatchNorm; modes and random streams stay."""
    states = []
    for drawing in (False, True):
        before, after = [], []
        hooks = [Watch('VERY_LOW', before), Watch('LOWEST', after)]
        if drawing:
            hooks.insert(1, ReconstructionHook(images=pictures, interval=1, num_images=2))
        model = NormedUMMAE(**{key: value for key, value in SWIN.items() if key != 'type'})
        torch.manual_seed(1)
        model.init_weights()
        run = runner(tmp_path, pictures, hooks, model=model)
        run.train()
        assert len(drawn(run)) == 2 * drawing
        assert len(before) == 2 and before == after
        assert before[0][0]['neck'] and before[0][0]['norm'] and not before[0][0]['backbone.stages.0']
        states.append(run.model.state_dict())
    assert int(states[0]['norm.num_batches_tracked']) == 4
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


def test_the_mode_is_restored_after_an_error(tmp_path: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hook = ReconstructionHook(images=pictures, interval=1)
    run = runner(tmp_path, pictures, [hook])
    run.train()
    modes = [module.training for module in run.model.train().modules()]

    def fail(*_: object, **__: object) -> None:
        raise MemoryError('too large')

    monkeypatch.setattr(run.model, 'predict', fail)
    with pytest.raises(MemoryError, match=r'too large'):
        hook.after_train_epoch(SimpleNamespace(model=run.model, epoch=0))
    assert [module.training for module in run.model.modules()] == modes


class Autocast(OptimWrapper):
    """Mixed precision as AmpOptimWrapper does it, but on the CPU."""

    def optim_context(self, model: nn.Module) -> torch.autocast:
        return torch.autocast('cpu', dtype=torch.bfloat16)


def test_mixed_precision(tmp_path: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The weights stay in float32 and so are the reconstructions; inside autocast they are drawn as well."""
    monkeypatch.setitem(OPTIM_WRAPPERS._module_dict, 'Autocast', Autocast)
    hook = ReconstructionHook(images=pictures, interval=1)
    wrapper = dict(type='Autocast', optimizer=dict(type='AdamW', lr=1e-3))
    run = runner(tmp_path, pictures, [hook], epochs=1, optim_wrapper=wrapper)
    run.train()
    files = sorted(pictures.iterdir())
    expected = reconstruction_sheet(reconstruct(run.model.eval(), files), 'epoch 1')
    assert np.array_equal(drawn(run)[1], expected)
    seen = []
    visualizer = SimpleNamespace(add_image=lambda name, image, step: seen.append(image))
    with torch.autocast('cpu', dtype=torch.bfloat16):
        hook.after_train_epoch(SimpleNamespace(model=run.model, epoch=0, visualizer=visualizer))
    difference = np.abs(seen[0].astype(int) - expected)
    assert difference.max() > 0 and difference.mean() < 2


# Several processes


@pytest.fixture
def process_group(tmp_path: Path) -> Iterator[None]:
    """A group of this one process."""
    store = torch.distributed.FileStore(str(tmp_path / 'store'), 1)
    torch.distributed.init_process_group('gloo', store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def test_a_wrapped_model(process_group: None, tmp_path: Path, pictures: Path) -> None:
    torch.manual_seed(0)
    model = MODELS.build(SWIN)
    hook = ReconstructionHook(images=pictures, interval=1)
    run = runner(tmp_path, pictures, [hook], epochs=1, model=MMDistributedDataParallel(model))
    run.train()
    expected = reconstruction_sheet(reconstruct(model.eval(), sorted(pictures.iterdir())), 'epoch 1')
    assert np.array_equal(drawn(run)[1], expected)


def test_only_the_main_process_reads_and_draws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other ones need not have the images; what is wrong with the settings stops them all."""
    monkeypatch.setattr(dist_utils, 'get_rank', lambda group=None: 1)
    model = MODELS.build(SWIN)
    run = SimpleNamespace(model=model, epoch=0, train_loop=epoch_loop(), train_dataloader=None, visualizer=None)
    hook = ReconstructionHook(images=tmp_path / 'nowhere.png', interval=1)
    hook.before_train(run)
    hook.after_train_epoch(run)
    assert hook.batch == {}
    with pytest.raises(ValueError, match=r'image height is 100 px'):
        ReconstructionHook(image_size=100).before_train(run)


def epoch_loop() -> Any:
    from mmengine.runner import EpochBasedTrainLoop

    return EpochBasedTrainLoop.__new__(EpochBasedTrainLoop)


# What is refused, before the first iteration


def refused(run: Runner, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        run.train()
    assert run.iter == 0


def test_the_hook_is_registered_and_comes_after_the_checkpoint() -> None:
    from mmengine.hooks import CheckpointHook
    from mmengine.runner.priority import get_priority

    assert HOOKS.get('ReconstructionHook') is ReconstructionHook
    assert get_priority(ReconstructionHook.priority) > get_priority(CheckpointHook.priority)


@pytest.mark.parametrize('name', ['interval', 'num_images'])
def test_numbers_are_positive(name: str) -> None:
    with pytest.raises(ValueError, match=rf'{name} is 0, but it must be at least 1'):
        ReconstructionHook(**{name: 0})


def test_no_picture(tmp_path: Path, pictures: Path) -> None:
    for images in (tmp_path / 'nowhere', [pictures / '0.png', tmp_path / 'nowhere']):
        run = runner(tmp_path, pictures, [ReconstructionHook(images=images, interval=9)])
        refused(run, FileNotFoundError, r'nowhere is no image and no folder with images')
    refused(runner(tmp_path, pictures, [ReconstructionHook(images=[])]), ValueError, r'images is empty')


def test_a_damaged_picture(tmp_path: Path, pictures: Path) -> None:
    (tmp_path / 'bad.png').write_bytes(b'no image')
    run = runner(tmp_path, pictures, [ReconstructionHook(images=tmp_path / 'bad.png', interval=9)])
    refused(run, ValueError, r'the image .*bad\.png cannot be read')


def test_a_size_that_cannot_be_masked(tmp_path: Path, pictures: Path) -> None:
    for size, message in ((48, r'image height is 48 px, but .* multiple of 32 px'), (-32, r'image height is -32 px')):
        refused(runner(tmp_path, pictures, [ReconstructionHook(image_size=size)]), ValueError, message)


def test_training_by_iterations(tmp_path: Path, pictures: Path) -> None:
    run = runner(tmp_path, pictures, [ReconstructionHook()], train_cfg=dict(by_epoch=False, max_iters=4))
    refused(run, ValueError, r'interval counts epochs, but training runs in IterBasedTrainLoop')


def test_a_model_that_does_not_reconstruct(tmp_path: Path, pictures: Path) -> None:
    model = dict(
        type='ImageClassifier',
        backbone=dict(type='mm_ummae.UMSwin', arch='test', img_size=SIDE, final_norm=False),
        neck=dict(type='mm_ummae.AvgPoolNorm', in_channels=256),
        head=dict(type='LinearClsHead', num_classes=2, in_channels=256),
    )
    run = runner(tmp_path, pictures, [ReconstructionHook()], model=model)
    run.model.draw_mask = print  # LoMaR in BEiT draws windows, and yet predicts visual tokens
    refused(run, ValueError, r'ImageClassifier does not reconstruct images: it is for mm_ummae\.UMMAE, .*LoMaR')


def test_a_training_set_that_tells_no_files(tmp_path: Path, pictures: Path) -> None:
    loader = dict(
        batch_size=1,
        sampler=dict(type='DefaultSampler'),
        collate_fn=dict(type='default_collate'),
        dataset=[dict(inputs=torch.zeros(3, SIDE, SIDE, dtype=torch.uint8))],
    )
    run = runner(tmp_path, pictures, [ReconstructionHook()], train_dataloader=loader)
    refused(run, ValueError, r'images is not set, and list does not tell the files .* set images to an image')


def test_a_training_set_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / 'data').mkdir()
    (tmp_path / 'data' / 'bad.png').write_bytes(b'no image')
    run = runner(tmp_path, tmp_path / 'data', [ReconstructionHook()])
    refused(run, ValueError, r'images is not set, and no image of the training set can be read')
