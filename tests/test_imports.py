"""Contract of imports: they go one way, from the tools of a user down to pure tensor functions.

A package may import those before it in ``ORDER`` and itself, never one beside or after it; also inside functions.
"""

from __future__ import annotations

import ast
from importlib.util import resolve_name
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ORDER = (
    'masking < checkpoints < models < datasets, detection < segmentation, visualization < engine '
    '< apis, analysis, deployment < commands'
)
LEVELS = {package: level for level, packages in enumerate(ORDER.split(' < ')) for package in packages.split(', ')}
BASE = {'compatibility', 'registry', 'resources', 'version'}  # modules at the root, below all packages
TOP = {'__main__', 'command_line'}  # and above them
OUTSIDE = {'benchmarks', 'configs', 'demo', 'tests', 'tools', 'scripts'}


def module_name(path: Path) -> str:
    """Dotted name of a file of the checkout."""
    parts = path.relative_to(ROOT).with_suffix('').parts
    return '.'.join(parts[:-1] if parts[-1] == '__init__' else parts)


MODULES = {module_name(path): path for path in sorted((ROOT / 'mm_ummae').rglob('*.py'))}


def imported(name: str, path: Path) -> set[str]:
    """Absolute names of all modules that a file imports, anywhere in it."""
    package, found = name if path.name == '__init__.py' else name.rpartition('.')[0], set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            source = resolve_name('.' * node.level + (node.module or ''), package)
            names = {f'{source}.{alias.name}' for alias in node.names}
            # ``from package import submodule`` imports the submodule, any other name comes from the package
            found |= names if names <= MODULES.keys() else {source, *(names & MODULES.keys())}
    return found


IMPORTS = {name: imported(name, path) for name, path in MODULES.items()}
OWN = {name: others & MODULES.keys() - {name} for name, others in IMPORTS.items()}


def part(name: str) -> str:
    """Package or module directly under mm_ummae; '' for mm_ummae itself."""
    return name.split('.')[1] if '.' in name else ''


def test_every_package_has_a_level() -> None:
    assert {part(name) for name in MODULES} - {''} - BASE - TOP == set(LEVELS)


@pytest.mark.parametrize('package', [*sorted(BASE), *LEVELS])
def test_imports_go_one_way(package: str) -> None:
    for name in (name for name in MODULES if part(name) == package):
        for other in OWN[name]:
            target = part(other)
            allowed = target == package or target in BASE or LEVELS.get(target, 9) < LEVELS.get(package, 0)
            assert allowed, f'{name} imports {other}'


def test_no_cycles() -> None:
    """Between modules; the root's imports on first use, for users, are not counted."""
    left = {name: set(others) for name, others in OWN.items() if name != 'mm_ummae'}
    size = None
    while len(left) != size:
        size = len(left)
        targets = set().union(*left.values())
        # Without a module that imports none of them, or that none of them imports
        left = {name: others & left.keys() for name, others in left.items() if others & left.keys() and name in targets}
    assert not left, f'a cycle among {sorted(left)}'


def test_nothing_outside_is_imported() -> None:
    """The wheel holds the package alone."""
    for name, others in IMPORTS.items():
        assert not {other.split('.')[0] for other in others} & OUTSIDE, name


def test_no_dumping_grounds() -> None:
    names = {word for name in MODULES for word in name.replace('_', '.').split('.')}
    assert not names & {'utils', 'util', 'misc', 'helper', 'helpers', 'common'}
