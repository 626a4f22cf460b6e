"""The page about a run: read back without a browser."""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope
from PIL import Image
from pytest import MonkeyPatch

from mm_ummae.registry import MODELS
from mm_ummae.visualization import html_report, read_run, write_report
from tests.builders import BACKBONES, MEAN, STD, VIT

SIDE = 64
SECTIONS = [
    'Summary',
    'Loss and learning rate',
    'Is it learning?',
    'Reconstructions',
    'Feature maps',
    'Nearest neighbours',
    'Data',
    'Time',
    'Config and versions',
]
PREPROCESSOR = dict(type='SelfSupDataPreprocessor', mean=MEAN, std=STD, to_rgb=True)
UMMAE = dict(
    type='mm_ummae.UMMAE',
    data_preprocessor=PREPROCESSOR,
    backbone=dict(BACKBONES['swin'], img_size=SIDE, secondary_token=True),
    neck=dict(type='mm_ummae.UMMAEDecoder', embed_dims=32, depth=1, num_heads=2, img_size=SIDE, in_channels=64),
    head=dict(type='mm_ummae.UMMAEHead', in_channels=32),
)
LOMAR = dict(
    type='mm_ummae.LoMaR',
    data_preprocessor=PREPROCESSOR,
    window_size=3,
    num_windows=2,
    backbone=dict(type='mm_ummae.LoMaRViT', arch=VIT, img_size=SIDE, patch_size=8, mask_token=True),
    head=dict(type='mm_ummae.LoMaRHead', in_channels=16, patch_size=8),
)
LOG = """2026/01/01 - mmengine - INFO -
------------------------------------------------------------
System environment:
    Python: 3.11 <b>
    PyTorch compiling details: PyTorch built with:
  - GCC 13
    MMEngine: 0.10.12
------------------------------------------------------------
2026/01/01 - mmengine - WARNING - after 2 epochs the loss is <stuck>. Ways out: a lower learning rate
2026/01/01 - mmengine - WARNING - data/a.jpg ends too early; another image takes its place
2026/01/01 - mmengine - WARNING - data/a.jpg ends too early; another image takes its place
"""


class Page(HTMLParser):
    """What the tests look at: tags with their attributes, text, and the text of each section."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.sections: dict[str, str] = {}
        self.inside: list[str] = []
        self.feed(path.read_text())
        self.close()
        assert self.inside == [], 'an element is not closed'

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ('meta', 'link', 'img', '!doctype'):
            self.inside.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.inside.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.inside[-1:] == ['h2']:
            self.sections[data] = ''
        elif self.sections:
            last = next(reversed(self.sections))
            self.sections[last] += f'{data} '

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.tags if name == tag]


@pytest.fixture(scope='module')
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight images in pairs of equal content, of two sizes and one of them grey, and a file that is no image."""
    folder, generator = tmp_path_factory.mktemp('data'), np.random.default_rng(0)
    for i in range(4):
        pixels = generator.integers(256, size=(4, 4, 3), dtype=np.uint8).repeat(16, 0).repeat(16, 1)
        for j in range(2):
            Image.fromarray(pixels).save(folder / f'{i + 4 * j}.png')
    Image.new('L', (96, 80), 128).save(folder / '8.png')
    (folder / '9.png').write_bytes(b'no image')
    return folder


