"""Command line of every tool: values with spaces, and failures in one line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mm_ummae.command_line import ToolParser, one_line_errors
from tests.conftest import ROOT

TOOLS = sorted(path.stem for path in (ROOT / 'tools').glob('*.py'))


@pytest.mark.parametrize(
    ('text', 'value'),
    [
        ('/data/my photos', '/data/my photos'),  # field case 07
        ('/data/my photos/', '/data/my photos/'),
        ('"/data/a, b"', '/data/a, b'),
        ("'/data/a,b'", '/data/a,b'),
        ('/data/photos', '/data/photos'),
        ('1,2', [1, 2]),
        ('[1, 2]', [1, 2]),
        ('(a, b)', ('a', 'b')),
        ('[(1, 2), [a, b]]', [(1, 2), ['a', 'b']]),
        ('3', 3),
        ('"3"', '3'),
        ('1e-4', 1e-4),
        ('True', True),
        ('None', None),
        ('', ''),
    ],
)
def test_values_with_spaces_are_text(text: str, value: Any) -> None:
    parser = ToolParser()
    parser.add_config_options()
    assert parser.parse_args(['--cfg-options', 'before=1', f'a.b={text}']).cfg_options == {'before': 1, 'a.b': value}
    assert parser.parse_args([]).cfg_options == {}


def test_an_error_is_one_line_unless_its_traceback_is_asked_for() -> None:
    @one_line_errors
    def main(arguments: list[str] | None = None) -> None:
        args = ToolParser().parse_args(arguments)
        raise ValueError(f'x is {args.debug}, but it must not be')

    with pytest.raises(SystemExit, match=r'^error: x is False, but it must not be$'):
        main([])
    with pytest.raises(ValueError, match=r'^x is True'):
        main(['--debug'])


def test_a_mistake_in_the_program_keeps_its_traceback() -> None:
    @one_line_errors
    def main(arguments: list[str] | None = None) -> None:
        raise KeyError('x')

    with pytest.raises(KeyError):
        main([])


@pytest.mark.parametrize('name', TOOLS)
def test_every_tool_has_it(name: str) -> None:
    source = (ROOT / 'tools' / f'{name}.py').read_text()
    assert '@one_line_errors\ndef main(' in source and 'ToolParser(' in source and 'ArgumentParser(' not in source
    assert 'raise SystemExit' not in source


def test_the_line_in_a_terminal(tmp_path: Path) -> None:
    command = [sys.executable, ROOT / 'tools' / 'visualize_data.py', 'config.py', '--out', tmp_path / 'a.txt']
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 1 and run.stderr.splitlines()[-1].startswith(
        f"error: {tmp_path}/a.txt has the suffix '.txt'"
    )
    assert 'Traceback' not in run.stderr
