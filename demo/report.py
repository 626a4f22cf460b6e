"""The demos' table: pre-trained against scratch, over one or several seeds."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import mean, stdev

# Key in the results -> (name, what the number is)
ROWS = {
    'linear': ('linear probe, frozen features', 'top-1 %'),
    'knn': ('10 nearest neighbours, frozen features', 'top-1 %'),
    'top1': ('classification, fine-tuned', 'top-1 %'),
    'box_ap': ('Mask R-CNN', 'box AP'),
    'mask_ap': ('Mask R-CNN', 'mask AP'),
    'miou': ('UperNet', 'mIoU %'),
}
STARTS = ('pre-trained', 'scratch')


def results_table(seeds: list[dict]) -> str:
    """Markdown table of accuracies.

    Args:
        seeds (list[dict]): For each seed ``{start: {row: value}}`` under the key ``accuracy``; rows of ``ROWS``.
    Returns:
        str: One row for each task, with mean and standard deviation where there are several seeds, and in how many
        seeds the pre-trained start won.
    """
    lines = [f'| task | metric | {" | ".join(STARTS)} | pre-trained wins |', '|---|---|---|---|---|']
    for key, (task, metric) in ROWS.items():
        if key not in seeds[0]['accuracy'][STARTS[0]]:
            continue
        values = {start: [seed['accuracy'][start][key] for seed in seeds] for start in STARTS}
        wins = sum(a > b for a, b in zip(*values.values(), strict=True))
        cells = ' | '.join(spread(values[start]) for start in STARTS)
        lines.append(f'| {task} | {metric} | {cells} | {wins} of {len(seeds)} |')
    return '\n'.join(lines)


def cost_table(seeds: list[dict]) -> str:
    """Markdown table of seconds and peak memory of every run.

    Fine-tunings are those from pre-trained weights, with the one from scratch running beside them.
    """
    lines = ['| step | seconds | peak memory, GB |', '|---|---|---|']
    for step in seeds[0]['cost']:
        seconds, memory = ([seed['cost'][step][key] for seed in seeds] for key in ('seconds', 'peak_memory_gb'))
        lines.append(f'| {step} | {mean(seconds):.0f} | {mean(memory):.2f} |')
    return '\n'.join(lines)


def save_report(seeds: list[dict], folder: Path, files: dict[str, Path]) -> str:
    """Write ``report.md`` and ``report.json``, and return the text.

    Args:
        seeds (list[dict]): Results of each seed, with the keys ``accuracy`` and ``cost``.
        folder (Path): Where to write.
        files (dict[str, Path]): What else the user may want to look at.
    """
    where = '\n'.join(f'* {name}: `{path}`' for name, path in files.items())
    text = f'{results_table(seeds)}\n\n{cost_table(seeds)}\n\n{where}\n'
    folder.mkdir(parents=True, exist_ok=True)
    (folder / 'report.md').write_text(text)
    (folder / 'report.json').write_text(json.dumps(seeds, indent=2))
    return text


def spread(values: list[float], digits: int = 1, sign: str = '') -> str:
    """Mean and, of several values, standard deviation; a dash where there are none.

    Args:
        values (list[float]): One a seed.
        digits (int): Behind the point. Default 1.
        sign (str): ``+`` for a mean that tells its sign. Default ''.
    """
    if not values:
        return '–'
    text = f'{mean(values):{sign}.{digits}f}'
    return text + (f' ± {stdev(values):.{digits}f}' if len(values) > 1 else '')
