"""Pre-training on a folder of images in one call: look at the data, choose settings, write a config, train."""

from __future__ import annotations

import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.dist import is_main_process
from mmengine.logging import print_log

from mm_ummae.analysis.measuring import Settings as Measure
from mm_ummae.analysis.step import TrainingStep
from mm_ummae.checkpoints.files import find_state, read_checkpoint, whole_file
from mm_ummae.datasets.pretrain_images import find_files
from mm_ummae.datasets.survey import choose_channels, look_at_images, pixel_statistics
from mm_ummae.masking import CELL, UNIT, image_size_pair
from mm_ummae.resources import config_path
from mm_ummae.version import __version__
from mm_ummae.visualization import write_report

from .run_folder import (
    CHECKPOINTS,
    CONFIG,
    RUN,
    check_outside,
    last_checkpoint,
    loader_processes,
    plain,
    processes,
    share_of,
    start_processes,
    train,
    wait_for_all,
    write_config,
)
from .settings import WARMUP, Settings, choose_settings

# Short names of the recipes; any other config of the package is taken by its path below configs/ or its file name
MODELS = {
    'um-swin-test': 'demo/ummae_swin-test_1xb16-coslr-20e_demo-128px.py',
    'um-swin-tiny': 'ummae/ummae_swin-tiny_8xb128x4-amp-coslr-200e_in1k-256px.py',
    'um-swin-base': 'ummae/ummae_swin-base_8xb64x8-amp-coslr-800e_in1k-256px.py',
    'um-swin-large': 'ummae/ummae_swin-large_8xb64x8-amp-coslr-800e_in1k-256px.py',
    'um-pvt-small': 'ummae/ummae_pvt-small_8xb128x4-amp-coslr-200e_in1k-256px.py',
    'um-vit-base': 'ummae/ummae_vit-base-p16_8xb128x4-amp-coslr-200e_in1k-224px.py',
    'lomar-vit-base': 'lomar/lomar_vit-base-p16_8xb128x4-amp-coslr-400e_in1k-224px.py',
    'simmim-swin-tiny': 'simmim/simmim_swin-tiny_8xb64x8-amp-coslr-200e_in1k-256px.py',
    'swin-tiny': 'ummae/ummae_stock-swin-tiny-w7_8xb128x4-amp-coslr-200e_in1k-224px.py',
    'swin-small': 'ummae/ummae_stock-swin-small-w7_8xb128x4-amp-coslr-200e_in1k-224px.py',
    'swin-base': 'ummae/ummae_stock-swin-base-w7_8xb64x8-amp-coslr-800e_in1k-224px.py',
    'swin-large': 'ummae/ummae_stock-swin-large-w7_8xb64x8-amp-coslr-800e_in1k-224px.py',
    'swin-v2-tiny': 'ummae/ummae_stock-swin-v2-tiny-w8_8xb128x4-amp-coslr-200e_in1k-256px.py',
    'swin-v2-base': 'ummae/ummae_stock-swin-v2-base-w8_8xb64x8-amp-coslr-800e_in1k-256px.py',
    'pvt-v2-b2': 'ummae/ummae_stock-pvt-v2-b2_8xb128x4-amp-coslr-200e_in1k-256px.py',
    'twins-svt-small': 'ummae/ummae_stock-twins-svt-small_8xb128x4-amp-coslr-200e_in1k-224px.py',
    'convnext-tiny': 'ummae/ummae_stock-convnext-tiny_8xb128x4-amp-coslr-200e_in1k-256px.py',
    'resnet-50': 'ummae/ummae_stock-resnet-50_8xb128x4-amp-coslr-200e_in1k-256px.py',
}
LARGEST = 128  # images of an iteration on a device; more of a batch is accumulated
PER_GB = 4  # images of an iteration for each GB of a GPU's memory
ON_CPU = 64
BACKBONE, REPORT = 'backbone.pth', 'report.html'


@dataclass(frozen=True)
class Pretraining:
    """What :func:`pretrain` leaves.

    Attributes:
        config (Path): The config, which ``mim train ummae CONFIG`` runs again.
        checkpoint (Path): The last checkpoint of the run.
        backbone (Path): The backbone alone, which ``init_cfg`` of a detector, segmentor or classifier takes.
        report (Path): Page about the run, in one file.
        settings (Settings): Length, batch and learning rate.
    """

    config: Path
    checkpoint: Path
    backbone: Path
    report: Path
    settings: Settings


