"""Fine-tuning on own labelled images in one call: a detector, a segmentor or a classifier."""

from __future__ import annotations

import ast
import json
from collections.abc import Sequence
from dataclasses import dataclass
from logging import WARNING
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.dist import is_main_process
from mmengine.logging import print_log

from mm_ummae.checkpoints.files import read_checkpoint, whole_file
from mm_ummae.datasets.decoding import check_value_range
from mm_ummae.datasets.survey import choose_channels, look_at_images, pixel_statistics
from mm_ummae.registry import MODELS as NETWORKS
from mm_ummae.resources import config_path
from mm_ummae.version import __version__

from .finetuning_recipes import TASKS, choose_recipe, image_size_values, network_lines, reference_of
from .labelled import LabelledData, read_class_folders, read_coco, read_pairs
from .pretraining import BACKBONE
from .run_folder import (
    CHECKPOINTS,
    CONFIG,
    RUN,
    build_runner,
    check_outside,
    loader_processes,
    plain,
    processes,
    share_of,
    start_processes,
    train,
    wait_for_all,
    write_config,
    write_text,
)
from .settings import WARMUP, Settings, choose_finetuning

# Images of an iteration: on a CPU, and for each GB of a GPU's memory
ON_CPU = dict(detection=4, segmentation=8, classification=64)
FEWEST = dict(detection=1, segmentation=2, classification=1)  # of which batch norm needs two
PER_GB = dict(detection=0.18, segmentation=0.3, classification=3)
MODEL, METRICS = 'model.pth', 'metrics.json'
SAMPLE = 1000  # images whose depth and channels are looked at


@dataclass(frozen=True)
class Finetuning:
    """What :func:`finetune` leaves.

    Attributes:
        config (Path): The config, which ``mim train ummae CONFIG`` runs again.
        checkpoint (Path): The weights alone, with the names of the classes, for inference.
        metrics (dict[str, float]): Of the test set, or of validation if there is none; empty if a detector found
            nothing at all.
        classes (tuple[str, ...]): Names of the classes.
        settings (Settings): Length, batch and learning rate.
    """

    config: Path
    checkpoint: Path
    metrics: dict[str, float]
    classes: tuple[str, ...]
    settings: Settings


