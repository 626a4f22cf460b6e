"""Comparison of two checkouts."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest

from benchmarks import versions
from benchmarks.entries import ROOT
from benchmarks.versions import compare_versions, versions_table

DEMO = 'configs/demo/ummae_swin-test_1xb16-coslr-20e_demo-128px.py'
# Takes any arguments; each step has one second and one byte more
FAKE = """
import json, sys
for number, line in enumerate(sys.stdin, 1):
    print('a message of a host library')
    print('ANSWER' + json.dumps(dict(seconds=number, loss=0.5, memory=number, package=%r)), flush=True)
"""


def test_the_code_of_a_process_trains(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    """Here in this process, where everything is imported already; two lines of input are two steps."""
    monkeypatch.setattr(sys, 'argv', ['-c', str(ROOT / DEMO), '128', '2', '1', '{}'])
    monkeypatch.setattr(sys, 'stdin', io.StringIO('\n\n'))
    exec(versions.CHILD, {})
    first, second = (json.loads(line.removeprefix('ANSWER')) for line in capsys.readouterr().out.splitlines())
    assert first['loss'] > second['loss'] > 0
    assert first['seconds'] > 0 and 16 * 2_000_000 < first['memory'] <= second['memory'] < 10**9
    assert Path(first['package']) == ROOT / 'mm_ummae' / '__init__.py'


def test_the_first_step_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions, 'CHILD', FAKE % str(ROOT / 'mm_ummae' / '__init__.py'))
    rows = compare_versions(ROOT, rounds=2)
    assert [row['method'] for row in rows] == ['UM-MAE', 'UM-MAE', 'SimMIM', 'SimMIM']
    assert all((row['loss'], row['seconds'], row['memory']) == (0.5, [2, 3], 3) for row in rows)


@pytest.mark.parametrize(
    ('child', 'message'),
    [
        (FAKE % '/elsewhere/mm_ummae/__init__.py', 'should be measured, but its process imported /elsewhere/mm_ummae'),
        ('raise SystemExit(3)', r'the process of .* ended with code 3'),
    ],
)
def test_a_process_with_other_code_or_none_is_named(child: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions, 'CHILD', child)
    with pytest.raises(RuntimeError, match=message):
        compare_versions(Path.cwd(), rounds=1)


def test_the_table_has_ratios_to_the_other_checkout() -> None:
    rows = [
        dict(method='a', commit='0123456789', loss=0.5, memory=2 * 10**9, seconds=[2.0, 4.0, 6.0]),
        dict(method='a', commit=None, loss=0.5, memory=10**9, seconds=[1.0, 1.0, 6.0]),
    ]
    assert versions_table(rows).splitlines()[2:] == [
        '| a | 0123456 | 0.500000 | 4 (2 to 6) | 1.000 | 2.00 | 1.000 |',
        '| a | – | 0.500000 | 1 (1 to 6) | 0.500 | 1.00 | 0.500 |',
    ]