def pretrain(
    data: str | Path,
    out: str | Path,
    model: str = 'um-swin-tiny',
    *,
    start: str | Path | None = None,
    epochs: int | None = None,
    batch: int | None = None,
    lr: float | None = None,
    image_size: int | Sequence[int] | None = None,
    channels: int | None = None,
    value_range: str | Sequence[float] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    labelled: str | Path | None = None,
    workers: int | None = None,
    seed: int = 0,
) -> Pretraining:
    """Pre-train on a folder of images without labels.

    Settings follow from the number of images (:func:`~mm_ummae.commands.settings.choose_settings`), channels and
    statistics from the images themselves. ``out`` gets ``config.py``, ``run`` with checkpoints, logs and
    reconstructions, and at the end ``backbone.pth`` and ``report.html``. The same call again resumes a run that was
    interrupted, and leaves a finished one as it is. Under ``torchrun`` the batch is shared by the processes.

    Args:
        data (str | Path): Folder of images, at any depth, or a text file with a path per line.
        out (str | Path): Folder of the run.
        model (str): One of ``MODELS``, or a pre-training config of the package. Default ``um-swin-tiny``.
        start (str | Path, optional): Weights to continue from: a pre-training checkpoint of the same model with its
            decoder, or weights of the backbone in any layout that it takes. Default: random ones.
        epochs (int, optional): Passes over the images. Default: by the rule.
        batch (int, optional): Images of an update, on all devices together. Default: by the rule.
        lr (float, optional): Largest learning rate. Default: by the rule.
        image_size (int | Sequence[int], optional): Side of the crops in pixels, or height and width: multiples of 32,
            for LoMaR of 16. Default: that of the recipe.
        channels (int, optional): Channels of the images. Default: 3, or those of the files if all have the same number
            above 4, or four bands in TIFF files.
        value_range (str | Sequence[float], optional): Of images with more than 8 bits, see ``LoadCompleteImage``.
            Default: the values that 0.5 and 99.5 % of their pixels lie below, in a sample of all.
        mean (Sequence[float], optional): Of each channel, in values 0..255, RGB. Default: of a sample; that of the
            recipe with ``start`` and three channels, which the weights know.
        std (Sequence[float], optional): Likewise.
        labelled (str | Path, optional): Folder with a subfolder for each class, for probes of the features during the
            run (see ``LearningHook``). Default: measures without labels alone.
        workers (int, optional): Loader processes of a device. Default: the cores but one, 8 at most.
        seed (int): Of weights, order and masks. Default 0.
    Returns:
        Pretraining: Files and settings.
    Raises:
        FileNotFoundError: If there is no such folder or file.
        ValueError: If an argument is illegal, no image can be read, or ``out`` holds a run with other settings.
    """
    data, out = Path(data).absolute(), Path(out).absolute()
    check_outside(out, data)
    recipe = _recipe(model)
    if (mean is None) != (std is None):
        raise ValueError(f'mean is {mean} and std {std}, but they go together: give both, or neither')
    files = find_files(data)
    survey = look_at_images(files)
    if channels is None:
        channels = choose_channels(survey, files)
    if value_range is None:
        value_range = survey.value_range
    if mean is None and (start is None or channels != 3):
        mean, std = pixel_statistics(files, channels, value_range)
    settings = choose_settings(len(files), epochs, batch, lr)
    changes = _changes(recipe, data, out, settings, channels, value_range, mean, std, image_size, workers, seed)
    if labelled is not None:
        changes['custom_hooks'] = _with_probes(changes['custom_hooks'], Path(labelled).absolute())
    if start is not None:
        changes = _with_start(changes, Path(start).absolute())
    text = _text(recipe.filename, changes, data, model)
    start_processes()
    announcement = ''
    if is_main_process():
        write_config(out / CONFIG, text)
        print_log(survey.text(), 'current')
        if last_checkpoint(out, settings.epochs) is None:
            announcement = _announcement(model, settings, channels, value_range, Config.fromfile(out / CONFIG))
    wait_for_all()
    checkpoint = train(out, settings.epochs, announcement)
    backbone = out / BACKBONE
    if is_main_process():
        save_backbone(checkpoint, backbone, model, Config.fromfile(out / CONFIG))
        write_report(out / RUN, out / REPORT, next_command=next_command(out), title=out.name)
    wait_for_all()
    return Pretraining(out / CONFIG, checkpoint, backbone, out / REPORT, settings)


def next_command(out: Path) -> str:
    """What to type after a pre-training: the fine-tuning of a detector, whose data the reader names.

    Args:
        out (Path): Folder of the pre-training.
    Returns:
        str: A command line.
    """
    folders = (shlex.quote(str(path)) for path in (out, out.with_name(f'{out.name}-detector')))
    start, target = folders
    return f'python -m mm_ummae finetune --task detection --data ANNOTATIONS.json --start {start} --out {target}'


