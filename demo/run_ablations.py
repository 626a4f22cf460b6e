"""Run the ablations of docs/ablations.md: decoder positions, Secondary Masking, UM-MAE against SimMIM.

On the demo's data with the demo's network; about half an hour a seed on one core. Finished steps are kept, so a second
call goes on where the first one stopped.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from demo.ablations import ARMS, FINE_TUNINGS, ablation_table, pretrain_epochs, run_arm, save_ablation_plot, seconds_per_step
from demo.make_data import make_demo_data

ROOT = Path(__file__).resolve().parents[1]


def main(arguments: list[str] | None = None) -> None:
    """Run what is missing, then write table, plot and numbers."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2], help='default: 0 1 2')
    parser.add_argument('--epochs', type=int, default=10, help='of pre-training (default: %(default)s)')
    parser.add_argument('--arms', nargs='+', choices=ARMS, default=list(ARMS), help='what to run (default: all)')
    parser.add_argument(
        '--tasks', nargs='*', choices=FINE_TUNINGS, default=FINE_TUNINGS, help='what to fine-tune (default: both)'
    )
    parser.add_argument('--out', type=Path, default=Path('work_dirs/ablations'), help='default: %(default)s')
    parser.add_argument('--data', type=Path, default=Path('data/demo'), help='default: %(default)s')
    args = parser.parse_args(arguments)
    if args.epochs < 1:
        raise ValueError(f'--epochs is {args.epochs}, but at least one is needed')
    out = args.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    data = make_demo_data(args.data).resolve()

    timing = out / 'seconds_per_step.json'
    if not timing.exists():
        timing.write_text(json.dumps(seconds_per_step(ROOT / 'configs' / 'demo'), indent=2))
    seconds = json.loads(timing.read_text())
    epochs = {slug: pretrain_epochs(arm, args.epochs, seconds) for slug, arm in ARMS.items()}
    # What earlier calls measured stays, so that arms and tasks can be run one after the other.
    numbers = out / 'ablations.json'
    seeds = json.loads(numbers.read_text())['seeds'] if numbers.exists() else {}
    for seed in args.seeds:
        for slug in args.arms:
            measured = run_arm(slug, seed, epochs[slug], out / f'seed{seed}' / slug, data, ROOT, tuple(args.tasks))
            seeds.setdefault(str(seed), {}).setdefault(slug, {}).update(measured)
            results = dict(seeds=seeds, epochs=epochs, seconds_per_step=seconds)
            numbers.write_text(json.dumps(results, indent=2))
    text = ablation_table(list(seeds.values()), epochs)
    (out / 'ablations.md').write_text(text + '\n')
    save_ablation_plot(list(seeds.values()), out / 'ablations.png')
    print(f'\n{text}\n\nin {out}')


if __name__ == '__main__':
    main()
