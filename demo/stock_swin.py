"""What Uniform Masking is worth for a stock Swin on the demo data: fine-tuning, SimMIM, continued pre-training.

    python -m demo.stock_swin [--seeds 0 1 2] [--epochs 10]

For each seed: UM-MAE with MMPretrain's Swin (as in ``demo.networks``) and SimMIM for as long; classification with
MMPretrain's class, Mask R-CNN with MMDetection's and UperNet with MMSegmentation's, from scratch and from the
pre-trained file, which the classes of the hosts load themselves; and pre-training on five photographs continued on five
others. About 35 minutes per seed on one core; finished runs are kept.
"""

from __future__ import annotations

import argparse
import io
import json
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from pprint import pformat
from typing import Any

import numpy as np
from mmengine.config import Config
from PIL import Image

from .chain import parse_args, slug
from .images import PHOTOGRAPH_CLASSES, SPLITS
from .make_data import JPEG_QUALITY, PRETRAIN_SCALE, make_demo_data
from .networks import ARMS, SIZE, SWIN, frozen_accuracy, pretrain, pretraining_config
from .report import ROWS, machine, spread, write_json
from .scenes import crop_photograph
from .screen import SCREEN, keep_log_off, step
from .tasks import TASKS, Task
from .training import CONFIGS, run_training

with redirect_stdout(io.StringIO()):  # hosts print notes when they are imported
    from .timing import seconds_per_iteration

UM_MAE, SIMMIM = 'swin_compact', 'swin_simmim'
PARTS = dict(window_size=4, drop_path_rate=0.0, out_indices=(2, 3), **SWIN['arch'])
FPN = dict(_delete_=True, type='FPN', in_channels=[128, 256], out_channels=64, num_outs=2, norm_cfg=dict(type='BN'))
# The demo's fine-tuning with the class of the host in place of UMSwin, and the host's own necks
MODELS: Mapping[str, dict[str, Any]] = {
    'classification': dict(
        backbone=dict(SWIN, out_indices=(3,)), neck=dict(_delete_=True, type='GlobalAveragePooling')
    ),
    'Mask R-CNN': dict(backbone=dict(type='mmdet.SwinTransformer', **PARTS), neck=FPN),
    'UperNet': dict(
        backbone=dict(type='mmseg.SwinTransformer', **PARTS),
        neck=None,
        decode_head=dict(in_channels=[128, 256]),
        auxiliary_head=dict(in_channels=128),
    ),
}
# Pre-training on one set of photographs, continued on another
SETS = {'first': PHOTOGRAPH_CLASSES[:5], 'second': PHOTOGRAPH_CLASSES[5:]}
NUM_CROPS = 1000  # of each set
CONTINUED = {
    'first': 'on the first set only',
    'fresh': 'on the second set only',
    'continued': 'on the first set, continued on the second',
}


def fine_tune(name: str, start: str, checkpoint: str | None, seed: int, folder: Path, data: Path) -> dict[str, float]:
    """Fine-tune the class of the host.

    Args:
        name (str): Key of ``TASKS``.
        start (str): For the folder and the screen.
        checkpoint (str, optional): Of a pre-training. None: random weights.
        seed (int): Of the run.
        folder (Path): Folder of the runs of this seed.
        data (Path): From :func:`make_demo_data`.
    Returns:
        dict[str, float]: Metrics in percent.
    """
    task = TASKS[name]
    folder = folder / f'{slug(name)}_{start}'
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / 'config.py'
    config.write_text(fine_tuning_config(name, task, checkpoint))
    options = {'randomness.seed': seed, **task.data_options(data)}
    if checkpoint is None and task.scratch_lr is not None:
        options['optim_wrapper.optimizer.lr'] = task.scratch_lr
    run = run_training(f'seed {seed}, {name}, {start}', str(config), folder / 'run', options, threads=1)
    return task.percent(run.metrics)