def save_backbone(checkpoint: Path, target: Path, model: str, cfg: Config) -> None:
    """Write the backbone of a pre-training checkpoint, with its names, atomically.

    Args:
        checkpoint (Path): Of the pre-training.
        target (Path): File to write: the parameters under ``backbone.``, as ``init_cfg`` expects them, and in
            ``meta['pretraining']`` what a fine-tuning needs to know: network, channels, range and statistics of values.
        model (str): Name of the recipe.
        cfg (Config): Of the run.
    """
    state = find_state(read_checkpoint(str(checkpoint)), str(checkpoint))
    state = {name: value for name, value in state.items() if name.startswith('backbone.')}
    load, preprocessor = cfg.train_dataloader.dataset.pipeline[0], cfg.model.data_preprocessor
    images = dict(channels=load.get('channels', 3), value_range=load.get('value_range'))
    images |= dict(mean=preprocessor.mean, std=preprocessor.std)
    meta = dict(source=str(checkpoint), mm_ummae_version=__version__, pretraining=plain(dict(images, model=model)))
    with whole_file(target) as part:
        torch.save(dict(state_dict=state, meta=meta), part)


def _recipe(model: str) -> Config:
    try:
        path = config_path(MODELS.get(model, model))
    except FileNotFoundError as error:
        raise ValueError(f'model is {model!r}, but it must be one of {", ".join(MODELS)}. {error}') from error
    recipe = Config.fromfile(path)
    dataset = (recipe.get('train_dataloader') or {}).get('dataset') or {}
    if dataset.get('type') != 'mm_ummae.PretrainImages':
        raise ValueError(f'model is {model!r}, but {path} is no pre-training on images without labels')
    return recipe


