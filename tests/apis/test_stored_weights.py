"""Small weights that come with the package: found by name and address, complete, and described by their files."""

from __future__ import annotations

import json
from pathlib import Path

import mmpretrain
import pytest
import torch
from mmengine.config import Config
from mmpretrain.models import SwinTransformer

import mm_ummae
from demo.report import RESULTS
from mm_ummae import resources
from mm_ummae.apis import reconstruct
from mm_ummae.checkpoints import read_checkpoint
from mm_ummae.models import UMSwin
from mm_ummae.resources import WEIGHTS_PREFIX, stored_weights, weights_path
from tests.configs.leaves import ENTRIES, ROOT

NAMES = ('lomar-vit-test', 'um-pvt-test', 'um-swin-test')
MODELS = {entry['Weights']: name for name, entry in ENTRIES.items() if 'Weights' in entry}


def test_all_are_in_the_index_and_on_the_card() -> None:
    assert tuple(stored_weights()) == NAMES and set(MODELS) == {f'{WEIGHTS_PREFIX}{name}' for name in NAMES}
    card = (ROOT / 'weights' / 'README.md').read_text()
    assert all(f'| {name} |' in card for name in NAMES) and 'Apache' in card


@pytest.mark.parametrize('name', NAMES)
def test_each_loads_completely_and_sees_the_picture(name: str) -> None:
    """As a model of ours and of MMPretrain; images are reconstructed better than with random weights."""
    torch.manual_seed(0)
    path, model = weights_path(name), mm_ummae.get_model(name, pretrained=True)
    state = read_checkpoint(path)['state_dict']
    assert path.stat().st_size < 7e6 and {value.dtype for value in state.values()} == {torch.float16}
    own = model.state_dict()
    assert own.keys() == state.keys() and all(torch.equal(own[key], value.float()) for key, value in state.items())
    theirs = mmpretrain.get_model(MODELS[f'{WEIGHTS_PREFIX}{name}'], pretrained=True).state_dict()
    assert all(torch.equal(own[key], value) for key, value in theirs.items())
    images = [ROOT / 'docs' / 'images' / 'demo_reconstruction.jpg']
    samples = [reconstruct(given, images, seed=0)[0] for given in (model, mm_ummae.get_model(name))]
    errors = [(sample.reconstruction - sample.image).square().mean() for sample in samples]
    assert errors[0] < 0.95 * errors[1]


@pytest.mark.parametrize('name', NAMES)
def test_the_files_of_its_training_agree(name: str) -> None:
    """Seed, length and commit of the checkpoint are those of the record; the probe rose far above random weights."""
    meta = read_checkpoint(weights_path(name))['meta']
    run = json.loads((RESULTS / 'weights' / f'{name}.json').read_text())
    lines = [json.loads(line) for line in (RESULTS / 'weights' / f'{name}_log.json').read_text().splitlines()]
    config = Config.fromfile(ROOT / meta['recipe'])
    assert meta['recipe'] == run['recipe'] == ENTRIES[MODELS[f'{WEIGHTS_PREFIX}{name}']]['Config']
    assert meta['seed'] == run['seed'] == config.randomness.seed
    assert meta['epochs'] == run['epochs'] == run['curve'][-1]['epoch'] == config.train_cfg.max_epochs
    assert meta['commit'] == run['environment']['commit'] and not meta['commit'].endswith('-dirty')
    assert lines[-1]['epoch'] == meta['epochs'] and lines[-1]['loss'] < 0.8 * lines[0]['loss']
    first, *_, last = run['curve']
    assert first['epoch'] == 0 and last['linear'] > first['linear'] + 5


def test_addresses_are_taken_by_backbones_and_refused_with_the_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also by those of the hosts, which read them through MMEngine."""
    start = dict(type='Pretrained', checkpoint='mm_ummae://um-swin-test', prefix='backbone')
    backbone = UMSwin(arch='test', img_size=128, init_cfg=start)
    backbone.init_weights()
    state = read_checkpoint(weights_path('um-swin-test'))['state_dict']
    assert all(torch.equal(value, state[f'backbone.{key}']) for key, value in backbone.state_dict().items())
    for init_cfg in (start, dict(start, prefix='backbone.')):
        stock = SwinTransformer(arch='tiny', init_cfg=dict(init_cfg, checkpoint='mm_ummae://um-swim'))
        with pytest.raises(FileNotFoundError, match=r"'mm_ummae://um-swim', but it must be one of .*um-swin-test"):
            stock.init_weights()
    monkeypatch.setattr(resources, 'WEIGHTS', Path('nowhere'))
    with pytest.raises(FileNotFoundError, match='nowhere does not exist: install the package'):
        weights_path('um-swin-test')
