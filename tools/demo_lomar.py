"""LoMaR in the demo: pre-train, look at what its windows show, fine-tune classification from it and from scratch.

Everything runs through tools/train.py and configs/demo, as in tools/demo.py.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from mm_ummae.demo.probe import probe
from mm_ummae.demo.report import STARTS, save_report
from mm_ummae.demo.tasks import (
    LOMAR_TASK,
    PRETRAIN_LOMAR,
    PROBED_LOMAR,
    SMOKE_DATA,
    SMOKE_FINETUNE,
    SMOKE_PRETRAIN,
)
from mm_ummae.demo.training import Screen, run_training
from mm_ummae.demo.writers import make_demo_data
from mm_ummae.inference import load_model, reconstruct
from mm_ummae.visualization import save_loss_curve, save_reconstruction_sheet

ROOT = Path(__file__).resolve().parents[1]
TRAIN = ROOT / 'tools' / 'train.py'
CONFIGS = ROOT / 'configs' / 'demo'


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--seeds', type=int, default=1, help='how many, from 0 (default: %(default)s)')
    parser.add_argument(
        '--size', choices=('full', 'smoke'), default='full', help='smoke only shows that each step works'
    )
    parser.add_argument('--out', type=Path, help='folder of the results (default: work_dirs/demo-lomar, or ...-smoke)')
    parser.add_argument('--data', type=Path, help="folder of the data (default: make demo's, data/demo or ...-smoke)")
    parser.add_argument('--resume', action='store_true', help='keep steps that finished before')
    args = parser.parse_args(arguments)
    if args.seeds < 1:
        raise ValueError(f'--seeds is {args.seeds}, but at least one is needed')
    suffix = '-smoke' if args.size == 'smoke' else ''
    args.out = (args.out or Path(f'work_dirs/demo-lomar{suffix}')).resolve()
    args.data = args.data or Path(f'data/demo{suffix}')
    return args


def run_seed(seed: int, folder: Path, data: Path, smoke: bool, again: bool) -> tuple[dict, dict[str, Path]]:
    """The whole chain for one seed.

    Args:
        seed (int): Of initial weights, order of the pictures, windows and masks.
        folder (Path): Where everything of this seed goes.
        data (Path): From :func:`make_demo_data`.
        smoke (bool): The smallest size.
        again (bool): Repeat steps that finished before.
    Returns:
        tuple[dict, dict[str, Path]]: ``accuracy`` and ``cost`` for the report, and the files to look at.
    """
    name, config, common = f'[seed {seed}] ', CONFIGS / PRETRAIN_LOMAR, [f'randomness.seed={seed}']
    options = [*common, f'train_dataloader.dataset.data_root={data / "imagenet"}', *(SMOKE_PRETRAIN if smoke else ())]
    runs = {'pre-training': run_training(f'{name}pre-training', TRAIN, config, folder / 'pretrain', options, again)}
    checkpoint = runs['pre-training'].checkpoint

    screen = Screen(f'{name}reconstructions')
    # Scenes that pre-training never saw
    pictures = sorted((data / 'coco' / 'val2017').glob('*.jpg'))[:4]
    samples = reconstruct(load_model(config, checkpoint), pictures, seed=seed)
    files = {
        'reconstructions': save_reconstruction_sheet(samples, folder / 'reconstruction.png'),
        'loss curve': save_loss_curve(runs['pre-training'].scalars, folder / 'loss.png'),
    }
    screen.close('written')

    screen = Screen(f'{name}frozen features')
    weights = dict(zip(STARTS, (checkpoint, None), strict=True))
    accuracy = {start: probe(PROBED_LOMAR, weights[start], data / 'imagenet', seed) for start in STARTS}
    screen.close('probed')
    options = [*common, *(SMOKE_FINETUNE if smoke else ()), *LOMAR_TASK.data_options(data)]
    starts = (f'model.backbone.init_cfg.checkpoint={checkpoint}', 'model.backbone.init_cfg=None')
    for start, option in zip(STARTS, starts, strict=True):
        title, work_dir = f'classification, {start}', folder / f'classification_{start}'
        runs[title] = run_training(
            f'{name}{title}', TRAIN, CONFIGS / LOMAR_TASK.config, work_dir, [*options, option], again
        )
        accuracy[start] |= LOMAR_TASK.percent(runs[title].metrics)
    cost = {step: dict(seconds=run.seconds, peak_memory_gb=run.peak_memory_gb) for step, run in runs.items()}
    return dict(seed=seed, accuracy=accuracy, cost=cost), files


def main(arguments: list[str] | None = None) -> None:
    """Run the demo and print its table."""
    args = parse_args(arguments)
    start, smoke = time.monotonic(), args.size == 'smoke'
    screen = Screen('data')
    data = make_demo_data(args.data, **(SMOKE_DATA if smoke else {}))
    screen.close(f'in {data}')
    runs = [run_seed(seed, args.out / f'seed{seed}', data, smoke, not args.resume) for seed in range(args.seeds)]
    text = save_report([run for run, _ in runs], args.out, {**runs[0][1], 'this report': args.out / 'report.md'})
    print(f'\n{text}\n{(time.monotonic() - start) / 60:.1f} minutes in all')


if __name__ == '__main__':
    main()
