"""scripts/tables.py: marks, stale tables, numbers without a source, and measurements of other versions."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from scripts import measured, tables


def write(root: Path, text: str, page: str = 'README.md') -> Path:
    file = root / page
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return file


@pytest.fixture
def one_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, 'TABLES', {'one': lambda root, folder: f'| {folder} |'})


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('<!-- table: one -->\n', '1 lines <!-- table: NAME --> and 0 lines <!-- /table -->'),
        ('<!-- /table -->\n<!-- table: one -->\n', 'must come in pairs'),
        ('<!-- table: two -->\n<!-- /table -->\n', "there is no table 'two': the names are one"),
        (
            '<!-- table: one -->\nold\n<!-- /table -->\n',
            'not up to date, run python scripts/tables.py --write',
        ),
        ('no table\n', 'one: a table that stands on no page'),
    ],
)
def test_problems(text: str, message: str, tmp_path: Path, one_table: None, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, text)
    assert tables.main(['--check'], tmp_path) == 1
    assert message in capsys.readouterr().err


def test_stale_table_is_written(tmp_path: Path, one_table: None) -> None:
    page = write(tmp_path, 'before\n<!-- table: one -->\nold\n<!-- /table -->\nafter\n', 'docs/a/page.md')
    assert tables.main(['--write'], tmp_path) == 0 and tables.main(['--check'], tmp_path) == 0
    assert page.read_text() == 'before\n<!-- table: one -->\n\n| docs/a |\n\n<!-- /table -->\nafter\n'


def test_numbers_of_measured_pages_need_a_source(
    tmp_path: Path, one_table: None, capsys: pytest.CaptureFixture[str]
) -> None:
    table = '<!-- table: one -->\n\n| demo |\n\n<!-- /table -->\n'
    write(tmp_path, f'{table}| a | 3 |\n| b | 3.5 |\n', 'demo/README.md')
    assert tables.main(['--check'], tmp_path) == 1
    assert capsys.readouterr().err == 'tables: demo/README.md: not generated from a JSON file: | b | 3.5 |\n'


def environment(version: str, **others: Any) -> dict[str, Any]:
    versions = dict(mm_ummae=version, torch='2.11.0')
    return dict(date='2026-11-26T10:00:00', device='cpu', cpu='CPU', cores=2, threads=1, versions=versions) | others


@pytest.mark.parametrize(
    ('run', 'line'),
    [
        (
            dict(environment=environment('0.7.1', commit='0123456789'), seeds=[{}, {}]),
            'Version 0.7.1; commit 0123456; 2026-11-26; CPU, 1 of 2 cores; PyTorch 2.11.0; 2 seeds; [numbers](a.json)',
        ),
        (
            dict(environment=environment('0.6.9', commit='0123456789-dirty', device='cuda')),
            'Version 0.6.9, older than this one (0.7.0); commit 0123456 with changes; 2026-11-26; cuda; '
            'PyTorch 2.11.0; [numbers](a.json)',
        ),
        (
            dict(environment=environment('0.7.0', commit=None), seeds=[{}]),
            'Version 0.7.0; commit not recorded; 2026-11-26; CPU, 1 of 2 cores; PyTorch 2.11.0; one seed; '
            '[numbers](a.json)',
        ),
    ],
)
def test_origin_of_a_table(run: dict[str, Any], line: str) -> None:
    assert measured.origin(run, 'a.json', '0.7.0') == f'*{line}*'


def test_changed_numbers_and_a_new_version_make_a_page_stale(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = measured.Source('results/a.json', lambda content: f'| {content["value"]} |')
    monkeypatch.setattr(tables, 'TABLES', {'a': source})
    numbers = dict(environment=environment('0.7.0'), value=1.5)
    file = write(tmp_path, json.dumps(numbers), 'results/a.json')
    page = write(tmp_path, '<!-- table: a -->\n<!-- /table -->\n', 'docs/page.md')
    version = write(tmp_path, "__version__ = '0.7.2'\n", 'mm_ummae/version.py')
    assert tables.main(['--write'], tmp_path) == 0 and tables.main(['--check'], tmp_path) == 0
    assert re.search(r'\[numbers\]\(\.\./results/a\.json\)\*\n\n\| 1\.5 \|\n', page.read_text())
    file.write_text(json.dumps(numbers | dict(value=1.6)))
    assert tables.main(['--check'], tmp_path) == 1
    file.write_text(json.dumps(numbers))
    version.write_text("__version__ = '0.8.0'\n")
    assert tables.main(['--check'], tmp_path) == 1
    assert tables.main(['--write'], tmp_path) == 0
    assert 'Version 0.7.0, older than this one (0.8.0)' in page.read_text()


def test_tables_say_what_their_files_do() -> None:
    """Every table is made of its file; names and ratios are right."""
    made = {name: source(tables.ROOT, '.') for name, source in measured.TABLES.items()}
    weights = made.pop('weights').splitlines()  # each was made by another version
    assert len(weights) >= 4 and all('| Version ' in row for row in weights[2:])
    assert all(re.match(r'\*Version \d', text) and text.count('\n|') >= 3 for text in made.values())
    rows = {line.split(' |')[0] for line in made['htcpp, inference'].splitlines()}
    assert {"| MMDetection's Mask R-CNN, Swin-T", '| HTC++, UMSwin-L', '| GFL, UMPVT-S'} < rows
    recomputed = [line.count('(as configured)') for line in made['htcpp, memory'].splitlines() if 'HTC++' in line]
    assert recomputed == [1] * 3
