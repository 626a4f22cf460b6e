"""Pre-trained networks in the unchanged configs of hosts and in timm, from the file that the tool writes."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import safetensors.torch
import timm
import torch
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, DefaultScope
from torch import Tensor

from demo.networks import ARMS, SWIN, pretraining_config
from mm_ummae.analysis.networks import annotated_images
from mm_ummae.checkpoints import export_checkpoint, read_checkpoint
from mm_ummae.models import UMMAE, UMBackbone
from tests.builders import seeded
from tests.runs import pretrain_options

TINY = dict(type='mmpretrain.SwinTransformer', arch='tiny', window_size=7, pad_small_map=True)
STOCK = {
    'mmdet': 'swin/mask-rcnn_swin-t-p4-w7_fpn_1x_coco',
    'mmseg': 'swin/swin-tiny-patch4-window7-in1k-pre_upernet_8xb2-160k_ade20k-512x512',
}
SMALL_TIMM = dict(img_size=128, window_size=4, embed_dim=32, depths=(2, 2, 2, 2), num_heads=(2, 4, 8, 16))


def pretrained(network: dict[str, Any], folder: Path, size: int = 224) -> tuple[UMMAE, Path]:
    """UM-MAE with random weights everywhere, and its checkpoint."""
    torch.manual_seed(0)
    model = UMMAE(
        dict(type='mm_ummae.UMBackbone', network=network, img_size=size, secondary_token=True),
        neck=dict(type='mm_ummae.UMMAEDecoder', in_channels=768, embed_dims=32, depth=1, num_heads=2, img_size=size),
        head=dict(type='mm_ummae.UMMAEHead', in_channels=32),
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    torch.save(dict(state_dict=model.state_dict(), meta=dict(licence='mine')), folder / 'epoch_1.pth')
    return model, folder / 'epoch_1.pth'


@pytest.mark.integration
@pytest.mark.parametrize('host', STOCK)
def test_an_unchanged_config_starts_from_the_file_and_trains(
    host: str, tmp_path: Path, tool: Callable[[str], ModuleType], capsys: pytest.CaptureFixture[str]
) -> None:
    """One line of the stock config is another, the checkpoint; every tensor arrives, and a step changes them."""
    source, checkpoint = pretrained(TINY, tmp_path)
    file = tool('export_checkpoint').main([str(checkpoint), str(tmp_path / 'swin.pth'), '--to', host])
    assert f"init_cfg=dict(checkpoint='{file}')" in capsys.readouterr().out
    path = Path(import_module(host).__file__).parent / '.mim' / 'configs' / f'{STOCK[host]}.py'
    (tmp_path / 'mine.py').write_text(
        f"_base_ = '{path}'\nmodel = dict(backbone=dict(init_cfg=dict(checkpoint='{file}')))\n"
    )
    cfg = Config.fromfile(tmp_path / 'mine.py')
    side = 64
    if host == 'mmseg':  # which pads to its crops
        cfg.model.data_preprocessor.size = (side, side)
    with DefaultScope.overwrite_default_scope(host):
        model = revert_sync_batchnorm(MODELS.build(cfg.model))
        model.backbone.init_weights()
        optimizer = build_optim_wrapper(model, cfg.optim_wrapper)
    assert isinstance(model.backbone, import_module(f'{host}.models').backbones.SwinTransformer)
    expected, state = source.backbone.state_dict(), model.backbone.state_dict()
    # The norms of stages 1 to 3 are no part of this pre-training, nor of the files that the stock configs name
    fresh = {name for name in state if re.match(r'norm[012]\.', name)}
    assert len(state) - len(fresh) == len(expected) - 1 > 180
    assert all(torch.equal(state[name], expected[name]) for name in state.keys() - fresh)
    losses = model.train().train_step(annotated_images(host, (side, side), 1 + (host == 'mmseg')), optimizer)
    assert all(torch.as_tensor(value).isfinite().all() for value in losses.values())
    after = model.backbone.state_dict()
    assert not torch.equal(after['patch_embed.projection.weight'], expected['patch_embed.projection.weight'])


@pytest.mark.integration
def test_from_timm_and_back(tmp_path: Path, demo_data: Path, tool: Callable[[str], ModuleType]) -> None:
    """timm's weights start a pre-training on a folder, and timm loads what it leaves."""
    torch.manual_seed(1)
    stock = timm.create_model('swin_tiny_patch4_window7_224', num_classes=5, **SMALL_TIMM)
    safetensors.torch.save_file(stock.state_dict(), tmp_path / 'timm.safetensors')
    (tmp_path / 'mine.py').write_text(pretraining_config(ARMS['swin_compact']))
    start = dict(type='Pretrained', checkpoint=tmp_path / 'timm.safetensors')
    options = [f'model.backbone.init_cfg.{key}={value}' for key, value in start.items()]
    options += pretrain_options(demo_data, 1)
    tool('train').main([str(tmp_path / 'mine.py'), '--work-dir', str(tmp_path / 'run'), '--cfg-options', *options])
    (log,) = (tmp_path / 'run').glob('*/*.log')
    text = log.read_text()
    assert 'SwinTransformer: the weights are converted from Swin in the layout of timm' in text
    assert re.search(r'SwinTransformer: not used: head.fc.bias, head.fc.weight', text)

    file = export_checkpoint(tmp_path / 'run' / 'epoch_1.pth', tmp_path / 'back.safetensors', 'timm')
    back = timm.create_model('swin_tiny_patch4_window7_224', num_classes=0, checkpoint_path=str(file), **SMALL_TIMM)
    back.load_state_dict(safetensors.torch.load_file(file))  # strictly
    start['checkpoint'] = str(tmp_path / 'run' / 'epoch_1.pth')
    # Where a map is one window, timm does not shift; MMPretrain does not without this option
    trained = UMBackbone(dict(SWIN, pad_small_map=False), img_size=128, init_cfg=start)
    trained.init_weights()
    images = seeded(2, 3, 128, 128)
    with torch.no_grad():
        theirs = back.eval().forward_features(images).permute(0, 3, 1, 2)
        ours = trained.eval()(images)[-1]
        before = stock.eval().forward_features(images).permute(0, 3, 1, 2)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    assert (theirs - before).abs().max() > 1e-3, 'it was trained'
    assert (theirs - before).abs().mean() < 0.5 * before.abs().mean(), 'from those weights'


