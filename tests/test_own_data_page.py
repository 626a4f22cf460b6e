"""Every command of docs/get_started/own_data.md, as it is printed, on generated data."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.conftest import ROOT
from tests.labelled_images import IDS, make_classes, make_coco, make_pairs
from tests.mixed_images import make_mixed_images

PAGE = ROOT / 'docs' / 'get_started' / 'own_data.md'
FENCE = re.compile(r'^```(bash|python)\n(.*?)^```', re.MULTILINE | re.DOTALL)


def blocks(language: str) -> list[str]:
    """Blocks of the page, without the installation."""
    return [text for found, text in FENCE.findall(PAGE.read_text()) if found == language and 'pip install' not in text]


def commands() -> list[str]:
    """Commands of the page in their order."""
    return [line.strip() for block in blocks('bash') for line in block.splitlines() if line.strip()]


def make_data(folder: Path, photos: int, labelled: int) -> None:
    """Write the folders that the page names, of other sizes and kinds than the demo's."""
    make_mixed_images(folder / 'photos', photos)
    make_coco(folder / 'parts', labelled)
    make_pairs(folder / 'scenes', labelled)
    make_classes(folder / 'kinds', labelled)
    (folder / 'parts' / 'images' / 'photo.jpg').write_bytes(next((folder / 'kinds').rglob('*rgb.jpg')).read_bytes())


@pytest.mark.integration
@pytest.mark.slow
def test_the_page(tmp_path: Path) -> None:
    """From images to a detector, a segmentor and a classifier, in a folder with nothing else."""
    make_data(tmp_path, photos=24, labelled=24)
    path = f'{Path(sys.executable).parent}{os.pathsep}{os.environ["PATH"]}'
    environment = {**os.environ, 'PATH': path, 'PYTHONPATH': str(ROOT)}
    found = commands()
    assert len(found) == 12 and sum(line.startswith('python -m mm_ummae') for line in found) == 8
    for line in found:
        done = subprocess.run(shlex.split(line), cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f'{line}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}'
    inferencer, _ = blocks('python')
    script = f'{inferencer}print(len(boxes))'
    done = subprocess.run([sys.executable, '-c', script], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.strip().splitlines()[-1].isdigit(), done.stderr[-4000:]
    work = tmp_path / 'work'
    for name, metric in (('detector', 'coco/segm_mAP'), ('segmentor', 'mIoU'), ('classifier', 'accuracy/top1')):
        assert metric in json.loads((work / name / 'metrics.json').read_text()) and (work / name / 'model.pth').exists()
    assert (work / 'photos' / 'report.html').exists() and (work / 'photos' / 'backbone.pth').exists()
    assert len(np.load(work / 'features.npz')['files']) == 24
    maps = list((work / 'maps' / 'maps').rglob('*.png'))
    assert len(maps) == 24 and {value for path in maps for value in np.unique(Image.open(path))} <= set(IDS.values())
    assert len((work / 'labels' / 'predictions.csv').read_text().splitlines()) == 25
    assert (work / 'classifier.pt2').exists()
