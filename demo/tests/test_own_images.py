"""The notebook on own images: what its committed outputs hold, and that it runs on any folder."""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from demo.training import ROOT

NOTEBOOK = ROOT / 'demo' / 'own_images.ipynb'


def outputs_of(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    """Of all code cells; each has some."""
    cells = [cell for cell in notebook.cells if cell.cell_type == 'code']
    assert all(cell.outputs for cell in cells)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1)), 'not run once from above'
    return [output for cell in cells for output in cell.outputs]


def check(outputs: list[nbformat.NotebookNode]) -> str:
    """Three figures, no error, no warning; returns the text."""
    assert all(output.output_type in ('stream', 'display_data') for output in outputs)
    assert all(output.name == 'stdout' for output in outputs if output.output_type == 'stream')
    assert sum('image/jpeg' in output.get('data', {}) for output in outputs) == 3
    return ''.join(output.get('text', '') for output in outputs)


def test_stored_outputs() -> None:
    """Complete, small, and without paths of the machine that made them."""
    text = check(outputs_of(nbformat.read(NOTEBOOK, 4)))
    assert not re.search(r'(?<![\w.>])/\w', text), 'an absolute path'
    assert 'um-swin-test on data/demo-400/imagenet/unlabelled' in text and 'Warning' not in text
    assert 'mm_ummae finetune --task detection --data ANNOTATIONS.json --start work_dirs/own_images/' in text
    assert NOTEBOOK.stat().st_size < 1.5e6


@pytest.mark.slow
def test_it_runs_on_any_folder(demo_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in dict(IMAGES=demo_data / 'imagenet' / 'unlabelled', EPOCHS=2, OUT=tmp_path / 'out').items():
        monkeypatch.setenv(f'MM_UMMAE_{name}', str(value))
    notebook = nbformat.read(NOTEBOOK, 4)
    NotebookClient(notebook, startup_timeout=300, resources=dict(metadata=dict(path=str(ROOT / 'demo')))).execute()
    text = check(outputs_of(notebook))
    assert '2 updates with 16 images each' in text and '16 features of 256 values' in text
    files = {path.name for path in (tmp_path / 'out').iterdir()}
    assert files == {'backbone.pth', 'config.py', 'features.npz', 'report.html', 'run'}
