"""What the demos of both methods share: command line, data, the chain of steps for each seed, report."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

from mm_ummae.apis.inference import load_model, reconstruct
from mm_ummae.visualization.sheets import save_loss_curve, save_reconstruction_sheet

from demo.report import save_report
from demo.tasks import SMOKE_DATA
from demo.training import Screen, TrainingResult
from demo.make_data import make_demo_data

# seed, folder, data, smallest size?, repeat what finished? -> results for the report, files to look at
Chain = Callable[[int, Path, Path, bool, bool], tuple[dict, dict[str, Path]]]


def parse_args(description: str, out: str, arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line of a demo.

    Args:
        description (str): For ``--help``.
        out (str): Folder of the results if the command line names none; the smallest size adds ``-smoke``.
        arguments (list[str], optional): Default: those of the process.
    Returns:
        argparse.Namespace: ``seeds``, ``smoke``, ``out``, ``data`` and ``resume``.
    Raises:
        ValueError: If there is no seed.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument('--seeds', type=int, default=1, help='how many, from 0 (default: %(default)s)')
    parser.add_argument(
        '--size', choices=('full', 'smoke'), default='full', help='smoke only shows that each step works'
    )
    parser.add_argument('--out', type=Path, help=f'folder of the results (default: {out} or {out}-smoke)')
    parser.add_argument('--data', type=Path, help='folder of the data (default: data/demo or data/demo-smoke)')
    parser.add_argument('--resume', action='store_true', help='keep steps that finished before')
    args = parser.parse_args(arguments)
    if args.seeds < 1:
        raise ValueError(f'--seeds is {args.seeds}, but at least one is needed')
    args.smoke = args.size == 'smoke'
    suffix = '-smoke' if args.smoke else ''
    args.out = (args.out or Path(out + suffix)).resolve()
    args.data = args.data or Path(f'data/demo{suffix}')
    return args


def show_reconstructions(
    title: str, config: Path, run: TrainingResult, data: Path, folder: Path, seed: int, number: int
) -> dict[str, Path]:
    """Draw what a pre-training reconstructs of scenes that it never saw, and its loss.

    Args:
        title (str): For the screen.
        config (Path): Of the pre-training.
        run (TrainingResult): What it left.
        data (Path): From :func:`make_demo_data`.
        folder (Path): Where the images go.
        seed (int): Of the masks.
        number (int): How many scenes.
    Returns:
        dict[str, Path]: Name for the report -> file.
    """
    screen = Screen(title)
    pictures = sorted((data / 'coco' / 'val2017').glob('*.jpg'))[:number]
    samples = reconstruct(load_model(config, run.checkpoint), pictures, seed=seed)
    files = {
        'reconstructions': save_reconstruction_sheet(samples, folder / 'reconstruction.png'),
        'loss curve': save_loss_curve(run.scalars, folder / 'loss.png'),
    }
    screen.close('written')
    return files


def run_demo(description: str, out: str, run_seed: Chain, arguments: list[str] | None = None) -> None:
    """Make the data, run a chain for each seed, write the report and print it.

    Args:
        description (str): See :func:`parse_args`.
        out (str): See :func:`parse_args`.
        run_seed (Chain): The steps.
        arguments (list[str], optional): See :func:`parse_args`.
    """
    args = parse_args(description, out, arguments)
    start = time.monotonic()
    screen = Screen('data')
    data = make_demo_data(args.data, **(SMOKE_DATA if args.smoke else {}))
    screen.close(f'in {data}')
    runs = [run_seed(seed, args.out / f'seed{seed}', data, args.smoke, not args.resume) for seed in range(args.seeds)]
    text = save_report([run for run, _ in runs], args.out, {**runs[0][1], 'this report': args.out / 'report.md'})
    print(f'\n{text}\n{(time.monotonic() - start) / 60:.1f} minutes in all')
