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
from demo.training import CONFIGS, run_training  # noqa: E402
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
    'um-pvt-test': Recipe('ummae_pvt-test_1xb64-coslr-100e_demo-128px.py', PROBED_PVT),
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
    recipe, data = RECIPES[args.name], args.data.resolve() / 'imagenet'
    folder = (args.work_dir or ROOT / 'work_dirs' / 'weights' / args.name).resolve()

    torch.set_num_threads(1)
    record = folder / 'environment.json'
    if not record.exists():  # that of the training, not of a later day
        write_json(record, machine())
    options = {'train_dataloader.dataset.data_root': data}
    config = str(Path('..') / 'small' / recipe.config)
    assert (CONFIGS / config).is_file()
    run = run_training(args.name, config, folder, options, threads=1)
    curve = [dict(epoch=0, **probe(recipe.probed, None, data, seed=0))]
    checkpoints = {int(path.stem.removeprefix('epoch_')): path for path in folder.glob('epoch_*.pth')}
    for epoch, path in sorted(checkpoints.items()):
        curve.append(dict(epoch=epoch, **probe(recipe.probed, str(path), data, seed=0)))
        print(curve[-1], flush=True)

    environment = json.loads(record.read_text())
    last = max(checkpoints)
    content = read_checkpoint(checkpoints[last])
    facts = dict(recipe=f'configs/small/{recipe.config}', seed=content['meta']['seed'], epochs=last)
    meta = dict(name=args.name, mm_ummae_version=environment['versions']['mm_ummae'], commit=environment['commit'])
    state = {name: value.half() if value.is_floating_point() else value for name, value in content['state_dict'].items()}
    write_checkpoint(dict(meta=meta | facts, state_dict=state), ROOT / 'weights' / f'{args.name}.pth')
    shutil.copy(run.scalars, LOGS / f'{args.name}_log.json')
    cost = dict(seconds=run.seconds, peak_memory_gb=run.peak_memory_gb)
    write_json(LOGS / f'{args.name}.json', dict(environment=environment, **facts, **cost, curve=curve))
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