def finetune(
    task: str,
    data: str | Path,
    out: str | Path,
    start: str | Path | None = None,
    *,
    model: str | None = None,
    val: str | Path | None = None,
    test: str | Path | None = None,
    images: str | Path | None = None,
    masks: str | Path | None = None,
    classes: Sequence[str] | None = None,
    val_share: float = 0.2,
    epochs: int | None = None,
    batch: int | None = None,
    lr: float | None = None,
    image_size: int | None = None,
    channels: int | None = None,
    value_range: str | Sequence[float] | None = None,
    workers: int | None = None,
    seed: int = 0,
) -> Finetuning:
    """Fine-tune a detector, a segmentor or a classifier on own images, and measure it.

    Classes are read from the data, which are checked before the first iteration
    (:func:`~mm_ummae.datasets.labels.check_labels`). Settings follow from the recipe of the network and the number of
    images (:func:`~mm_ummae.commands.settings.choose_finetuning`). ``out`` gets ``config.py``, ``data`` with lists of
    the images if they were split, ``run`` with checkpoints and logs, and at the end ``model.pth`` and ``metrics.json``.
    The same call again resumes a run that was interrupted.

    Args:
        task (str): ``detection`` (Mask R-CNN, from a COCO file; with masks if all objects have some), ``segmentation``
            (UperNet, from images and label maps) or ``classification`` (from a folder for each class).
        data (str | Path): Of detection the annotation file, or a folder with files for ``train`` and ``val``; else a
            folder, see :func:`~mm_ummae.commands.labelled.read_pairs` and
            :func:`~mm_ummae.commands.labelled.read_class_folders`.
        out (str | Path): Folder of the run.
        start (str | Path, optional): The folder that :func:`~mm_ummae.commands.pretrain` left, its ``backbone.pth``, or
            other weights of the backbone, such as ``mm_ummae://um-swin-test``. Default: random weights.
        model (str, optional): One of the names of ``pretrain``. Default: that of ``start``, else ``um-swin-tiny``.
        val (str | Path, optional): Annotation file of validation, for detection.
        test (str | Path, optional): Annotation file of tests. Default: validation data.
        images (str | Path, optional): Folder of images, where another one is meant than is found.
        masks (str | Path, optional): Folder of label maps, likewise.
        classes (Sequence[str], optional): Names for the values of label maps, in their order. Default: a name per line
            in ``classes.txt``, or the values.
        val_share (float): Share of the images that is kept for validation if the data have no such part. Default 0.2.
        epochs (int, optional): Passes over the images. Default: by the rule.
        batch (int, optional): Images of an update, on all devices together. Default: by the rule.
        lr (float, optional): Largest learning rate. Default: by the rule.
        image_size (int, optional): Classification: side of the crops; segmentation: likewise, and short side of the
            images; detection: largest side of the images; in pixels. Default: that of the recipe.
        channels (int, optional): Channels of the images. Default: those of the pre-training, else as in ``pretrain``.
        value_range (str | Sequence[float], optional): Likewise; see ``LoadCompleteImage``.
        workers (int, optional): Loader processes of a device. Default: the cores but one, 8 at most.
        seed (int): Of new weights and the order of images. Default 0.
    Returns:
        Finetuning: Files, metrics and classes.
    Raises:
        FileNotFoundError: If there is no such folder or file.
        ValueError: If an argument is illegal, or ``out`` holds a run with other settings.
        DataError: If the data do not fit the task; the message says what is wrong and the way out.
    """
    out = Path(out).absolute()
    if task not in TASKS:
        raise ValueError(f'task is {task!r}, but it must be one of {", ".join(TASKS)}')
    data = Path(data).absolute()
    check_outside(out, data)
    if value_range is not None:
        check_value_range(value_range, channels or 3)
    weights, origin = _read_start(start)
    model = model or origin.get('model') or 'um-swin-tiny'
    if start is not None and 'model' not in origin:
        print_log(f'{weights} does not say its network: it is taken for {model} (model)', 'current')
    recipe, lines = choose_recipe(task, model)
    labelled = _read_data(task, data, out / 'data', val_share, val, test, images, masks, classes)
    files, every = labelled.files['train'], [path for part in labelled.files.values() for path in part]
    every = list(dict.fromkeys(every))
    survey = look_at_images(every, SAMPLE)
    print_log(survey.text(), 'current')
    if channels is None:
        channels = origin.get('channels') or choose_channels(survey, every)
    if value_range is None and survey.value_range is not None:  # images of 8 bits need none
        value_range = origin.get('value_range') or survey.value_range
    mean, std = (origin.get('mean'), origin.get('std')) if channels == origin.get('channels') else (None, None)
    if mean is None and (channels != 3 or weights is None):
        mean, std = pixel_statistics(files, channels, value_range)
    multiple = processes() * FEWEST[task]
    settings = choose_finetuning(reference_of(task, recipe), len(files), epochs, batch, lr, multiple)
    values = labelled.values | _values(settings, task, workers)
    values |= dict(classes=labelled.classes, checkpoint=weights, channels=channels, value_range=value_range, seed=seed)
    values |= {} if mean is None else dict(mean=mean, std=std)
    values |= image_size_values(task, recipe, image_size)
    lines = [*lines, *network_lines(task, recipe, lines, channels, image_size)]
    text = finetuning_config(out, task, recipe, values, lines, model)
    if weights is not None and not (out / CONFIG).exists():  # an error in them comes before anything is written
        NETWORKS.build(Config.fromstring(text, '.py').model.backbone).init_weights()
    start_processes()
    if is_main_process():
        _check_lists(out, labelled.written)
        write_config(out / CONFIG, text)
        for name, content in labelled.written.items():
            write_text(out / 'data' / name, content)
    wait_for_all()
    announcement = (
        f'{task} with {model}: {settings.epochs} epochs, batch {settings.batch} ({values["batch_size"]} images x '
        f'{values["accumulate"]} iterations x {processes()} devices), learning rate {settings.lr:g}, '
        f'{settings.updates} updates, {channels} channels, {len(labelled.classes)} classes'
    )
    checkpoint = train(out, settings.epochs, announcement)
    if is_main_process():
        _save_model(checkpoint, out / MODEL)
    wait_for_all()
    metrics = _measure(out)
    return Finetuning(out / CONFIG, out / MODEL, metrics, labelled.classes, settings)


def _read_start(start: str | Path | None) -> tuple[str | None, dict[str, Any]]:
    """Address of the weights, and what ``pretrain`` wrote about their network and images."""
    if start is None:
        return None, {}
    address = str(start)
    if '://' not in address:
        path = Path(start).absolute()
        path = path / BACKBONE if path.is_dir() else path
        if not path.exists():
            raise FileNotFoundError(f'start is {start}, but there is no file {path}')
        address = str(path)
    content = read_checkpoint(address) if '://' not in address else {}
    meta = content.get('meta') if isinstance(content, dict) else None
    return address, dict((meta or {}).get('pretraining') or {})


def _read_data(
    task: str,
    data: Path,
    lists: Path,
    val_share: float,
    val: str | Path | None,
    test: str | Path | None,
    images: str | Path | None,
    masks: str | Path | None,
    classes: Sequence[str] | None,
) -> LabelledData:
    """Read the data of a task; options of another task are refused."""
    used = dict(detection=('val', 'test', 'images'), segmentation=('images', 'masks', 'classes'), classification=())
    for name, value in dict(val=val, test=test, images=images, masks=masks, classes=classes).items():
        if value is not None and name not in used[task]:
            of = [each for each, names in used.items() if name in names]
            raise ValueError(f'{name} is {value}, but task is {task}: it is an option of {" and ".join(of)}')
    if task == 'detection':
        files = [None if path is None else Path(path).absolute() for path in (val, test, images)]
        return read_coco(data, lists, val_share, *files)
    if task == 'segmentation':
        folders = [None if path is None else str(path) for path in (images, masks)]
        return read_pairs(data, lists, val_share, *folders, classes)
    return read_class_folders(data, lists, val_share)


