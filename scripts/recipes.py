"""Tables of the recipes in the metafiles of model-index.yml: of methods, and of all recipes."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import yaml

COLUMNS = ('method', 'backbone', 'data', 'image size', 'schedule', 'published result', 'config', 'trained here')


def read_entries(root: Path) -> list[dict]:
    """Models of all metafiles in the order of the index, each with its collection under ``Collection``."""
    entries = []
    for file in yaml.safe_load((root / 'model-index.yml').read_text())['Import']:
        content = yaml.safe_load((root / file).read_text())
        collections = {collection['Name']: collection for collection in content['Collections']}
        for entry in content['Models']:
            entries.append(dict(entry, Collection=collections[entry['In Collection']]))
    return entries


def published_result(metadata: dict) -> str:
    """The paper's numbers; top-1 is that after fine-tuning and stands with the pre-training."""
    if 'Published Box AP' in metadata:
        return f'{metadata["Published Box AP"]} box AP, {metadata["Published Mask AP"]} mask AP'
    if 'Published Top 1 Accuracy' not in metadata:
        return '–'
    hours = metadata.get('Published Training Hours')
    return f'{metadata["Published Top 1 Accuracy"]} % top-1' + (f', {hours} h' if hours else '')


def cells(entry: dict, folder: str) -> tuple[str, ...]:
    """A recipe by :data:`COLUMNS`, with links as seen from a folder of the repository."""
    metadata, collection = entry['Metadata'], entry['Collection']
    length = f'{metadata["Epochs"]} epochs' if 'Epochs' in metadata else f'{metadata["Iterations"]} iterations'
    trained = metadata.get('Trained Here', collection['Metadata'].get('Trained Here', 'no'))
    return (
        metadata.get('Method', entry['In Collection']),
        metadata['Backbone'],
        collection['Metadata']['Training Data'],
        f'{metadata["Image Size"]} px',
        f'{length}, batch {metadata["Batch Size"]}',
        published_result(metadata),
        link(entry['Name'], entry['Config'], folder),
        'no' if trained == 'no' else f'`{trained}`',
    )


def link(name: str, path: str, folder: str) -> str:
    """A Markdown link to a path of the repository, as seen from a folder."""
    return f'[{name}]({Path(os.path.relpath(path, folder)).as_posix()})'


def all_recipes(root: Path, folder: str) -> list[tuple[str, ...]]:
    """A row for each recipe."""
    return [cells(entry, folder) for entry in read_entries(root)]


def by_method(root: Path, folder: str) -> list[tuple[str, ...]]:
    """A row for each method: values of its recipes, the best published result, the small recipes trained here."""
    groups: dict[str, list[tuple[str, ...]]] = {}
    folders: dict[str, str] = {}
    small: dict[str, list[str]] = {}  # on generated images
    for entry in read_entries(root):
        row = cells(entry, folder)
        if row[2] == 'generated':
            small.setdefault(row[0], []).append(row[7])
            continue
        groups.setdefault(row[0], []).append(row)
        folders[row[0]] = str(Path(entry['Config']).parent)
    rows = []
    for method, recipes in groups.items():
        backbones, data, sizes, schedules = (joined(column) for column in list(zip(*recipes, strict=True))[1:5])
        best = max(recipes, key=lambda row: row[5].replace('–', ''))
        result = best[5] if ',' not in backbones or best[5] == '–' else f'{best[5]} ({best[1]})'
        configs = link(f'{len(recipes)} recipes', folders[method], folder)
        trained = ', '.join(['no', *(f'small: {command}' for command in dict.fromkeys(small.get(method, ())))])
        rows.append((method, backbones, data, sizes, schedules, result, configs, trained))
    return rows


def joined(values: Iterable[str]) -> str:
    """Different values without the batch size; a unit that they share stands once: ``224, 256 px``."""
    values = dict.fromkeys(value.partition(', batch')[0] for value in values)
    units = {value.rpartition(' ')[2] for value in values}
    if len(values) == 1 or len(units) > 1 or any(' ' not in value for value in values):
        return ', '.join(values)
    return f'{", ".join(value.rpartition(" ")[0] for value in values)} {units.pop()}'


def methods_table(root: Path, folder: str) -> str:
    """A row for each method."""
    return _table(by_method(root, folder))


def recipes_table(root: Path, folder: str) -> str:
    """A row for each recipe."""
    return _table(all_recipes(root, folder))


def _table(rows: Iterable[Sequence[str]]) -> str:
    return '\n'.join(f'| {" | ".join(row)} |' for row in (COLUMNS, ['---'] * len(COLUMNS), *rows))


TABLES = {'methods': methods_table, 'recipes': recipes_table}
