"""demo/reconstruction.ipynb: committed without outputs, and each cell runs (here in this process, on a tiny demo)."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.config import Config
from PIL import Image

from demo.make_data import make_demo_data
from mm_ummae.registry import MODELS

ROOT = Path(__file__).parents[1]
PRETRAIN = ROOT / 'configs' / 'demo' / 'ummae_swin-test_1xb64-coslr-20e_demo-128px.py'
CELLS = json.loads((ROOT / 'demo' / 'reconstruction.ipynb').read_text())['cells']
CODE = [''.join(cell['source']) for cell in CELLS if cell['cell_type'] == 'code']


def run_cell(source: str, names: dict[str, Any]) -> Any:
    """Run a cell as a notebook does; the value of its last expression."""
    *body, last = ast.parse(source).body
    exec(compile(ast.Module(body, []), 'cell', 'exec'), names)
    assert isinstance(last, ast.Expr), 'a cell shows nothing'
    return eval(compile(ast.Expression(last.value), 'cell', 'eval'), names)


@pytest.fixture(scope='module')
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of a demo as tools/demo.py leaves them, with random weights."""
    folder = tmp_path_factory.mktemp('demo')
    counts = dict(num_pretrain=2, num_coco_train=1, num_coco_val=3, num_ade_train=1, num_ade_val=1)
    data = make_demo_data(folder / 'data', num_labelled_train=20, num_labelled_val=10, **counts)
    config = Config.fromfile(PRETRAIN)
    config.train_dataloader.dataset.data_root = str(data / 'imagenet')
    run = folder / 'seed0' / 'pretrain'
    run.mkdir(parents=True)
    config.dump(run / PRETRAIN.name)
    torch.manual_seed(0)
    model = MODELS.build(config.model)
    torch.save(dict(state_dict=model.state_dict()), run / 'epoch_1.pth')
    (run / 'last_checkpoint').write_text('/somewhere/else/epoch_1.pth')  # a folder may have been moved
    return folder


def test_it_is_committed_without_outputs() -> None:
    for cell in CELLS:
        if cell['cell_type'] == 'code':
            assert cell['outputs'] == [] and cell['execution_count'] is None
    assert len(CODE) == 5


def test_every_cell_shows_something(demo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the folder that MM_UMMAE_DEMO names, started in demo/ as Jupyter does."""
    monkeypatch.setenv('MM_UMMAE_DEMO', str(demo))
    monkeypatch.chdir(ROOT / 'demo')
    names: dict[str, Any] = {}
    words, *pictures = [run_cell(source, names) for source in CODE]
    assert words == f'UMMAE with UMSwin, 128 px, from {demo / "seed0" / "pretrain"}'
    assert len(pictures) == 4
    for picture in pictures:
        assert isinstance(picture, Image.Image) and len(np.unique(np.asarray(picture))) > 100
    first, second = names['by_seed'].values()
    assert len(first) == 3 and not any(torch.equal(a.hidden, b.hidden) for a, b in zip(first, second, strict=True))
    none, some, half = names['by_ratio'].values()
    for samples in zip(none, some, half, strict=True):
        assert torch.equal(samples[0].unsampled, samples[0].hidden)
        assert torch.equal(samples[0].unsampled, samples[2].unsampled), 'other units are sampled'
        assert [int(sample.hidden.sum()) for sample in samples] == [48, 52, 56]
    assert names['nearest'].shape == (10, 5) and names['nearest'].max() < 20


def test_it_says_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv('MM_UMMAE_DEMO', str(tmp_path / 'nowhere'))
    with pytest.raises(FileNotFoundError, match=r'nowhere/seed0/pretrain holds no finished pre-training: run .make'):
        run_cell(CODE[0], {})
