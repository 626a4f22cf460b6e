"""Chain of a demo: data, pre-training, reconstructions, probes, fine-tuning from each start, report."""

from __future__ import annotations

import argparse
import io
import json
import os
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .make_data import make_demo_data
from .report import SCRATCH, STARTS, STORED, TRAINED, cost_table, results_table, save_report
from .screen import SCREEN, keep_log_off, step
from .tasks import SMOKE_DATA, SMOKE_FINETUNE, SMOKE_PRETRAIN, Task
from .training import CONFIGS, TrainingResult, run_training

with redirect_stdout(io.StringIO()):  # hosts print notes when they are imported
    from mm_ummae.apis import get_model, reconstruct
    from mm_ummae.resources import WEIGHTS_PREFIX
    from mm_ummae.visualization import image_sheet, save_loss_curve, save_reconstruction_sheet, save_sheet

    from .probe import probe

MAX_RUNS = 4  # at the same time; each takes up to 2 GB of memory


@dataclass(frozen=True)
class Demo:
    """Parts of a demo.

    Attributes:
        out (str): Default folder of the results; ``--size smoke`` appends ``-smoke``.
        pretraining (str): File in ``configs/demo``.
        num_reconstructions (int): Validation scenes on the sheet of reconstructions.
        probed (Mapping[str, Any]): Config of the backbone whose frozen features are probed.
        tasks (Mapping[str, Task]): Fine-tuning tasks by name.
        weights (str): Name of the stored weights of the same network, from which it is fine-tuned as well.
        stored (Path): Results of several seeds, beside which those of a single one are shown.
    """

    out: str
    pretraining: str
    num_reconstructions: int
    probed: Mapping[str, Any]
    tasks: Mapping[str, Task]
    weights: str
    stored: Path

    @property
    def weights_address(self) -> str:
        """Where MMEngine finds the stored weights."""
        return f'{WEIGHTS_PREFIX}{self.weights}'


