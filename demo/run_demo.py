"""The demo: make data, pre-train, look at reconstructions, fine-tune from them and from scratch, compare.

Everything runs through tools/train.py and configs/demo, so each step can be repeated by hand; the folder of a step
keeps what it printed in output.txt.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np

from demo.chain import run_demo, show_reconstructions
from demo.probe import probe
from demo.tasks import PRETRAIN, PROBED, SMOKE_FINETUNE, SMOKE_PRETRAIN, TASKS
from demo.training import Screen, run_training

ROOT = Path(__file__).resolve().parents[1]
TRAIN = ROOT / 'tools' / 'train.py'
CONFIGS = ROOT / 'configs' / 'demo'
SLUGS = {task: task.lower().replace(' ', '-') for task in TASKS}  # folder names


def prediction_sheet(work_dir: Path, out: Path, limit: int = 6) -> Path:
    """Tile the prediction images that the host's visualisation hook left (truth on the left, prediction right)."""
    newest = max(work_dir.glob('*/vis_data'))  # an earlier run in the same folder left its own
    pictures = sorted(newest.glob('vis_image/*.png'))[:limit]
    if not pictures:
        raise FileNotFoundError(f'no prediction images below {work_dir}')
    images = [cv2.resize(cv2.imread(str(path)), (512, 256), interpolation=cv2.INTER_NEAREST) for path in pictures]
    if len(images) % 2:
        images.append(np.full_like(images[0], 255))
    rows = [np.hstack(images[i : i + 2]) for i in range(0, len(images), 2)]
    cv2.imwrite(str(out), np.vstack(rows))
    return out


def run_seed(seed: int, folder: Path, data: Path, smoke: bool, again: bool) -> tuple[dict, dict[str, Path]]:
    """The whole chain for one seed.

    Args:
        seed (int): Of initial weights, order of the images and masks.
        folder (Path): Where everything of this seed goes.
        data (Path): From :func:`make_demo_data`.
        smoke (bool): The smallest size.
        again (bool): Repeat steps that finished before.
    Returns:
        tuple[dict, dict[str, Path]]: ``accuracy`` and ``cost`` for the report, and the files to look at.
    """
    name = f'[seed {seed}] '
    common = [f'randomness.seed={seed}']
    pretrained = run_training(
        f'{name}pre-training',
        TRAIN,
        CONFIGS / PRETRAIN,
        folder / 'pretrain',
        [
            *common,
            f'train_dataloader.dataset.data_root={data / "imagenet"}',
            *(SMOKE_PRETRAIN if smoke else ()),
        ],
        again,
    )
    cost = {'pre-training': dict(seconds=pretrained.seconds, peak_memory_gb=pretrained.peak_memory_gb)}

    title = f'{name}reconstructions'
    files = show_reconstructions(title, CONFIGS / PRETRAIN, pretrained, data, folder, seed, number=6)

    starts = {
        'pre-trained': f'model.backbone.init_cfg.checkpoint={pretrained.checkpoint}',
        'scratch': 'model.backbone.init_cfg=None',
    }
    screen = Screen(f'{name}frozen features')
    accuracy = {
        start: probe(PROBED, pretrained.checkpoint if start == 'pre-trained' else None, data / 'imagenet', seed)
        for start in starts
    }
    screen.close('probed')
    # Both starts side by side, each with half of the cores: networks this small hardly gain from more.
    threads = max((os.cpu_count() or 1) // len(starts), 1)
    for name_of_task, task in TASKS.items():
        options = [*common, *(SMOKE_FINETUNE if smoke else ()), *task.data_options(data)]
        work_dirs = {start: folder / f'{SLUGS[name_of_task]}_{start}' for start in starts}
        with ThreadPoolExecutor() as pool:
            runs = {
                start: pool.submit(
                    run_training,
                    f'{name}{name_of_task}, {start}',
                    TRAIN,
                    CONFIGS / task.config,
                    work_dirs[start],
                    [*options, option],
                    again,
                    threads,
                )
                for start, option in starts.items()
            }
            results = {start: run.result() for start, run in runs.items()}
        for start, result in results.items():
            accuracy[start] |= task.percent(result.metrics)
        result = results['pre-trained']
        cost[name_of_task] = dict(seconds=result.seconds, peak_memory_gb=result.peak_memory_gb)
        if name_of_task != 'classification':
            sheet = folder / f'{SLUGS[name_of_task]}.png'
            files[f'{name_of_task} predictions'] = prediction_sheet(work_dirs['pre-trained'], sheet)
    return dict(seed=seed, accuracy=accuracy, cost=cost), files


def main(arguments: list[str] | None = None) -> None:
    """Run the demo and print its table."""
    run_demo(__doc__.splitlines()[0], 'work_dirs/demo', run_seed, arguments)


if __name__ == '__main__':
    main()