def small(**options: Any) -> UMBackbone:
    return UMBackbone(dict(SWIN, out_indices=(3,)), img_size=128, **options)


def saved(state: dict[str, Tensor], folder: Path) -> dict[str, str]:
    torch.save(state, folder / 'weights.pth')
    return dict(type='Pretrained', checkpoint=str(folder / 'weights.pth'))


def test_a_start_with_other_windows_and_outputs(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Tables are resized, output norms that the file lacks stay, and all of it is in the log."""
    stock = timm.create_model('swin_tiny_patch4_window7_224', num_classes=0, **SMALL_TIMM | dict(window_size=8))
    wide = UMBackbone(
        dict(SWIN, out_indices=(1, 3)), img_size=128, secondary_token=True, init_cfg=saved(stock.state_dict(), tmp_path)
    )
    wide.init_weights()
    state = wide.state_dict()
    assert torch.equal(state['norm3.weight'], stock.norm.weight) and (state['norm1.weight'] == 1).all()
    assert state['secondary_token'].std() > 0.01, 'initialised, though a checkpoint is loaded'
    assert state['stages.0.blocks.0.attn.w_msa.relative_position_bias_table'].shape == (49, 2)
    assert torch.equal(state['stages.3.blocks.1.ffn.layers.1.weight'], stock.layers[3].blocks[1].mlp.fc2.weight)


@pytest.mark.parametrize(
    ('change', 'text'),
    [
        (lambda state: state.pop('layers.1.blocks.0.norm1.weight'), r'missing: layers\.1\.blocks\.0\.norm1\.weight'),
        (lambda state: state.update(surplus=torch.zeros(1)), 'unexpected: surplus'),
        (
            lambda state: state.update({'norm.weight': torch.zeros(9)}),
            r'other shape: norm3\.weight \(9,\) instead of \(256,\)',
        ),
    ],
    ids=['missing', 'unexpected', 'shape'],
)
def test_a_start_that_does_not_fit_changes_nothing(change: Callable, text: str, tmp_path: Path) -> None:
    state = timm.create_model('swin_tiny_patch4_window7_224', num_classes=0, **SMALL_TIMM).state_dict()
    change(state)
    backbone = small(init_cfg=saved(state, tmp_path))
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    with pytest.raises(ValueError, match=rf'weights.pth does not fit UMBackbone, nothing was loaded.*{text}'):
        backbone.init_weights()
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())


def test_what_the_wrapper_holds_keeps_its_own_names(tmp_path: Path) -> None:
    """A network without a table of names, for its own class; other libraries are refused."""
    network = dict(type='mmdet.PyramidVisionTransformerV2', embed_dims=32, num_layers=[1, 1, 1, 1])
    backbone = UMBackbone(network, img_size=128, secondary_token=True)
    torch.save(dict(state_dict={f'backbone.{k}': v for k, v in backbone.state_dict().items()}), tmp_path / 'a.pth')
    file = export_checkpoint(tmp_path / 'a.pth', tmp_path / 'b.pth', 'mmdet')
    stock = MODELS.build(dict(network, init_cfg=dict(type='Pretrained', checkpoint=str(file))))
    stock.load_state_dict(read_checkpoint(file)['model'])  # strictly
    with pytest.raises(ValueError, match=r'a\.pth cannot be exported to timm.*none of Swin'):
        export_checkpoint(tmp_path / 'a.pth', tmp_path / 'c.pth', 'timm')
    assert not (tmp_path / 'c.pth').exists()


def test_the_file_says_where_it_is_from(tmp_path: Path, tool: Callable[[str], ModuleType]) -> None:
    _, checkpoint = pretrained(dict(TINY), tmp_path)
    run = tool('export_checkpoint').main
    meta = read_checkpoint(run([str(checkpoint), str(tmp_path / 'a.pth'), '--to', 'official']))['meta']
    assert (meta['source'], meta['licence'], meta['layout']) == ('epoch_1.pth', 'mine', 'official')
    file = run([str(checkpoint), str(tmp_path / 'b.pth'), '--to', 'transformers', '--safetensors'])
    assert file.name == 'b.safetensors'
    with safetensors.safe_open(file, framework='pt') as content:
        assert json.loads(content.metadata()['meta'])['layout'] == 'transformers'
    for arguments, text in (
        ([tmp_path / 'nowhere.pth', tmp_path / 'c.pth', '--to', 'timm'], 'nowhere.pth does not exist'),
        ([checkpoint, tmp_path / 'nowhere' / 'c.pth', '--to', 'timm'], 'must be a file in a folder that exists'),
        ([checkpoint, checkpoint, '--to', 'timm'], 'that is the source, which is not overwritten'),
    ):
        with pytest.raises(SystemExit, match=f'error: .*{text}'):
            run(list(map(str, arguments)))
    with pytest.raises(ValueError, match="to is 'keras', but it must be one of mmpretrain, mmdet"):
        export_checkpoint(checkpoint, tmp_path / 'c.pth', 'keras')
