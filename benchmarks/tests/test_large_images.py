"""The comparison of crops of scenes and of tiles runs."""

from __future__ import annotations

import re

import pytest

from benchmarks.large_images import main


def test_crops_are_timed(capsys: pytest.CaptureFixture[str]) -> None:
    main(['--side', '1200'])
    lines = [line for line in capsys.readouterr().out.splitlines() if 'ratio' in line]
    assert [line.split(':')[0] for line in lines] == ['jpeg', 'tiff']
    assert all(re.search(r'of a tile [\d.]+ ms, .* 9 tiles cut in', line) for line in lines)
