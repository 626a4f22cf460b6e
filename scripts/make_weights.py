#!/usr/bin/env python3
"""Pre-train a small network on the demo's images, and store its weights, its log and the curve of its probe.

    python -m demo.make_data
    python scripts/make_weights.py um-swin-test

Writes weights/NAME.pth in half precision, demo/results/weights/NAME.json and NAME_log.json, and docs/images/weights.png
of all weights. A finished training in the work folder is not repeated. An hour or two on one core.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path
from typing import Any, NamedTuple

import torch
from matplotlib.figure import Figure

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from demo.probe import probe  # noqa: E402
from demo.report import RESULTS, machine, write_json  # noqa: E402
from demo.tasks import PROBED, PROBED_LOMAR, PROBED_PVT  # noqa: E402
from demo.training import TrainingResult, run_training  # noqa: E402
from mm_ummae.checkpoints import read_checkpoint, write_checkpoint  # noqa: E402


class Recipe(NamedTuple):
    """How weights are made.

    Attributes:
        config (str): File in ``configs/small``.
        probed (dict): Config of the backbone whose frozen features are probed.
    """

    config: str
    probed: dict[str, Any]


RECIPES = {
    'um-swin-test': Recipe('ummae_swin-test_1xb64-coslr-100e_demo-128px.py', PROBED),
    'um-pvt-test': Recipe('ummae_pvt-test_1xb32-coslr-100e_demo-128px.py', PROBED_PVT),
    'lomar-vit-test': Recipe('lomar_vit-test_1xb32-coslr-100e_demo-128px.py', PROBED_LOMAR),
}
LOGS = RESULTS / 'weights'


def main() -> None:
    """Train, probe and store."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('name', choices=RECIPES)
    parser.add_argument('--data', type=Path, default=ROOT / 'data' / 'demo', help='default: data/demo')
    parser.add_argument('--work-dir', type=Path, help='default: work_dirs/weights/NAME')
    args = parser.parse_args()
    torch.set_num_threads(1)
    folder = (args.work_dir or ROOT / 'work_dirs' / 'weights' / args.name).resolve()
    data = args.data.resolve() / 'imagenet'
    record = folder / 'environment.json'
    if not record.exists():  # that of the training, not of a later day
        write_json(record, machine())
    options = {'train_dataloader.dataset.data_root': data}
    run = run_training(args.name, f'../small/{RECIPES[args.name].config}', folder, options, threads=1)
    store(args.name, run, json.loads(record.read_text()), data)


def store(name: str, run: TrainingResult, environment: dict[str, Any], data: Path) -> None:
    """Probe all checkpoints of a finished training, and write the files.

    Args:
        name (str): Key of :data:`RECIPES`.
        run (TrainingResult): The training.
        environment (dict): Machine, versions and commit of the training.
        data (Path): Folder of the labelled images, with ``train`` and ``val``.
    """
    recipe = RECIPES[name]
    last = Path(run.checkpoint)
    checkpoints = {int(path.stem.removeprefix('epoch_')): path for path in last.parent.glob('epoch_*.pth')}
    curve = []
    for epoch, path in [(0, None), *sorted(checkpoints.items())]:
        curve.append(dict(epoch=epoch, **probe(recipe.probed, path and str(path), data, seed=0)))
        print(curve[-1], flush=True)

    content = read_checkpoint(last)
    facts = dict(recipe=f'configs/small/{recipe.config}', seed=content['meta']['seed'], epochs=max(checkpoints))
    meta = dict(name=name, mm_ummae_version=environment['versions']['mm_ummae'], commit=environment['commit'], **facts)
    state = {key: value.half() if value.is_floating_point() else value for key, value in content['state_dict'].items()}
    write_checkpoint(dict(meta=meta, state_dict=state), ROOT / 'weights' / f'{name}.pth')
    facts |= dict(parameters=sum(value.numel() for value in state.values()))
    write_json(LOGS / f'{name}.json', dict(environment=environment, **facts, seconds=run.seconds, curve=curve))
    shutil.copy(run.scalars, LOGS / f'{name}_log.json')
    draw_curves(ROOT / 'docs' / 'images' / 'weights.png')


def draw_curves(path: Path) -> None:
    """Draw loss and linear probe of all stored weights over the epochs."""
    figure = Figure(figsize=(8, 3), dpi=100, layout='tight')
    losses, probes = figure.subplots(1, 2)
    for name in RECIPES:
        if not (LOGS / f'{name}.json').exists():
            continue
        run = json.loads((LOGS / f'{name}.json').read_text())
        lines = [json.loads(line) for line in (LOGS / f'{name}_log.json').read_text().splitlines()]
        steps = [(line['step'], line['loss']) for line in lines if 'loss' in line]
        losses.plot([run['epochs'] * step / steps[-1][0] for step, _ in steps], [loss for _, loss in steps], label=name)
        probes.plot(*zip(*((point['epoch'], point['linear']) for point in run['curve']), strict=True), '.-', label=name)
    losses.set(xlabel='epoch', ylabel='reconstruction loss')
    probes.set(xlabel='epoch', ylabel='linear probe, top-1 %')
    probes.legend()
    for axis in (losses, probes):
        axis.grid(alpha=0.3)
    figure.savefig(path)


if __name__ == '__main__':
    main()
