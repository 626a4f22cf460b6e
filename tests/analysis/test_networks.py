"""Networks with random weights, images for them, and reports."""

from __future__ import annotations

import copy
import json
import re
import subprocess
import sys
from pathlib import Path

import mmcv
import pytest
import torch
from mmengine.config import Config
from torch import nn

from mm_ummae.analysis import build_network, environment, read_config, results_table, write_json
from mm_ummae.analysis.networks import annotated_images, random_image
from tests.configs.leaves import config, leaf

DETECTOR = leaf('mask-rcnn_um-swin-test_1xb4-400it_demo-128px')


def test_configs_of_hosts_and_of_the_package_are_found() -> None:
    """The latter also from a wheel, far from a checkout."""
    assert read_config('mmdet::swin/mask-rcnn_swin-t-p4-w7_fpn_1x_coco.py').model.type == 'MaskRCNN'
    options = {'model.backbone.drop_path_rate': 0.5}
    found = read_config('mm_ummae::demo/ummae_swin-test_1xb16-coslr-20e_demo-128px.py', options)
    assert (found.model.type, found.model.backbone.drop_path_rate) == ('mm_ummae.UMMAE', 0.5)


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('default_scope = "mmdet"', r'the config .*some\.py has no model'),
        (
            'model = dict()',
            r'default_scope of the config .*some\.py is None, but it must be one of mmdet, mmseg, mmpre',
        ),
        ('model = dict(); default_scope = "mmpose"', "is 'mmpose', but it must be one of"),
    ],
)
def test_configs_without_a_network_are_refused(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / 'some.py').write_text(text)
    with pytest.raises(ValueError, match=message):
        read_config(tmp_path / 'some.py')


@pytest.mark.parametrize('name', ['missing.py', 'mm_ummae::missing.py'])
def test_a_missing_config_is_named(name: str) -> None:
    with pytest.raises(FileNotFoundError, match=r'missing\.py'):
        read_config(name)


def test_weights_are_random_but_always_the_same() -> None:
    """The config names a checkpoint that does not exist, and is not changed."""
    cfg = config(DETECTOR)
    assert cfg.model.backbone.init_cfg.type == 'Pretrained'
    before = copy.deepcopy(cfg.model)
    first, second = build_network(cfg).state_dict(), build_network(cfg).state_dict()
    assert cfg.model == before
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    assert first['backbone.stages.0.blocks.0.attn.qkv.weight'].std() > 0.01


def test_batch_norm_replaces_the_synchronised() -> None:
    cfg = config(leaf('upernet_um-pvt-small_8xb2-amp-160k_ade20k-512x512-whole'))
    assert cfg.model.decode_head.norm_cfg.type == 'SyncBN'
    cfg.model.backbone.arch = 'test'
    cfg.model.neck.in_channels = [32, 64, 80, 128]
    model = build_network(cfg)
    assert not model.training
    assert any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules())
    assert not any(isinstance(module, nn.SyncBatchNorm) for module in model.modules())


def test_custom_imports_of_a_config_are_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also of a config that was not read from a file."""
    (tmp_path / 'own_network.py').write_text(
        'from mmengine.model import BaseModule\n'
        'from mmengine.registry import MODELS\n'
        'MODELS.register_module()(type("OwnNetwork", (BaseModule,), dict(__init__=lambda self, backbone: '
        'BaseModule.__init__(self))))\n'
    )
    monkeypatch.syspath_prepend(tmp_path)
    model = dict(type='mmengine.OwnNetwork', backbone=dict())
    cfg = Config(dict(model=model, default_scope='mmpretrain', custom_imports=dict(imports=['own_network'])))
    assert type(build_network(cfg)).__name__ == 'OwnNetwork'


def test_images_are_those_of_a_fixed_seed() -> None:
    first, second = (random_image('mmseg', (20, 30)) for _ in range(2))
    assert torch.equal(first['inputs'][0], second['inputs'][0])
    assert first['inputs'][0].shape == (3, 20, 30) and first['inputs'][0].dtype == torch.uint8
    assert first['data_samples'][0].ori_shape == (20, 30)
    annotated = annotated_images('mmdet', (100, 150), 2)
    boxes = [sample.gt_instances.bboxes.tensor for sample in annotated['data_samples']]
    assert [box.shape for box in boxes] == [(20, 4)] * 2 and not torch.equal(*boxes)
    assert all((box[:, 2:] > box[:, :2]).all() and (box >= 0).all() for box in boxes)


def test_hosts_of_dense_tasks_are_not_needed() -> None:
    code = (
        'import sys; sys.modules.update(dict.fromkeys(("mmdet", "mmseg")));'
        'from mm_ummae.analysis.networks import random_image; random_image("mmpretrain", (8, 8))'
    )
    subprocess.run([sys.executable, '-c', code], check=True)


# Reports


def test_environment_names_hardware_and_versions() -> None:
    found = environment('cpu')
    assert found['cpu'] and found['cores'] >= 1 and found['threads'] == torch.get_num_threads()
    # The label of a build, as in 2.1.2+cu121, is unknown to pip
    assert found['versions']['torch'].partition('+')[0] == torch.__version__.partition('+')[0]
    assert found['versions']['mmcv'] == mmcv.__version__
    assert found['system']['GCC']
    assert re.fullmatch(r'\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d\d:\d\d', found['date'])
    assert json.loads(json.dumps(found)) == found
    assert str(Path.home()) not in json.dumps(found)


def test_results_are_a_markdown_table_of_medians() -> None:
    """With a column for each quantity that was measured."""
    row = dict(name='net', parameters=12_340_000, seconds=[2.0, 30.0, 8.0], memory=3_210_000_000)
    assert results_table([row, row | dict(name='b', memory=None)]).splitlines() == [
        '| name | parameters (M) | seconds | peak memory (GB) |',
        '| --- | ---: | ---: | ---: |',
        '| net | 12.3 | 8 (2 to 30) | 3.21 |',
        '| b | 12.3 | 8 (2 to 30) | – |',
    ]
    row = dict(name='a', multiply_adds=dict(backbone=6 * 10**9, heads=4 * 10**9), batch=4, flops=dict(step=8 * 10**9))
    assert results_table([row]).splitlines()[2] == '| a | 10.0 (60 % backbone, 40 % heads) | 2.0 |'
    row = dict(name='a', images_per_second=[2.0, 4.0, 3.0], images_per_second_without_loader=[5.0])
    assert results_table([row]).splitlines()[2] == '| a | 3 (2 to 4) | 5 (5 to 5) |'


def test_a_report_that_cannot_be_written_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        write_json(dict(value=object()), tmp_path / 'report.json')
    assert not list(tmp_path.iterdir())
