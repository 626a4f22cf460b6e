"""tools/test.py: evaluation of a trained checkpoint, drawn predictions, and its options in configs of every host."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from mmengine.config import Config
from PIL import Image

from tests.runs import CLASSIFY, IN_PROCESS, leaf

PURE_PYTHON = """
from mmdet.evaluation import CocoMetric
from mmengine.config import read_base
from {host}.engine.hooks import {hook}
visualizer = dict()
default_hooks = dict(visualization=dict(type={hook}))
test_evaluator = dict(type=CocoMetric)
test_dataloader = dict()
"""


@pytest.mark.integration
def test_evaluation_gives_the_accuracy_of_the_training(
    tool: Callable[[str], ModuleType], demo_data: Path, tmp_path: Path
) -> None:
    """From the saved weights: the metric of the validation during the run; --show-dir gets every image."""
    options = ['--cfg-options', 'train_dataloader.batch_size=10', 'model.backbone.init_cfg=None']
    for split in ('train', 'val', 'test'):
        loader = (f'dataset.data_root={demo_data}/imagenet/', *IN_PROCESS)
        options += [f'{split}_dataloader.{option}' for option in loader]
    options += ['train_cfg.max_iters=2', 'train_cfg.val_interval=2']
    train = tool('train')
    runner = train.build_runner(train.parse_args([str(CLASSIFY), '--work-dir', str(tmp_path / 'run'), *options]))
    runner.train()
    expected = runner.message_hub.get_scalar('val/accuracy/top1').current()

    words = [str(CLASSIFY), str(tmp_path / 'run' / 'iter_2.pth'), '--work-dir', str(tmp_path / 'test')]
    metrics = tool('test').main([*words, '--show-dir', 'seen', *options, 'experiment_name=test'])
    assert metrics['accuracy/top1'] == pytest.approx(expected) and 0 <= expected <= 100
    (log,) = (tmp_path / 'test').glob('*/*.log')
    assert f'accuracy/top1: {expected:.4f}' in log.read_text()
    assert len(list((tmp_path / 'test' / 'seen').rglob('*.png'))) == 10


@pytest.mark.parametrize(
    ('write', 'message'),
    [
        (lambda path: None, r'^error: the checkpoint .*x\.pth does not exist$'),
        (lambda path: path.write_bytes(b'PK'), r'^error: the checkpoint .*x\.pth cannot be read\. It is truncated'),
        (
            lambda path: torch.save(dict(state_dict={'head.fc.bias': torch.ones(3)}), path),
            r'^error: the checkpoint .*x\.pth \(load_from\) does not fit ImageClassifier\. missing: ',
        ),
    ],
)
def test_errors_of_checkpoints_are_one_line(
    write: Callable[[Path], None], message: str, tool: Callable[[str], ModuleType], tmp_path: Path
) -> None:
    write(tmp_path / 'x.pth')
    config = f"_base_ = ['{CLASSIFY}']\ncustom_hooks = [dict(type='mm_ummae.CheckpointKeysHook')]\n"
    (tmp_path / 'strict.py').write_text(config)
    for name in map(str, range(10)):  # as many classes as the head has
        (tmp_path / 'val' / name).mkdir(parents=True)
        Image.new('RGB', (128, 128)).save(tmp_path / 'val' / name / '0.png')
    options = [f'test_dataloader.{option}' for option in (f'dataset.data_root={tmp_path}/', *IN_PROCESS)]
    words = [str(tmp_path / 'strict.py'), str(tmp_path / 'x.pth'), '--work-dir', str(tmp_path / 'test')]
    with pytest.raises(SystemExit, match=message) as error:
        tool('test').main([*words, '--cfg-options', *options])
    assert '\n' not in str(error.value)


@pytest.mark.parametrize(
    ('path', 'switch'),
    [
        (CLASSIFY, 'enable'),
        (leaf('mask_rcnn/mask-rcnn_um-swin-tiny_*'), 'draw'),
        (leaf('upernet/upernet_um-swin-tiny_*'), 'draw'),
    ],
    ids=['mmpretrain', 'mmdet', 'mmseg'],
)
def test_show_dir_switches_the_hook_of_the_host_on(
    path: Path, switch: str, config_of: Callable[..., Config], tmp_path: Path
) -> None:
    off = config_of('test', path, 'x.pth', '--work-dir', tmp_path)
    assert not off.default_hooks.visualization.get(switch, False) and 'save_dir' not in off.visualizer
    assert off.load_from == 'x.pth' and off.runner_class == 'ResumableRunner'
    on = config_of('test', path, 'x.pth', '--work-dir', tmp_path, '--show-dir', 'seen')
    hook = on.default_hooks.visualization
    assert hook[switch] is True and {'enable', 'draw'} & set(hook) == {switch}
    assert on.visualizer.save_dir == str(tmp_path / 'seen')


@pytest.mark.parametrize(
    ('host', 'hook', 'switch'),
    [('mmpretrain', 'VisualizationHook', 'enable'), ('mmdet', 'DetVisualizationHook', 'draw')],
)
def test_pure_python_configs(
    host: str, hook: str, switch: str, config_of: Callable[..., Config], tmp_path: Path
) -> None:
    """Of MMEngine's new style: types are classes."""
    (tmp_path / 'pure.py').write_text(PURE_PYTHON.format(host=host, hook=hook))
    options = ('--show-dir', 'seen', '--format-only', tmp_path / 'new' / 'results')
    cfg = config_of('test', tmp_path / 'pure.py', 'x.pth', *options)
    assert {'enable', 'draw'} & set(cfg.default_hooks.visualization) == {switch}
    assert cfg.test_evaluator.format_only is True
    assert cfg.test_evaluator.outfile_prefix == str(tmp_path / 'new' / 'results') and (tmp_path / 'new').is_dir()


@pytest.mark.parametrize(
    ('text', 'options', 'message'),
    [
        ('', '--show-dir seen', r'--show-dir needs default_hooks\.visualization, which .*bare\.py does not set'),
        (
            'default_hooks = dict(visualization=dict())',
            '--show-dir seen',
            r'--show-dir needs visualizer, which .*bare\.py does not set',
        ),
        (
            '',
            '',
            r'bare\.py sets no test_dataloader: .* drawn by tools/visualize\.py, its features by tools/visualize_f',
        ),
        ('', '--tta', r'--tta needs tta_model and tta_pipeline, which .*bare\.py does not set'),
        (
            "test_evaluator = dict(type='IoUMetric')",
            '--format-only results',
            r'--format-only needs a CocoMetric as test_evaluator, but in .*bare\.py it is IoUMetric',
        ),
        (
            "test_evaluator = [dict(type='CocoMetric')]",
            '--format-only results',
            r"--format-only needs a CocoMetric as test_evaluator, but in .*bare\.py it is \[\{'type': 'CocoMetric'\}\]",
        ),
    ],
)
def test_options_name_what_the_config_lacks(
    text: str, options: str, message: str, tool: Callable[[str], ModuleType], tmp_path: Path
) -> None:
    (tmp_path / 'bare.py').write_text(f'model = dict()\n{text}\n')
    with pytest.raises(SystemExit, match=message):
        tool('test').main([str(tmp_path / 'bare.py'), 'x.pth', *options.split()])
