"""demo/reconstruction.ipynb: committed without outputs, and every cell runs, here on random weights."""

from __future__ import annotations

import ast
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.config import Config
from PIL import Image

from demo.tasks import PRETRAIN
from demo.training import CONFIGS, ROOT

NOTEBOOK = ROOT / 'demo' / 'reconstruction.ipynb'
CELLS = [cell for cell in json.loads(NOTEBOOK.read_text())['cells'] if cell['cell_type'] == 'code']


def run_cell(cell: dict, names: dict[str, Any]) -> Any:
    """Run a cell as a notebook does; returns the value of its last expression."""
    *body, last = ast.parse(''.join(cell['source'])).body
    exec(compile(ast.Module(body, []), 'cell', 'exec'), names)
    assert isinstance(last, ast.Expr), 'the cell shows nothing'
    return eval(compile(ast.Expression(last.value), 'cell', 'eval'), names)


def test_it_is_committed_without_outputs() -> None:
    assert len(CELLS) == 5 and all(not cell['outputs'] and cell['execution_count'] is None for cell in CELLS)


def test_every_cell_shows_something(
    demo_data: Path, save_random: Callable[[Config], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the folder that MM_UMMAE_DEMO names, started in demo/ as Jupyter does."""
    config = Config.fromfile(CONFIGS / PRETRAIN)
    config.train_dataloader.dataset.data_root = str(demo_data / 'imagenet')
    run = tmp_path / 'seed0' / 'pretrain'
    run.mkdir(parents=True)
    config.dump(run / PRETRAIN)
    Path(save_random(config)).rename(run / 'epoch_1.pth')
    (run / 'last_checkpoint').write_text('/somewhere/else/epoch_1.pth')  # the folder may have been moved
    monkeypatch.setenv('MM_UMMAE_DEMO', str(tmp_path))
    monkeypatch.chdir(ROOT / 'demo')
    names: dict[str, Any] = {}
    words, *images = [run_cell(cell, names) for cell in CELLS]
    assert words == f'UMMAE with UMSwin, 128 px, from {run}' and len(images) == 4
    assert all(isinstance(image, Image.Image) and len(np.unique(np.asarray(image))) > 100 for image in images)
    first, second = names['by_seed'].values()
    assert not any(torch.equal(a.hidden, b.hidden) for a, b in zip(first, second, strict=True))
    for samples in zip(*names['by_ratio'].values(), strict=True):
        assert [int(sample.hidden.sum()) for sample in samples] == [48, 52, 56]
        assert all(torch.equal(samples[0].unsampled, sample.unsampled) for sample in samples)
    assert names['nearest'].shape == (10, 5) and names['nearest'].max() < 20


def test_it_names_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv('MM_UMMAE_DEMO', str(tmp_path / 'nowhere'))
    with pytest.raises(FileNotFoundError, match=r'nowhere/seed0/pretrain holds no finished pre-training: run .make'):
        run_cell(CELLS[0], {})