def fine_tuning_config(name: str, task: Task, checkpoint: str | None) -> str:
    """Text of a config that inherits a fine-tuning of the demo."""
    model = dict(MODELS[name])
    start = None
    if checkpoint is not None:
        start = dict(type='Pretrained', checkpoint=checkpoint)
        if name == 'classification':  # the other hosts look for the prefix themselves
            start['prefix'] = 'backbone.'
    model['backbone'] = dict(model['backbone'], _delete_=True, init_cfg=start)
    return f'_base_ = {str(CONFIGS / task.config)!r}\nmodel = {pformat(model)}\n'


def equal_time_epochs(epochs: int, folder: Path, data: Path) -> int:
    """Epochs of SimMIM in the time that UM-MAE needs for ``epochs``."""
    record = folder / 'seconds.json'
    if not record.exists():
        configs = {}
        for key in (UM_MAE, SIMMIM):
            path = pretrain_config_file(key, folder)
            configs[key] = Config.fromfile(path)
            configs[key].merge_from_dict({'train_dataloader.dataset.data_root': str(data / 'imagenet')})
        write_json(record, seconds_per_iteration(configs))
    seconds = json.loads(record.read_text())
    return max(round(epochs * seconds[UM_MAE] / seconds[SIMMIM]), 1)


def pretrain_config_file(key: str, folder: Path) -> Path:
    """The pre-training config of an arm, in a folder of its own."""
    path = folder / f'{key}.py'
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(pretraining_config(ARMS[key]))
    return path


def write_sets(root: Path) -> Path:
    """Crops of two sets of photographs, and the labelled images of the second one's classes as links.

    Args:
        root (Path): From :func:`make_demo_data`.
    Returns:
        Path: Folder with ``first``, ``second``, and ``train`` and ``val`` of the second.
    """
    folder = root / 'sets'
    for number, (name, classes) in enumerate(SETS.items()):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for index in range(NUM_CROPS):
            rng = np.random.default_rng([number, index])
            photograph = PHOTOGRAPH_CLASSES.index(classes[index % len(classes)])
            image, _ = crop_photograph(rng, photograph, 'train', SIZE, PRETRAIN_SCALE)
            Image.fromarray(image).save(folder / name / f'{index:08d}.jpg', quality=JPEG_QUALITY)
    for split in SPLITS:
        (folder / split).mkdir(exist_ok=True)
        for name in SETS['second']:
            link = folder / split / name
            if not link.exists():
                link.symlink_to(root / 'imagenet' / split / name)
    return folder


def continue_pretraining(seed: int, epochs: int, folder: Path, data: Path) -> dict[str, dict[str, float]]:
    """Pre-train on the first set, on the second, and on the second from the first; probe the second one's classes.

    Args:
        seed (int): Of the runs.
        epochs (int): Of the demo's 2,000 images: a set is half as large and gets twice as many.
        folder (Path): Folder of the runs of this seed.
        data (Path): From :func:`write_sets`.
    Returns:
        dict[str, dict[str, float]]: Key of ``CONTINUED`` -> accuracy in percent.
    """
    found, checkpoint = {}, None
    for key in CONTINUED:
        options: dict[str, Any] = {
            'train_dataloader.dataset.data_root': data,
            'train_dataloader.dataset.data_prefix': 'first' if key == 'first' else 'second',
        }
        if key == 'continued':
            options |= {'model.backbone.init_cfg.type': 'Pretrained', 'model.backbone.init_cfg.checkpoint': checkpoint}
        run = pretrain(ARMS[UM_MAE], f'seed {seed}, {CONTINUED[key]}', seed, 2 * epochs, folder / key, options)
        checkpoint = checkpoint or run.checkpoint
        with step(f'seed {seed}, {CONTINUED[key]}, frozen features'):
            found[key] = frozen_accuracy(ARMS[UM_MAE], run.checkpoint, data, seed)
    return found