def run_demo(demo: Demo, description: str, arguments: list[str] | None = None) -> None:
    """Make the data, run the chain for each seed, write and print the report.

    Args:
        demo (Demo): What is trained.
        description (str): For ``--help``.
        arguments (list[str], optional): Command line. Default: that of the process.
    Raises:
        ValueError: If ``--seeds`` is below 1.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument('--seeds', type=int, default=1, help='number of seeds, from 0 on (default: %(default)s)')
    parser.add_argument(
        '--size',
        choices=('full', 'smoke'),
        default='full',
        help='smoke only shows that every step works; the names of its default folders end in -smoke',
    )
    parser.add_argument('--resume', action='store_true', help='keep finished steps instead of re-running them')
    args = parse_args(parser, demo.out, arguments)
    if args.seeds < 1:
        raise ValueError(f'--seeds is {args.seeds}, but it must be at least 1')
    smoke, start = args.size == 'smoke', time.monotonic()
    keep_log_off()
    with SCREEN:
        with step('data'):
            data = make_demo_data(args.data, **(SMOKE_DATA if smoke else {}))
        runs = [
            run_seed(demo, seed, args.out / f'seed{seed}', data, smoke, force=not args.resume)
            for seed in range(args.seeds)
        ]
    seeds = [results for results, _ in runs]
    files = dict(data=data, **runs[0][1], report=args.out / 'report.md')
    listed = '\n'.join(f'* {name}: `{path}`' for name, path in files.items())
    stored = [] if smoke else json.loads(demo.stored.read_text())['seeds']
    text = f'{results_table(seeds, stored)}\n\n{cost_table(seeds)}\n\n{listed}'
    save_report(text, dict(seeds=seeds), args.out)
    print(f'\n{text}\n\n{(time.monotonic() - start) / 60:.1f} minutes in total')


def parse_args(parser: argparse.ArgumentParser, out: str, arguments: list[str] | None = None) -> argparse.Namespace:
    """Parse a command line with the options that all demos have: ``--out`` and ``--data``.

    Args:
        parser (argparse.ArgumentParser): Has the other options; with ``--size smoke`` the default folders differ.
        out (str): Default folder of the results.
        arguments (list[str], optional): Command line. Default: that of the process.
    Returns:
        argparse.Namespace: ``out`` and ``data`` are absolute.
    """
    parser.add_argument('--out', type=Path, help=f'folder of the results (default: {out})')
    parser.add_argument('--data', type=Path, help='folder of the data (default: data/demo)')
    args = parser.parse_args(arguments)
    suffix = '-smoke' if getattr(args, 'size', 'full') == 'smoke' else ''
    args.out = (args.out or Path(out + suffix)).resolve()
    args.data = (args.data or Path('data/demo' + suffix)).resolve()
    return args


def run_seed(
    demo: Demo, seed: int, folder: Path, data: Path, smoke: bool, force: bool
) -> tuple[dict[str, Any], dict[str, Path]]:
    """The chain for one seed.

    Args:
        demo (Demo): What is trained.
        seed (int): Of initial weights, order of the images and masks.
        folder (Path): Folder of this seed's runs and images.
        data (Path): From :func:`make_demo_data`.
        smoke (bool): Smallest size.
        force (bool): Re-run finished steps.
    Returns:
        tuple[dict[str, Any], dict[str, Path]]: ``seed``, ``accuracy`` and ``cost`` for the report, and files to look
        at by name.
    """
    pretrained, runs = run_trainings(demo, seed, folder, data, smoke, force)
    cost = {'pre-training': _cost(pretrained)}
    with step(f'seed {seed}, reconstructions'):
        model = get_model(CONFIGS / demo.pretraining, pretrained=pretrained.checkpoint)
        scenes = sorted((data / 'coco' / 'val2017').glob('*.jpg'))[: demo.num_reconstructions]
        sheet = save_reconstruction_sheet(reconstruct(model, scenes, seed=seed), folder / 'reconstruction.png')
        files = {'reconstructions': sheet, 'loss curve': save_loss_curve(pretrained.scalars, folder / 'loss.png')}
    with step(f'seed {seed}, frozen features'):
        checkpoints = {TRAINED: pretrained.checkpoint, SCRATCH: None, STORED: demo.weights_address}
        accuracy = {start: probe(demo.probed, checkpoints[start], data / 'imagenet', seed) for start in STARTS}
    for name, task in demo.tasks.items():
        for start in STARTS:
            accuracy[start] |= task.percent(runs[name, start].metrics)
        cost[name] = _cost(runs[name, TRAINED])
        if task.has_images:
            work_dir = _folder(folder, name, TRAINED)
            files[f'{name} predictions'] = save_prediction_sheet(work_dir, work_dir.with_suffix('.png'))
    return dict(seed=seed, accuracy=accuracy, cost=cost), files


def run_trainings(
    demo: Demo, seed: int, folder: Path, data: Path, smoke: bool, force: bool
) -> tuple[TrainingResult, dict[tuple[str, str], TrainingResult]]:
    """Pre-train, and fine-tune for each task from each start; the runs share the cores.

    Args:
        demo, seed, folder, data, smoke, force: See :func:`run_seed`.
    Returns:
        tuple[TrainingResult, dict[tuple[str, str], TrainingResult]]: The pre-training, and the fine-tunings by task and
        start.
    Raises:
        RuntimeError: If a run fails; those that have not begun are left out.
    """
    # Networks this small hardly gain from more threads. Only the runs from the new checkpoint wait for the pre-training
    cores = os.cpu_count() or 1
    workers = min(max(cores, 2), MAX_RUNS)
    options = dict(seed=seed, data=data, smoke=smoke, force=force, threads=max(cores // workers, 1))
    with ThreadPoolExecutor(workers) as pool:
        try:
            first = pool.submit(pretrain, demo.pretraining, folder=folder / 'pretrain', **options)
            tune = partial(fine_tune, folder=folder, **options)
            runs = {
                (name, start): pool.submit(tune, name, task, start, checkpoint)
                for name, task in demo.tasks.items()
                for start, checkpoint in ((SCRATCH, None), (STORED, demo.weights_address))
            }
            pretrained = first.result()
            for name, task in demo.tasks.items():
                runs[name, TRAINED] = pool.submit(tune, name, task, TRAINED, pretrained.checkpoint)
            return pretrained, {key: run.result() for key, run in runs.items()}
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def pretrain(
    config: str,
    seed: int,
    folder: Path,
    data: Path,
    smoke: bool = False,
    force: bool = False,
    threads: int | None = None,
) -> TrainingResult:
    """Run a pre-training; see :func:`run_seed` and, for ``threads``, :func:`run_training`."""
    options = {'randomness.seed': seed, 'train_dataloader.dataset.data_root': data / 'imagenet'}
    options |= SMOKE_PRETRAIN if smoke else {}
    return run_training(f'seed {seed}, pre-training', config, folder, options, force, threads)


def fine_tune(
    name: str,
    task: Task,
    start: str,
    checkpoint: str | None,
    *,
    seed: int,
    folder: Path,
    data: Path,
    smoke: bool,
    force: bool,
    threads: int,
) -> TrainingResult:
    """Fine-tune from a checkpoint, or from scratch without one; see :func:`run_seed`."""
    options = {'randomness.seed': seed, **task.data_options(data), **(SMOKE_FINETUNE if smoke else {})}
    options |= {'model.backbone.init_cfg.checkpoint': checkpoint} if checkpoint else {'model.backbone.init_cfg': None}
    if start == SCRATCH and task.scratch_lr is not None:
        options['optim_wrapper.optimizer.lr'] = task.scratch_lr
    title = f'seed {seed}, {name}, {start}'
    return run_training(title, task.config, _folder(folder, name, start), options, force, threads)


def _folder(folder: Path, name: str, start: str) -> Path:
    return folder / f'{slug(name)}_{slug(start)}'


def slug(name: str) -> str:
    """Folder name of a task or detector."""
    return name.lower().replace(' ', '-').replace('+', 'p')


def save_prediction_sheet(work_dir: Path, path: Path, limit: int = 6) -> Path:
    """Put the images of the host's visualization hook, ground truth and prediction, on one sheet.

    Args:
        work_dir (Path): Of a fine-tuning.
        path (Path): File to write.
        limit (int): Largest number of images. Default 6.
    Raises:
        FileNotFoundError: If the run wrote no image.
    """
    newest = max(work_dir.glob('*/vis_data'))  # folders are named by time: an earlier run left its own
    files = sorted(newest.glob('vis_image/*.png'))[:limit]
    if not files:
        raise FileNotFoundError(f'{newest} has no images of predictions in vis_image')
    # (H, 2 W, 3) -> two of (H, W, 3)
    pairs = [np.split(np.asarray(Image.open(file).convert('RGB')), 2, axis=1) for file in files]
    pairs += [[None, None]] * (len(pairs) % 2)
    rows = [first + second for first, second in zip(pairs[::2], pairs[1::2], strict=True)]
    return save_sheet(image_sheet(rows, ('ground truth', 'prediction') * 2), path)


def _cost(run: TrainingResult) -> dict[str, float]:
    return dict(seconds=run.seconds, peak_memory_gb=run.peak_memory_gb)