def made_run(work_dir: Path, data: Path, model: dict) -> Path:
    """A run as MMEngine writes it, that was killed in the second epoch and resumed."""
    dataset = dict(type='mm_ummae.PretrainImages', data_root=str(data), pipeline=[])
    cfg = dict(model=model, train_dataloader=dict(batch_size=2, dataset=dataset), train_cfg=dict(max_epochs=4))
    lines: list[dict[str, Any]] = [
        {'learning/rank': 9.5, 'learning/spread': 0.5, 'learning/dead': 0.0, 'learning/time_share': 1.0, 'step': 0},
        *(dict(lr=0.01, data_time=0.1, loss=2.0 - 0.1 * i, time=0.5, epoch=1 + i // 5, step=i) for i in range(1, 8)),
    ]
    again = [
        *(dict(lr=0.02, data_time=0.1, loss=1.0 - 0.01 * i, time=0.5, epoch=1 + i // 5, step=i) for i in (6, 8, 10)),
        {'learning/rank': 7.5, 'learning/spread': 0.4, 'learning/dead': 0.0, 'learning/time_share': 0.01, 'step': 2},
    ]
    for name, records in (('20260101_000000', lines), ('20260101_000100', again)):
        folder = work_dir / name / 'vis_data'
        (folder / 'vis_image').mkdir(parents=True)
        text = ''.join(json.dumps(record) + '\n' for record in records)
        (folder / 'scalars.json').write_text(text + '{"loss": 1')  # half a line
        Config(dict(cfg, default_scope='mmpretrain')).dump(folder / 'config.py')
        (folder.parent / f'{name}.log').write_text(LOG)
        for epoch in (1, 2):
            sheet = Image.new('RGB', (1500, 300), (255, 0, 0) if name.endswith('100') else (0, 0, 255))
            sheet.save(folder / 'vis_image' / f'reconstruction_{epoch}.png')
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        state = MODELS.build(Config(dict(model=model)).model).state_dict()
    settings = dict(batch_size=2, processes=2, iterations_per_epoch=5)
    torch.save(dict(state_dict=state, meta={}, run=dict(settings=settings)), work_dir / 'epoch_2.pth')
    (work_dir / 'last_checkpoint').write_text('/elsewhere/epoch_2.pth')  # the folder was moved
    return work_dir


def check(path: Path) -> Page:
    """Properties of every page: one file, no request, images that decode, links that lead somewhere."""
    page = Page(path)
    assert list(page.sections) == SECTIONS
    assert not page.all('script') and not page.all('iframe') and len(page.all('h1')) == 1
    assert (
        page.all('meta')[1]['content'] == 'width=device-width, initial-scale=1' and page.all('html')[0]['lang'] == 'en'
    )
    ids = [attrs['id'] for _, attrs in page.tags if 'id' in attrs]
    assert len(set(ids)) == len(ids)
    for _, attrs in page.tags:
        assert not attrs.keys() & {'srcset', 'poster', 'action', 'onload', 'onclick'}
        if 'href' in attrs:
            assert attrs['href'] == 'data:,' or attrs['href'].removeprefix('#') in ids
    assert not re.search(r'url\(|@import', path.read_text().partition('</style>')[0])
    for image in page.all('img'):
        assert image['alt']
        kind, content = re.fullmatch(r'data:image/(svg\+xml|jpeg);base64,([\w+/=]+)', image['src']).groups()
        content = base64.b64decode(content, validate=True)
        if kind == 'jpeg':
            decoded = Image.open(io.BytesIO(content))
            decoded.load()
            assert decoded.size == (int(image['width']), int(image['height'])) and decoded.width <= 1200
        else:
            root = ElementTree.fromstring(content)
            assert root.tag.endswith('svg')
            links = [value for part in root.iter() for name, value in part.attrib.items() if name.endswith('href')]
            assert all(link.startswith('#') for link in links)
    return page


@pytest.mark.parametrize('model', [UMMAE, LOMAR], ids=['UM-MAE', 'LoMaR'])
def test_the_page_of_a_run(model: dict, data: Path, tmp_path: Path, monkeypatch: MonkeyPatch) -> None:
    rows, draw = [], html_report.image_sheet
    monkeypatch.setattr(html_report, 'image_sheet', lambda found, names: rows.extend(found) or draw(found, names))
    work_dir = made_run(tmp_path / 'run <1>', data, model)
    path = write_report(work_dir, next_command='python train.py "a" && <b>')
    assert path == work_dir / 'report.html' and not list(work_dir.glob('.*'))
    page, text = check(path), path.read_text()
    found = page.sections
    # Text of a run is never markup
    assert 'Pre-training report: run &lt;1&gt;' in text and '<b>' not in text and '<stuck>' not in text
    assert 'epoch 3 of 4' in found['Summary'] and 'loss 1.9000 at first, 0.9000 now' in found['Summary']
    assert 'python train.py "a" && <b>' in found['Summary'] and '2 times (resumed)' in found['Summary']
    assert 'after 2 epochs the loss is <stuck>' in found['Summary']
    assert 'No probe: no labelled images were given' in found['Is it learning?']
    assert '0 9.5 0.5 0' in found['Is it learning?'] and '2 7.5 0.4 0' in found['Is it learning?']
    assert 'files 10 ' in found['Data'] and 'width, px 64 to 96, median 64' in found['Data']
    assert '3 (RGB): 8, 1 (L): 1' in found['Data'] and '9.png' in found['Data']
    assert found['Data'].count('data/a.jpg ends too early') == 1
    assert '0.500 s, of which the loader takes 20%' in found['Time'] and 'training so far 0 min 5 s' in found['Time']
    assert '8.0 (4 in an iteration of 2 processes)' in found['Time']
    assert '0 min 5 s for the remaining 10 of 20 iterations' in found['Time']
    assert '3.11 <b>' in found['Config and versions'] and model['type'] in found['Config and versions']
    alts = [image['alt'] for image in page.all('img')]
    assert alts[:4] == [
        'Training loss from 1.9000 to 0.9000',
        'Learning rate, now 0.02',
        'Effective rank of the features of training images',
        'Spread over images, and share of dead channels',
    ]
    assert alts[4:6] == ['Reconstructions after epoch 1', 'Reconstructions after epoch 2']
    assert len(alts) == 8
    sheet = Image.open(io.BytesIO(base64.b64decode(page.all('img')[4]['src'].partition(',')[2])))
    assert sheet.getpixel((9, 9))[0] > 200, 'not that of the last start'
    # The nearest neighbour of an image is the one with the same content
    assert len(rows) == 4
    for row in rows[:3]:
        assert np.array_equal(row[0], row[1]) and not np.array_equal(row[0], row[2])


def test_what_two_starts_logged(data: Path, tmp_path: Path) -> None:
    run = read_run(made_run(tmp_path, data, UMMAE))
    assert [(line['step'], line['lr']) for line in run.losses] == [
        *((step, 0.01) for step in range(1, 6)),
        (6, 0.02),
        (7, 0.01),
        (8, 0.02),
        (10, 0.02),
    ]
    assert [line['step'] for line in run.learning] == [0, 2] and run.checkpoint == tmp_path / 'epoch_2.pth'
    assert run.environment == {'Python': '3.11 <b>', 'MMEngine': '0.10.12'} and len(run.warnings) == 2


def test_probes_are_plotted(data: Path, tmp_path: Path) -> None:
    work_dir = made_run(tmp_path, data, UMMAE)
    line = {f'learning/{name}': 50.0 for name in ('rank', 'spread', 'dead', 'knn', 'linear', 'chance')}
    with (work_dir / '20260101_000100' / 'vis_data' / 'scalars.json').open('a') as file:
        file.write(f'\n{json.dumps(line | dict(step=3))}\n')
    page = check(write_report(work_dir, tmp_path / 'new' / 'page.html'))
    assert 'Probes on frozen features: top-1 accuracy' in [image['alt'] for image in page.all('img')]
    assert 'No probe' not in page.sections['Is it learning?']


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    """A run that has just started, whose data are gone."""
    (tmp_path / '20260101' / 'vis_data').mkdir(parents=True)
    found = check(write_report(tmp_path)).sections
    for section, text in {
        'Loss and learning rate': 'Nothing was logged yet.',
        'Is it learning?': "No measurement yet: the config needs dict(type='mm_ummae.LearningHook')",
        'Reconstructions': 'No sheet yet',
        'Feature maps': 'No feature maps: no config was saved.',
        'Nearest neighbours': 'No neighbours: no config was saved.',
        'Data': 'No data: no config was saved',
        'Time': 'No times were logged yet.',
        'Config and versions': 'No config was saved.',
    }.items():
        assert text in found[section], section
    model = dict(UMMAE, type='mm_ummae.Unknown')
    dataset = dict(type='mm_ummae.PretrainImages', data_root=str(tmp_path / 'gone'))
    cfg = dict(model=model, train_dataloader=dict(batch_size=2, dataset=dataset), default_scope='mmpretrain')
    Config(cfg).dump(tmp_path / '20260101' / 'vis_data' / 'config.py')
    found = check(write_report(tmp_path)).sections
    assert 'there is no checkpoint yet' in found['Feature maps'] and 'does not exist: set data_root' in found['Data']
    (tmp_path / 'epoch_1.pth').write_bytes(b'no checkpoint')
    found = check(write_report(tmp_path)).sections
    assert 'epoch_1.pth cannot be loaded' in found['Nearest neighbours'] and 'Unknown' in found['Feature maps']


class Code:
    """An object that makes a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple:
        return Path.touch, (self.mark,)


def test_code_in_a_checkpoint_is_not_executed(data: Path, tmp_path: Path) -> None:
    work_dir = made_run(tmp_path, data, UMMAE)
    torch.save(dict(state_dict={}, code=Code(tmp_path / 'mark')), work_dir / 'epoch_2.pth')
    found = check(write_report(work_dir)).sections
    assert 'could execute code of its author' in found['Feature maps'] and not (tmp_path / 'mark').exists()


def test_the_tool(tool: Callable[[str], ModuleType], data: Path, tmp_path: Path, capsys: Any) -> None:
    work_dir = made_run(tmp_path / 'run', data, UMMAE)
    words = [
        str(work_dir),
        '--out',
        str(tmp_path / 'page.html'),
        '--images',
        str(data / '0.png'),
        '--next-command',
        'ls',
    ]
    assert tool('report').main(words) == tmp_path / 'page.html'
    found = check(tmp_path / 'page.html').sections
    assert 'No neighbours: only 1 images.' in found['Nearest neighbours'] and 'files 1 ' in found['Data']
    assert re.search(r'report in .*page\.html, 0\.\d MB', capsys.readouterr().out)


def test_no_run(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r'holds no run: a work folder of training has folders \*/vis_data'):
        write_report(tmp_path)
