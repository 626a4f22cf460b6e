"""Pre-training in one command against the demo's config: are the settings that follow from the data as good?

    python -m demo.one_command [--seeds 0 1 2]

For each seed: the demo's pre-training, and ``python -m mm_ummae pretrain`` on the same images with nothing else but the
model and the seed; then the linear probe of both. 25 minutes per seed on one core; finished runs are kept, and another
call continues.
"""

from __future__ import annotations

import argparse
import io
import json
from collections.abc import Mapping
from contextlib import redirect_stdout
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from mmengine.config import Config

from .chain import parse_args, pretrain
from .make_data import make_demo_data
from .report import machine, spread, write_json
from .screen import SCREEN, keep_log_off, step
from .tasks import PRETRAIN, PROBED, SMOKE_DATA
from .training import TrainingResult, run_command

with redirect_stdout(io.StringIO()):  # hosts print notes when they are imported
    from .probe import MEAN, STD, probe

MODEL = 'um-swin-test'
CONFIG, COMMAND = 'config', 'command'
ARMS = {CONFIG: "the demo's config", COMMAND: 'one command'}
# Key of a seed's results -> title. Losses are left out: with other statistics the targets are others
MEASURES = {
    'linear': 'linear probe, top-1 %',
    'linear_own': "the same, images normalised with the run's own mean and std",
    'knn': '10 nearest neighbours, top-1 %',
    'knn_own': "the same, with the run's own mean and std",
}
SETTINGS = {'epochs': 'epochs', 'batch': 'images per update', 'lr': 'learning rate', 'mean': 'mean', 'std': 'std'}


def run_arm(key: str, seed: int, folder: Path, data: Path, smoke: bool) -> dict[str, Any]:
    """Pre-train and probe an arm.

    Args:
        key (str): Key of ``ARMS``.
        seed (int): Of initial weights, order of the images and masks.
        folder (Path): Folder of its run.
        data (Path): From :func:`make_demo_data`.
        smoke (bool): A single epoch.
    Returns:
        dict[str, Any]: ``loss``, ``MEASURES`` and, under ``settings``, ``SETTINGS``. Those that end in ``_own`` are
        measured with the mean and std that the run had, the others with ImageNet's, as the demo's probe does.
    """
    run, config = train_arm(key, seed, folder, data, smoke)
    chosen = settings_of(config)
    with step(f'seed {seed}, {ARMS[key]}, frozen features'):
        found = probe(PROBED, run.checkpoint, data / 'imagenet', seed)
        own = found
        if (chosen['mean'], chosen['std']) != (list(MEAN), list(STD)):
            own = probe(PROBED, run.checkpoint, data / 'imagenet', seed, mean=chosen['mean'], std=chosen['std'])
    found = found | {f'{name}_own': value for name, value in own.items()}
    return dict(loss=run.metrics['loss'], **found, settings=chosen)


def train_arm(key: str, seed: int, folder: Path, data: Path, smoke: bool) -> tuple[TrainingResult, Path]:
    """Pre-train an arm, see :func:`run_arm`; returns the run and its config."""
    if key == CONFIG:
        return pretrain(PRETRAIN, seed, folder, data, smoke, threads=1), folder / PRETRAIN
    options = ['--seed', str(seed), *(['--epochs', '1'] if smoke else [])]
    images = data / 'imagenet' / 'unlabelled'
    run = run_command(f'seed {seed}, {ARMS[key]}', images, folder, MODEL, options, threads=1)
    return run, folder / 'run' / 'config.py'


def settings_of(path: Path) -> dict[str, Any]:
    """``SETTINGS`` of a pre-training config on one device."""
    config = Config.fromfile(path)
    optimizer, preprocessor = config.optim_wrapper, config.model.data_preprocessor
    return dict(
        epochs=config.train_cfg.max_epochs,
        batch=config.train_dataloader.batch_size * optimizer.get('accumulative_counts', 1),
        lr=optimizer.optimizer.lr,
        mean=list(preprocessor.mean),
        std=list(preprocessor.std),
    )


def table(content: Mapping[str, Any]) -> str:
    """Markdown table of a results file: settings and measures of both arms, differences, and verdicts."""
    seeds = [seed for seed in content['seeds'].values() if set(seed) == set(ARMS)]
    pair = [[seed[key] for seed in seeds] for key in ARMS]
    lines = [f'| | {" | ".join(ARMS.values())} | difference, seed by seed |', '|---|---|---|---|']
    for name, title in SETTINGS.items():
        cells = [_text(seeds[0]['settings'][name]) for seeds in pair]
        lines.append(f'| {title} | {" | ".join(cells)} | |')
    for name, title in MEASURES.items():
        values = [[seed[name] for seed in seeds] for seeds in pair]
        gaps = [second - first for first, second in zip(*values, strict=True)]
        cells = [*(spread(each) for each in values), spread(gaps, sign='+')]
        lines.append(f'| {title} | {" | ".join(cells)} |')
    verdicts = [
        f'{how}, {verdict(*([seed[name] for seed in seeds] for seeds in pair))}'
        for name, how in {
            'linear': "With images normalised by ImageNet's mean and std, as the demo probes",
            'linear_own': 'With those of the run',
        }.items()
    ]
    return '\n'.join([*lines, '', *verdicts])


def verdict(config: list[float], command: list[float]) -> str:
    """Whether the command's linear probe reaches that of the config, whose spread over the seeds is the measure."""
    gap = mean(command) - mean(config)
    text = f'the linear probe of {ARMS[COMMAND]} is {gap:+.1f} points from that of {ARMS[CONFIG]}'
    if len(config) < 2:
        return f'{text}, in one seed.'
    deviation = stdev(config)
    reached = 'reaches it within' if gap >= -deviation else 'does not reach it: it is below by more than'
    return f'{text} and {reached} its standard deviation of {deviation:.1f} over {len(config)} seeds.'


def _text(value: Any) -> str:
    if isinstance(value, list):
        return ', '.join(f'{each:.1f}' for each in value)
    return f'{value:g}'


def main(arguments: list[str] | None = None) -> None:
    """Run what is missing; write and print the table and the numbers."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2], help='default: 0 1 2')
    parser.add_argument(
        '--size', choices=('full', 'smoke'), default='full', help='smoke only shows that every step works'
    )
    args = parse_args(parser, 'work_dirs/one_command', arguments)
    smoke, record = args.size == 'smoke', args.out / 'one_command.json'
    results = json.loads(record.read_text()) if record.exists() else dict(seeds={})
    keep_log_off()
    with SCREEN:
        with step('data'):
            data = make_demo_data(args.data, **(SMOKE_DATA if smoke else {}))
        results['environment'] = machine()
        for seed in args.seeds:
            for key in ARMS:
                measured = run_arm(key, seed, args.out / f'seed{seed}' / key, data, smoke)
                results['seeds'].setdefault(str(seed), {})[key] = measured
                write_json(record, results)
    text = table(results)
    (args.out / 'one_command.md').write_text(text + '\n')
    print(f'\n{text}\n\nresults in {args.out}')


if __name__ == '__main__':
    main()