def run_seed(seed: int, epochs: int, out: Path, networks: Path, data: Path) -> dict[str, Any]:
    """All runs of a seed.

    Args:
        seed (int): Of initial weights, order of the images and masks.
        epochs (int): Of pre-training with UM-MAE.
        out (Path): Folder of the results.
        networks (Path): Folder of ``demo.networks``, whose pre-training is used.
        data (Path): From :func:`make_demo_data`.
    Returns:
        dict[str, Any]: Start -> metrics, and ``continued`` of :func:`continue_pretraining`.
    """
    folder = out / f'seed{seed}'
    images = {'train_dataloader.dataset.data_root': data / 'imagenet'}
    um_mae = pretrain(ARMS[UM_MAE], f'seed {seed}, UM-MAE', seed, epochs, networks / f'seed{seed}' / UM_MAE, images)
    length = equal_time_epochs(epochs, out, data)
    simmim = pretrain(ARMS[SIMMIM], f'seed {seed}, SimMIM', seed, length, folder / SIMMIM, images)
    result: dict[str, Any] = dict(simmim_epochs=length)
    for start, run in (('scratch', None), ('um-mae', um_mae), ('simmim', simmim)):
        checkpoint = run and run.checkpoint
        with step(f'seed {seed}, {start}, frozen features'):
            result[start] = frozen_accuracy(ARMS[UM_MAE], checkpoint, data / 'imagenet', seed)
        for name in TASKS if start != 'simmim' else ['classification']:
            result[start] |= fine_tune(name, start, checkpoint, seed, folder, data)
    return result | dict(continued=continue_pretraining(seed, epochs, folder, write_sets(data)))


def main(arguments: list[str] | None = None) -> None:
    """Run what is missing; write and print the tables and the numbers."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2], help='default: 0 1 2')
    parser.add_argument('--epochs', type=int, default=10, help='of pre-training (default: %(default)s)')
    parser.add_argument('--networks', type=Path, default=Path('work_dirs/networks'), help='runs of demo.networks')
    args = parse_args(parser, 'work_dirs/stock_swin', arguments)
    record = args.out / 'stock_swin.json'
    results = json.loads(record.read_text()) if record.exists() else dict(seeds={})
    keep_log_off()
    with SCREEN:
        with step('data'):
            data = make_demo_data(args.data)
        for seed in args.seeds:
            results['seeds'][str(seed)] = run_seed(seed, args.epochs, args.out, args.networks.resolve(), data)
            write_json(record, results | dict(environment=machine(), epochs=args.epochs))
    seeds = list(results['seeds'].values())
    print(f'\n{starts_table(seeds)}\n\n{continued_table(seeds)}\n\nresults in {args.out}')


def starts_table(seeds: Sequence[Mapping[str, Any]]) -> str:
    """Markdown table of the starts, mean and range over seeds; – stands for not measured."""
    keys = [key for key in ('linear', 'knn', *(key for task in TASKS.values() for key in task.metrics)) if key in ROWS]
    lines = [
        '| start | ' + ' | '.join(f'{ROWS[k][0]}, {ROWS[k][1]}' for k in keys) + ' |',
        '|---' * (len(keys) + 1) + '|',
    ]
    names = {'scratch': 'random weights', 'um-mae': 'UM-MAE', 'simmim': 'SimMIM in equal time'}
    for start, name in names.items():
        cells = [spread([seed[start][key] for seed in seeds], 1) if key in seeds[0][start] else '–' for key in keys]
        lines.append(f'| {name} | {" | ".join(cells)} |')
    return '\n'.join(lines)


def continued_table(seeds: Sequence[Mapping[str, Any]]) -> str:
    """Markdown table of continued pre-training, mean and range over seeds."""
    lines = ['| pre-training | linear probe | 10-NN |', '|---|---|---|']
    for key, name in CONTINUED.items():
        cells = [spread([seed['continued'][key][metric] for seed in seeds], 1) for metric in ('linear', 'knn')]
        lines.append(f'| {name} | {" | ".join(cells)} |')
    return '\n'.join(lines)


if __name__ == '__main__':
    main()