def _changes(
    recipe: Config,
    data: Path,
    out: Path,
    settings: Settings,
    channels: int,
    value_range: str | Sequence[float] | None,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    image_size: int | Sequence[int] | None,
    workers: int | None,
    seed: int,
) -> dict[str, Any]:
    """What the config of the run changes in its recipe."""
    cuda = torch.cuda.is_available()
    limit = int(torch.cuda.get_device_properties(0).total_memory / 1e9 * PER_GB) if cuda else ON_CPU
    per_device, accumulated = share_of(settings.batch, min(LARGEST, limit))
    workers = loader_processes(workers)
    dataset = recipe.train_dataloader.dataset
    load, crop, *rest = (dict(step) for step in dataset.pipeline)
    if channels != 3:
        load['channels'] = channels
    if value_range is not None:
        load['value_range'] = value_range if isinstance(value_range, str) else [float(each) for each in value_range]
    size = crop['scale'] if image_size is None else _side_or_sides(image_size, recipe)
    crop['scale'] = size
    if not isinstance(size, int):  # boxes of this shape, so that images are stretched no more than in squares
        ratios = crop.get('aspect_ratio_range', (3 / 4, 4 / 3))  # width / height
        crop['aspect_ratio_range'] = [ratio * size[1] / size[0] for ratio in ratios]
    model: dict[str, Any] = dict(backbone=dict(img_size=size))
    if 'img_size' in (recipe.model.get('neck') or {}):
        model['neck'] = dict(img_size=size)
    if mean is not None:
        model['data_preprocessor'] = dict(mean=[float(each) for each in mean], std=[float(each) for each in std])
    if channels != 3:
        model['data_preprocessor'].update(type='mm_ummae.AnyChannelsPreprocessor', to_rgb=False, bgr_to_rgb=False)
        model['backbone']['in_channels'] = channels
        if recipe.model.backbone.type == 'mm_ummae.UMBackbone':
            model['backbone']['network'] = dict(in_channels=channels)
        model['head'] = dict(image_channels=channels)
    optimizer = dict(recipe.optim_wrapper)
    optimizer['optimizer'] = dict(optimizer['optimizer'], lr=settings.lr)
    optimizer['accumulative_counts'] = accumulated
    if not cuda and optimizer['type'] == 'AmpOptimWrapper':
        optimizer['type'] = 'OptimWrapper'
        optimizer.pop('loss_scale', None)
        optimizer.pop('dtype', None)
    # MMEngine takes fractions of an epoch here; a warm-up of one iteration would not reach its end
    iterations = settings.updates // settings.epochs * accumulated  # of an epoch
    warmup = max(settings.epochs * WARMUP, 2.001 / iterations)
    linear, cosine = recipe.param_scheduler
    schedule = [dict(linear, end=warmup), dict(cosine, begin=warmup, end=settings.epochs)]
    if 2 * warmup > settings.epochs:  # of a few iterations
        schedule = [dict(cosine, begin=0, end=settings.epochs)]
    every = max(settings.epochs // CHECKPOINTS, 1)
    ann_file, root = ('', data) if data.is_dir() else (str(data), '')
    return dict(
        train_dataloader=dict(
            batch_size=per_device,
            num_workers=workers,
            persistent_workers=workers > 0,
            dataset=dict(
                data_root=f'{root}/' if root else '', data_prefix='', ann_file=ann_file, pipeline=[load, crop, *rest]
            ),
        ),
        model=model,
        optim_wrapper=dict(optimizer, _delete_=True),
        param_scheduler=schedule,
        train_cfg=dict(max_epochs=settings.epochs),
        default_hooks=dict(
            logger=dict(interval=max(iterations // 5, 1)),
            checkpoint=dict(interval=every, max_keep_ckpts=2, save_last=True),
        ),
        custom_hooks=[
            dict(hook, interval=every) if hook.type.endswith(('ReconstructionHook', 'LearningHook')) else dict(hook)
            for hook in recipe.custom_hooks
        ],
        randomness=dict(seed=seed, diff_rank_seed=True),
        # A folder of its own: MMEngine writes the whole config, under the name of this file, beside the checkpoints
        work_dir=str(out / RUN),
        launcher='pytorch' if processes() > 1 else 'none',
    )


def _with_probes(hooks: list[dict[str, Any]], labelled: Path) -> list[dict[str, Any]]:
    """Give the hook that measures features its labelled images."""
    if not labelled.is_dir():
        raise FileNotFoundError(f'labelled is {labelled}, but there is no such folder')
    return [hook | dict(labelled=str(labelled)) if hook['type'].endswith('LearningHook') else hook for hook in hooks]


def _with_start(changes: dict[str, Any], start: Path) -> dict[str, Any]:
    """Start from a whole pre-training, or from weights of the backbone."""
    names = find_state(read_checkpoint(str(start)), str(start))
    if any(name.startswith('neck.') for name in names) and any(name.startswith('backbone.') for name in names):
        return changes | dict(load_from=str(start))
    backbone = changes['model']['backbone'] | dict(init_cfg=dict(type='Pretrained', checkpoint=str(start)))
    return changes | dict(model=changes['model'] | dict(backbone=backbone))


def _text(recipe: str, changes: dict[str, Any], data: Path, model: str) -> str:
    """The config file."""
    name = Path(recipe)
    below = f'{name.parent.name}/{name.name}'
    lines = [
        f'# Pre-training of {model} on {data}, written by mm_ummae {__version__} (python -m mm_ummae pretrain).',
        '# Train it: mim train ummae config.py --gpus 1, with --resume after a break',
        f"_base_ = __import__('mm_ummae').config_path({below!r})",
        '\n',
    ]
    return '\n'.join(lines) + Config(plain(changes)).pretty_text


def _side_or_sides(image_size: int | Sequence[int], recipe: Config) -> int | list[int]:
    """A number for a square, else height and width."""
    unit = UNIT if recipe.model.type == 'mm_ummae.LoMaR' else CELL
    sides = [image_size] if isinstance(image_size, int) else list(image_size)
    if len(sides) not in (1, 2) or any(side < 1 or side % unit for side in sides):
        raise ValueError(
            f'image_size is {image_size}, but it must be a side, or height and width, in positive multiples of {unit} '
            'px'
        )
    return sides[0] if len(set(sides)) == 1 else sides


def _announcement(
    model: str, settings: Settings, channels: int, value_range: str | Sequence[float] | None, cfg: Config
) -> str:
    """Settings, and how long they will take."""
    accumulated = cfg.optim_wrapper.accumulative_counts
    height, width = image_size_pair(cfg.train_dataloader.dataset.pipeline[1].scale)
    per_step = _seconds(cfg, (height, width))
    iterations = settings.updates * accumulated
    minutes = iterations * per_step / 60
    text = (
        f'{model}: {settings.epochs} epochs, batch {settings.batch} ({cfg.train_dataloader.batch_size} images x '
        f'{accumulated} iterations x {processes()} devices), learning rate {settings.lr:g}, {settings.updates} '
        f'updates, crops of {height} x {width} px, {channels} channels'
    )
    if value_range is not None:
        text += f', values {value_range} become 0..255 in images of more than 8 bits'
    return f'{text}. Forecast: {minutes:.0f} minutes, if loading keeps up ({per_step:.2f} s per iteration)'


def _seconds(cfg: Config, size: tuple[int, int]) -> float:
    """Time of a training step on random images."""
    cuda = torch.cuda.is_available()
    amp = cuda and cfg.optim_wrapper.type == 'AmpOptimWrapper'
    measure = Measure('cuda' if cuda else 'cpu', 'float16' if amp else 'float32')
    state = torch.get_rng_state()
    step = TrainingStep.on_random_images(cfg, size, cfg.train_dataloader.batch_size, measure)
    step()  # the first one reserves memory
    started = time.perf_counter()
    for _ in range(2):
        step()
    if cuda:
        torch.cuda.synchronize()
    torch.set_rng_state(state)
    return (time.perf_counter() - started) / 2
