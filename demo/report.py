"""Tables and files of the demos' results."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import product
from math import sqrt
from pathlib import Path
from statistics import mean, stdev, variance
from typing import Any

# Key of the results -> task, metric
ROWS = {
    'linear': ('linear probe, frozen features', 'top-1 %'),
    'knn': ('10 nearest neighbours, frozen features', 'top-1 %'),
    'top1': ('classification, fine-tuned', 'top-1 %'),
    'box_ap': ('Mask R-CNN', 'box AP'),
    'mask_ap': ('Mask R-CNN', 'mask AP'),
    'miou': ('UperNet', 'mIoU %'),
}
RESULTS = Path(__file__).parent / 'results'
STARTS = TRAINED, SCRATCH, STORED = ('pre-trained', 'scratch', 'stored weights')
WINS = {TRAINED: 'pre-trained wins', STORED: 'stored weights win'}


def results_table(seeds: Sequence[dict], stored: Sequence[dict] = ()) -> str:
    """Markdown table of accuracies: trained weights, of this run and stored ones, against scratch.

    Args:
        seeds (Sequence[dict]): Result of each seed; ``accuracy`` is ``{start: {key of ROWS: value}}``.
        stored (Sequence[dict]): Several seeds of an earlier run. By how much the differences between the starts vary
            among them tells what a single seed shows. Default: none.
    Returns:
        str: One row for each task, with mean and standard deviation over the seeds, in how many of them each start is
        ahead of scratch, and by how much.
    """
    starts = [start for start in STARTS if start in seeds[0]['accuracy']]
    compared = [start for start in starts if start != SCRATCH]
    head = ['task', 'metric', *starts, *(WINS[start] for start in compared)]
    lines = [f'| {" | ".join(head)} |', '|---' * len(head) + '|']
    for key, (task, metric) in ROWS.items():
        if key in seeds[0]['accuracy'][TRAINED]:
            cells = [spread([seed['accuracy'][start][key] for seed in seeds]) for start in starts]
            cells += [_wins(leads(seeds, key, start), leads(stored, key, start)) for start in compared]
            lines.append(f'| {" | ".join([task, metric, *cells])} |')
    return '\n'.join(lines)


def claims_table(seeds: Sequence[dict]) -> str:
    """Markdown table of what holds: starts that win in every seed, with a mean lead beyond twice the pooled deviation.

    Args:
        seeds (Sequence[dict]): Results of at least two seeds, see :func:`results_table`.
    Returns:
        str: One row for each task and start.
    """
    lines = ['| task | metric | start | from it | from scratch | wins |', '|---|---|---|---|---|---|']
    for (key, (task, metric)), start in product(ROWS.items(), (TRAINED, STORED)):
        found = leads(seeds, key, start)
        if len(found) < len(seeds) or min(found) <= 0:
            continue
        values, scratch = ([seed['accuracy'][name][key] for seed in seeds] for name in (start, SCRATCH))
        if mean(found) > 2 * sqrt((variance(values) + variance(scratch)) / 2):
            cells = [task, metric, start, spread(values), spread(scratch), _wins(found, ())]
            lines.append(f'| {" | ".join(cells)} |')
    return '\n'.join(lines)


def leads(seeds: Sequence[dict], key: str, start: str) -> list[float]:
    """By how much a start is ahead of random weights in each seed that has the metric of both."""
    pairs = [[seed['accuracy'].get(name, {}).get(key) for name in (start, SCRATCH)] for seed in seeds]
    return [ahead - behind for ahead, behind in pairs if None not in (ahead, behind)]


def _wins(found: Sequence[float], others: Sequence[float]) -> str:
    """Number of wins and mean lead, with a note on a single seed whose lead is below the spread of others."""
    text = f'{sum(lead > 0 for lead in found)} of {len(found)}, by {spread(found, sign="+")}'
    if len(found) == 1 and len(others) > 1 and abs(found[0]) < stdev(others):
        text += f', within the spread of {stdev(others):.1f} between seeds'
    return text


def cost_table(seeds: Sequence[dict]) -> str:
    """Markdown table of seconds and peak memory of each run, the mean over the seeds."""
    lines = ['| step | seconds | peak memory, GB |', '|---|---|---|']
    for name in seeds[0]['cost']:
        seconds, memory = ([seed['cost'][name][key] for seed in seeds] for key in ('seconds', 'peak_memory_gb'))
        lines.append(f'| {name} | {mean(seconds):.0f} | {mean(memory):.2f} |')
    return '\n'.join(lines)


def spread(values: Sequence[float], digits: int = 1, sign: str = '') -> str:
    """Mean and, of several values, standard deviation; a dash if there are none.

    Args:
        values (Sequence[float]): One for each seed.
        digits (int): Decimals. Default 1.
        sign (str): ``+`` to write the sign of a positive mean. Default ''.
    """
    if not values:
        return '–'
    text = f'{mean(values):{sign}.{digits}f}'
    return text + (f' ± {stdev(values):.{digits}f}' if len(values) > 1 else '')


def save_report(text: str, results: dict[str, Any], folder: Path) -> None:
    """Write ``report.md``, and ``report.json`` with machine, versions, commit and date."""
    write_json(folder / 'report.json', dict(environment=machine()) | results)
    (folder / 'report.md').write_text(text + '\n')


def machine() -> dict[str, Any]:
    """Machine, versions, commit and time of the results."""
    from mm_ummae.analysis import environment  # late: hosts print notes when they are imported

    return environment('cpu')


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file; it is complete or does not exist."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f'.{path.name}.part')
    part.write_text(json.dumps(content, indent=2) + '\n')
    part.replace(path)