def _values(settings: Settings, task: str, workers: int | None) -> dict[str, Any]:
    """Values of the config that follow from the settings and the device."""
    cuda = torch.cuda.is_available()
    limit = int(torch.cuda.get_device_properties(0).total_memory / 1e9 * PER_GB[task]) if cuda else ON_CPU[task]
    per_device, accumulated = share_of(settings.batch, max(limit, FEWEST[task]))
    if per_device < FEWEST[task]:
        raise ValueError(
            f'batch is {settings.batch}, but each of {processes()} processes needs a multiple of {FEWEST[task]} images '
            f'for {task}: give another batch'
        )
    warmup = round(settings.updates * accumulated * WARMUP)  # iterations
    return dict(
        batch_size=per_device,
        accumulate=accumulated,
        lr=settings.lr,
        epochs=settings.epochs,
        warmup=warmup if warmup > 1 else 0,  # of a single iteration it would not reach its end
        val_interval=max(settings.epochs // CHECKPOINTS, 1),
        workers=loader_processes(workers),
        amp=cuda,
    )


def _check_lists(out: Path, written: dict[str, str]) -> None:
    """Refuse to go on with other images than those that a run began with."""
    for name, content in written.items():
        path = out / 'data' / name
        if path.exists() and path.read_text(encoding='utf-8') != content:
            raise ValueError(
                f'out is {out}, but it holds a run on other data: {path} would change. Give another folder, or train '
                f'it on as it is: mim train ummae {out / CONFIG} --resume'
            )


def finetuning_config(
    out: Path, task: str, recipe: str, values: dict[str, Any], lines: Sequence[str], model: str
) -> str:
    """The template of a task with other values at its top, and lines at its end.

    Args:
        out (Path): Folder of the run.
        task (str): One of ``TASKS``.
        recipe (str): Config below ``configs/`` that it inherits.
        values (dict[str, Any]): Values at its top; others stay as they are.
        lines (Sequence[str]): Python for its end, which puts another network into its ``model``.
        model (str): Name of the network, for the comment.
    Returns:
        str: A config file.
    """
    source = Path(config_path(f'custom/{task}.py')).read_text(encoding='utf-8').splitlines()
    values = {name: repr(plain(value)) for name, value in values.items()}
    values['_base_'] = f"__import__('mm_ummae').config_path({recipe!r})"
    # Of all assignments these are in a line each
    places = {node.targets[0].id: node for node in ast.parse('\n'.join(source)).body if isinstance(node, ast.Assign)}
    for name, value in values.items():
        line = places[name].lineno - 1
        source[line] = f'{name} = {value}{source[line][places[name].end_col_offset :]}'
    start = places['_base_'].lineno - 1
    head = [
        f'# {task.capitalize()} with {model}, written by mm_ummae {__version__} (python -m mm_ummae finetune).',
        '# Train it: mim train ummae config.py --gpus 1, with --resume after a break',
    ]
    tail = [
        f'work_dir = {str(out / RUN)!r}',
        f'launcher = {"pytorch" if processes() > 1 else "none"!r}',
    ]
    if processes() > 1:  # lr is for all of them
        tail.append(f'auto_scale_lr = dict(base_batch_size=batch_size * {processes()})')
    more = ['', '# The network, where it differs from the recipe', *lines] if lines else []
    return '\n'.join([*head, *source[start:], *tail, *more, ''])


def _save_model(checkpoint: Path, target: Path) -> None:
    """Weights and what inference needs to know."""
    content = read_checkpoint(str(checkpoint))
    with whole_file(target) as part:
        torch.save(dict(meta=content['meta'], state_dict=content['state_dict']), part)


def _measure(out: Path) -> dict[str, float]:
    """Metrics of the finished model, computed once."""
    path = out / METRICS
    if path.exists():
        return json.loads(path.read_text())
    cfg = Config.fromfile(out / CONFIG)
    cfg.load_from, cfg.resume = str(out / MODEL), False
    for key in ('train_dataloader', 'train_cfg', 'optim_wrapper', 'param_scheduler', 'val_dataloader', 'val_cfg'):
        cfg[key] = None
    cfg.val_evaluator = None
    metrics = {name: float(value) for name, value in build_runner(cfg).test().items()}
    if not metrics:
        print_log('nothing was detected in the test images, so there are no metrics: train longer', 'current', WARNING)
    if is_main_process():
        write_text(path, json.dumps(metrics, indent=1) + '\n')
    wait_for_all()
    return metrics
