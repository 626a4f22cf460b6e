#!/usr/bin/env python3
"""Generated tables of the pages: recipes from the model index, measured numbers from their JSON files.

    python scripts/tables.py            print all tables
    python scripts/tables.py --check    fail if a table of a page is not up to date, or measured numbers stand outside
    python scripts/tables.py --write    update the pages

A table stands between the lines `<!-- table: NAME -->` and `<!-- /table -->`; scripts/recipes.py and
scripts/measured.py make the tables.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from scripts import measured, recipes  # noqa: E402

PAGES = ('*.md', 'docs/**/*.md', 'configs/*.md', 'demo/*.md', 'benchmarks/*.md', 'weights/*.md')
MARKED = re.compile(r'<!-- table: (.+?) -->\n.*?<!-- /table -->', re.DOTALL)
TABLES: dict[str, Callable[[Path, str], str]] = recipes.TABLES | measured.TABLES
# Pages whose every number is measured here
MEASURED_PAGES = ('demo/README.md', 'demo/tried.md', 'benchmarks/README.md')


def updated(text: str, root: Path, folder: str) -> str:
    """The text of a page with its tables as they are today.

    Args:
        text (str): The page.
        root (Path): Checkout with the files that tables are made of.
        folder (str): Folder of the page, from where links lead.
    Raises:
        ValueError: If a mark is wrong, or there is no such table.
    """
    starts, ends = text.count('<!-- table:'), text.count('<!-- /table -->')
    if starts != ends or starts != len(MARKED.findall(text)):
        raise ValueError(
            f'{starts} lines <!-- table: NAME --> and {ends} lines <!-- /table -->, but they must come in pairs'
        )
    unknown = [name for name in MARKED.findall(text) if name not in TABLES]
    if unknown:
        raise ValueError(f'there is no table {unknown[0]!r}: the names are {", ".join(TABLES)}')
    return MARKED.sub(
        lambda found: f'<!-- table: {found[1]} -->\n\n{TABLES[found[1]](root, folder)}\n\n<!-- /table -->', text
    )


def unmarked(text: str) -> Iterator[str]:
    """Rows of tables with a decimal number that are not generated."""
    for line in MARKED.sub('', text).splitlines():
        if re.match(r'\|.*\d\.\d', line):
            yield line


def main(arguments: list[str] | None = None, root: Path = ROOT) -> int:
    """Print, check or write the tables; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument('--check', action='store_true', help='fail if a table is not up to date')
    mode.add_argument('--write', action='store_true', help='update the pages')
    options = parser.parse_args(arguments)
    if not (options.check or options.write):
        for name, make in TABLES.items():
            print(f'{name}\n\n{make(root, ".")}\n')
        return 0
    problems, used = [], set()
    for page in sorted({page for pattern in PAGES for page in root.glob(pattern)}):
        name, text = page.relative_to(root).as_posix(), page.read_text()
        used |= set(MARKED.findall(text))
        try:
            new = updated(text, root, Path(name).parent.as_posix())
        except ValueError as error:
            problems.append(f'{name}: {error}')
            continue
        if name in MEASURED_PAGES:
            problems += [f'{name}: not generated from a JSON file: {line}' for line in unmarked(text)]
        if new == text:
            continue
        if options.write:
            page.write_text(new)
            print(f'{name}: tables updated')
        else:
            problems.append(f'{name}: a table is not up to date, run python scripts/tables.py --write')
    problems += [f'{name}: a table that stands on no page' for name in TABLES if name not in used]
    for problem in problems:
        print(f'tables: {problem}', file=sys.stderr)
    return bool(problems)


if __name__ == '__main__':
    sys.exit(main())
