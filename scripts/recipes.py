#!/usr/bin/env python3
"""Table of all recipes in README.md and configs/README.md, from the metafiles that model-index.yml lists.

    python scripts/recipes.py            print the table
    python scripts/recipes.py --check    fail if a file's table is not up to date
    python scripts/recipes.py --write    update the files

The table stands between the lines `<!-- recipes -->` and `<!-- /recipes -->`.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]
FILES = ('README.md', 'configs/README.md')
START, END = '<!-- recipes -->', '<!-- /recipes -->'
HEADER = (
    '| method | backbone | data | image size | schedule | published result | config | trained here |',
    '|---|---|---|---|---|---|---|---|',
)


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


def row(entry: dict, folder: str) -> str:
    """A line of the table, with links as seen from a folder of the repository."""
    metadata, collection = entry['Metadata'], entry['Collection']
    length = f'{metadata["Epochs"]} epochs' if 'Epochs' in metadata else f'{metadata["Iterations"]} iterations'
    trained = metadata.get('Trained Here', collection['Metadata'].get('Trained Here', 'no'))
    cells = (
        metadata.get('Method', entry['In Collection']),
        metadata['Backbone'],
        collection['Metadata']['Training Data'],
        f'{metadata["Image Size"]} px',
        f'{length}, batch {metadata["Batch Size"]}',
        published_result(metadata),
        f'[{entry["Name"]}]({Path(os.path.relpath(entry["Config"], folder)).as_posix()})',
        'no' if trained == 'no' else f'`{trained}`',
    )
    return f'| {" | ".join(cells)} |'


def table(root: Path, folder: str = '.') -> str:
    """The table for a file in a folder of the repository."""
    return '\n'.join((*HEADER, *(row(entry, folder) for entry in read_entries(root))))


def updated(root: Path, file: str) -> str:
    """The text of a file with the table of today between its two marks.

    Raises:
        ValueError: If the file does not have both marks, once each and in order.
    """
    text = (root / file).read_text()
    if text.count(START) != 1 or text.count(END) != 1 or text.index(START) > text.index(END):
        raise ValueError(
            f'{file} needs the line {START} and below it the line {END}, each once: the table of recipes goes between'
        )
    block = f'{START}\n\n{table(root, str(Path(file).parent))}\n\n{END}'
    return re.sub(f'{re.escape(START)}.*{re.escape(END)}', lambda _: block, text, flags=re.DOTALL)


def main(arguments: list[str] | None = None, root: Path = ROOT) -> int:
    """Print, check or write the tables; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument('--check', action='store_true', help='fail if a table is not up to date')
    mode.add_argument('--write', action='store_true', help='update the files')
    options = parser.parse_args(arguments)
    if not (options.check or options.write):
        print(table(root))
        return 0
    problems = []
    for file in FILES:
        try:
            text = updated(root, file)
        except ValueError as error:
            problems.append(str(error))
            continue
        if text == (root / file).read_text():
            continue
        if options.write:
            (root / file).write_text(text)
            print(f'{file}: table of recipes updated')
        else:
            problems.append(f'{file}: the table of recipes is not up to date, run python scripts/recipes.py --write')
    for problem in problems:
        print(f'recipes: {problem}', file=sys.stderr)
    return bool(problems)


if __name__ == '__main__':
    sys.exit(main())
