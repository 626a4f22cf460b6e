"""LoMaR in the demo: pre-train, look at what its windows show, fine-tune classification from it and from scratch.

Everything runs through tools/train.py and configs/demo, as in tools/demo.py.
"""

from __future__ import annotations

from pathlib import Path

from demo.chain import run_demo, show_reconstructions
from demo.probe import probe
from demo.report import STARTS
from demo.tasks import LOMAR_TASK, PRETRAIN_LOMAR, PROBED_LOMAR, SMOKE_FINETUNE, SMOKE_PRETRAIN
from demo.training import Screen, run_training

ROOT = Path(__file__).resolve().parents[1]
TRAIN = ROOT / 'tools' / 'train.py'
CONFIGS = ROOT / 'configs' / 'demo'


def run_seed(seed: int, folder: Path, data: Path, smoke: bool, again: bool) -> tuple[dict, dict[str, Path]]:
    """The whole chain for one seed.

    Args:
        seed (int): Of initial weights, order of the images, windows and masks.
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

    files = show_reconstructions(f'{name}reconstructions', config, runs['pre-training'], data, folder, seed, number=4)
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
    run_demo(__doc__.splitlines()[0], 'work_dirs/demo-lomar', run_seed, arguments)


if __name__ == '__main__':
    main()
