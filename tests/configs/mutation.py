"""Values of the configs that no test of this folder notices.

    python -m tests.configs.mutation [PATTERN]

In a copy of configs/ each number, switch and text is changed, one at a time, in the files whose path below configs/ has
the pattern (default: all but those of the demo and the runtime settings). A change is noticed if a leaf cannot be read
any more, or fails test_leaves, test_hosts or test_windows. Takes about a quarter of an hour on one core.
"""

from __future__ import annotations

import ast
import contextlib
import io
import logging
import re
import shutil
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.configs import leaves, test_hosts, test_leaves, test_windows

PUBLISHED = r'^(?!demo|_base_/(models|datasets|schedules)/demo|_base_/\w*runtime)'


def bases(path: Path) -> set[Path]:
    """A config and all files of this project that it inherits."""
    found = {path}
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], 'id', '') == '_base_':
            for base in ast.literal_eval(node.value):
                found |= set() if '::' in base else bases((path.parent / base).resolve())
    return found


def changed_texts(path: Path) -> Iterator[tuple[str, str]]:
    """The changed line and the whole file, for each value; not for `type`, keys and names of bases."""
    text = path.read_text()
    lines, tree = text.split('\n'), ast.parse(text)
    skipped: set[int] = set()
    for node in ast.walk(tree):
        parts: list[ast.AST | None] = []
        if isinstance(node, ast.Dict):
            parts = list(node.keys)
        elif isinstance(node, ast.keyword) and node.arg == 'type':
            parts = [node.value]
        elif isinstance(node, ast.Subscript):
            parts = [node.slice]
        elif isinstance(node, ast.JoinedStr):
            parts = [node]
        elif isinstance(node, ast.Assign) and getattr(node.targets[0], 'id', '') == '_base_':
            parts = [node.value]
        skipped |= {id(inner) for part in parts if part for inner in ast.walk(part)}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Constant) or id(node) in skipped or node.lineno != node.end_lineno:
            continue
        line = lines[node.lineno - 1]
        line = f'{line[: node.col_offset]}{other(node.value)!r}{line[node.end_col_offset :]}'
        yield line.strip(), '\n'.join([*lines[: node.lineno - 1], line, *lines[node.lineno :]])


def other(value: object) -> object:
    """Another value of the same kind."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1 if value < 1000 else 2 * value
    if isinstance(value, float):
        return 1.5 * value if value else 0.5
    return f'{value}x' if isinstance(value, str) else 7


def check(path: Path) -> None:
    """The tests of a leaf; its comment names its folder and is left out."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(test_leaves, 'check_comment', lambda *args: None)
        test_leaves.test_leaf(path, patch)
        if path.stem in [each.stem for each in test_hosts.COMPARED]:
            test_hosts.test_only_these_values_differ_from_the_recipe_of_the_host(path)
        if path.stem in [each.stem for each in test_windows.SWIN]:
            test_windows.test_windows_of_a_dense_config(path, patch)
        elif path.stem in [each.stem for each in test_windows.DENSE]:
            test_windows.test_positions_of_a_dense_config(path)


def outcome(users: list[Path], before: dict[Path, str]) -> str:
    """What becomes of a change: `noticed`, `not noticed`, or `without effect` on any leaf."""
    leaves.read.cache_clear()
    leaves.full_model.cache_clear()
    found = 'without effect'
    for path in users:
        try:
            if str(leaves.config(path)) != before[path]:
                found = 'not noticed'
                check(path)
        except (Exception, SystemExit):  # a broken config may do anything
            return 'noticed'
    return found


def main() -> None:
    """Change every value and print those that are not noticed."""
    warnings.simplefilter('ignore')
    logging.disable(logging.CRITICAL)
    torch.set_num_threads(1)
    pattern = sys.argv[1] if len(sys.argv) > 1 else PUBLISHED
    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder).resolve() / 'configs'
        shutil.copytree(leaves.CONFIGS, root)
        uses = {path: bases(path) for path in (root / each.relative_to(leaves.CONFIGS) for each in leaves.LEAVES)}
        for path in uses:
            check(path)  # unchanged, it passes
        for file in sorted(path for path in root.rglob('*.py') if re.search(pattern, str(path.relative_to(root)))):
            users = [path for path, parts in uses.items() if file in parts]
            leaves.read.cache_clear()
            before, text = {path: str(leaves.config(path)) for path in users}, file.read_text()
            for line, changed in changed_texts(file):
                file.write_text(changed)
                with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                    result = outcome(users, before)
                counts[result] += 1
                if result != 'noticed':
                    print(f'{result}: {file.relative_to(root)}: {line}', flush=True)
            file.write_text(text)
    print(dict(counts))


if __name__ == '__main__':
    main()
