"""Sheets of training samples: their content, panel by panel, and the configs that are refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from unittest import mock

import mmcv
import numpy as np
import pytest
from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.visualization import Visualizer
from PIL import Image

from demo.images import DIGIT_CLASSES
from mm_ummae.visualization.data import SIDE, build_layers, build_training_set, draw_panels, draw_samples
from mm_ummae.visualization.sheets import GAP, LINE
from tests.runs import PRETRAIN, leaf

pytestmark = pytest.mark.slow

HTC = leaf('htcpp_um-swin-test_*')
MASK_RCNN = leaf('demo/mask-rcnn_um-swin-test_*')
PIPELINE = 'train_dataloader.dataset.pipeline'
DIGITS = f'--cfg-options train_dataloader.dataset.metainfo.classes={",".join(DIGIT_CLASSES)}'


@pytest.fixture(autouse=True)
def folder(demo_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A working folder with the demo's data where the configs expect theirs."""
    (tmp_path / 'data' / 'ade').mkdir(parents=True)
    for name, part in (('demo', ''), ('coco', 'coco'), ('ade/ADEChallengeData2016', 'ade')):
        (tmp_path / 'data' / name).symlink_to(demo_data / part)
    monkeypatch.chdir(tmp_path)


def build(config: Path, changes: dict | None = None) -> tuple[BaseDataset, Callable]:
    cfg = Config.fromfile(config)
    cfg.merge_from_dict(changes or {})
    dataset = build_training_set(cfg)
    return dataset, build_layers(cfg, dataset)


# The sheet


@pytest.fixture
def draw(tool: Callable[[str], ModuleType]) -> Callable[..., np.ndarray]:
    """The sheet of one sample of one image: ``draw(config, options)``."""

    def run(config: Path, options: str = '') -> np.ndarray:
        words = f'{config} --out new/sheet.png --images 1 --samples 1 {options}'.split()
        assert tool('visualize_data').main(words) == Path('new/sheet.png')
        return np.asarray(Image.open('new/sheet.png'))

    return run


@pytest.mark.parametrize(
    ('config', 'options', 'rows'),
    [
        ('htcpp_um-swin-test_*', '', 2),
        ('htcpp-without-semantic_um-swin-tiny_*', DIGITS, 1),
        ('mask-rcnn_um-swin-tiny_*ms-3x*', DIGITS, 1),
        ('gfl_um-swin-tiny_*lsj*', DIGITS, 1),
        ('upernet_um-swin-tiny_*', '', 1),
    ],
)
def test_every_kind_of_pipeline_is_drawn(config: str, options: str, rows: int, draw: Callable[..., np.ndarray]) -> None:
    sheet, titles = draw(leaf(config), options), 2 * LINE + 2 * GAP
    height, width = SIDE + LINE + GAP, SIDE + GAP
    assert sheet.shape == (titles + rows * height, GAP + 2 * width, 3)
    for row in range(rows):
        for column in range(2):
            top, left = titles + row * height, GAP + column * width
            assert sheet[top : top + SIDE, left : left + SIDE].std() > 10, 'an empty panel'


def test_the_sheet_depends_on_the_seed_and_ends_with_the_data_set(draw: Callable[..., np.ndarray]) -> None:
    first, same, other = (draw(MASK_RCNN, f'--seed {seed}') for seed in '001')
    assert np.array_equal(first, same) and not np.array_equal(first, other)
    rows = (len(draw(MASK_RCNN, '--images 99')) - 2 * LINE - 2 * GAP) / (SIDE + LINE + GAP)
    assert rows == 4, 'as many as the data set has images'


# Its panels


def test_the_first_column_is_the_data_set_itself() -> None:
    """Without resizing, cropping, and InstaBoost; also within a wrapper."""
    cfg = Config.fromfile(HTC)
    cfg.train_dataloader.dataset.pipeline[1].aug_ratio = 1.0
    cfg.train_dataloader.dataset = dict(type='RepeatDataset', times=3, dataset=cfg.train_dataloader.dataset)
    dataset = build_training_set(cfg)
    first, second = draw_samples(dataset, 2, 1)
    info = dataset.get_data_info(2)
    assert np.array_equal(first['inputs'].numpy().transpose(1, 2, 0), mmcv.imread(info['img_path']))
    assert first['data_samples'].gt_instances.bboxes.tensor.tolist() == [item['bbox'] for item in info['instances']]
    assert 'moved' not in first and second['inputs'].shape != first['inputs'].shape
    assert len(dataset) == 4


@pytest.mark.parametrize('ratio', [0.0, 1.0])
def test_the_caption_has_the_number_of_moved_instances(ratio: float) -> None:
    dataset, layers_of = build(HTC, {f'{PIPELINE}.1.aug_ratio': ratio})
    sizes = [len(dataset.get_data_info(index)['instances']) for index in range(len(dataset))]
    index = int(np.argmax(sizes))
    _, sample = draw_samples(dataset, index, 1)
    with mock.patch.object(Visualizer, 'draw_texts', autospec=True, side_effect=Visualizer.draw_texts) as draw:
        panels = draw_panels(layers_of, sample)
    height, width = sample['inputs'].shape[1:]
    assert sizes[index] > 1 and len(panels) == 2
    caption = f'{width} × {height} px, {int(ratio * sizes[index])} moved'
    assert [call.args[1] for call in draw.call_args_list].count(caption) == 2


def test_boxes_masks_and_maps_lie_on_their_objects() -> None:
    """Outside the boxes a panel is the enlarged image; masks and classes are painted, ignored places are not."""
    dataset, layers_of = build(HTC)
    for index in range(len(dataset)):
        sample, _ = draw_samples(dataset, index, 1)
        ground_truth = sample['data_samples']
        image = mmcv.imread(ground_truth.img_path, channel_order='rgb')
        objects, classes = (
            np.abs(panel[:SIDE].astype(int) - mmcv.imrescale(image, (SIDE, SIDE))).max(2) > 2
            for panel in draw_panels(layers_of, sample)
        )
        masks, labels = (
            mmcv.imresize(x.astype(np.uint8), (SIDE, SIDE), interpolation='nearest')
            for x in (ground_truth.gt_instances.masks.masks.any(0), ground_truth.gt_sem_seg.sem_seg[0].numpy())
        )
        inside = np.zeros((SIDE, SIDE), bool)
        for box in ground_truth.gt_instances.bboxes.tensor.numpy() * SIDE / len(image):
            left, top, right, bottom = np.rint(box).astype(int)
            inside[max(top - 3, 0) : bottom + 3, max(left - 3, 0) : right + 3] = True
        assert not objects[~inside].any() and objects[masks > 0].mean() > 0.9
        assert classes[labels != 255].mean() > 0.95
        assert classes[labels == 255].mean() < 0.1  # texts may lie on it


def test_images_keep_their_aspect_ratio() -> None:
    """Centred on white, the longer side as long as the panel."""
    dataset, layers_of = build(MASK_RCNN, {f'{PIPELINE}.2': dict(type='Resize', scale=(200, 50), keep_ratio=False)})
    (panel,) = draw_panels(layers_of, draw_samples(dataset, 0, 1)[1])
    assert panel.shape == (SIDE + LINE, SIDE, 3)
    middle = slice(3 * SIDE // 8, 5 * SIDE // 8)
    assert (panel[: middle.start] == 255).all()
    assert (panel[middle].reshape(-1, 3) < 255).any(1).mean() > 0.9


# Errors


def test_a_rejected_sample_is_repeated() -> None:
    dataset, _ = build(MASK_RCNN)
    calls = []
    dataset.pipeline.transforms.insert(1, lambda results: calls.append(1) or (results if len(calls) == 3 else None))
    _, sample = draw_samples(dataset, 1, 1)
    assert sample['data_samples'].img_path == dataset.get_data_info(1)['img_path']
    dataset.max_refetch = 5
    with pytest.raises(ValueError, match='the pipeline rejected image 1 of the data set 5 times'):
        draw_samples(dataset, 1, 1)


@pytest.mark.parametrize(
    ('text', 'options', 'message'),
    [
        ("default_scope = 'mmdet'", '', r'config\.py has no train_dataloader, but its data set and pipeline are drawn'),
        (f'_base_ = {str(PRETRAIN)!r}', '', r"default_scope of .* is 'mmpretrain', but it must be 'mmdet' or 'mmseg'"),
        ('', '--images 0', r'images is 0, but it must be at least 1'),
        ('', '--samples 0', r'samples is 0, but it must be at least 1'),
        ('', '--out a.tiff', r"a\.tiff has the suffix '\.tiff', but a sheet is written as"),
    ],
)
def test_wrong_arguments_are_refused(
    text: str, options: str, message: str, tool: Callable[[str], ModuleType], tmp_path: Path
) -> None:
    (tmp_path / 'config.py').write_text(f'{text}\n')
    with pytest.raises(SystemExit, match=message):
        tool('visualize_data').main(['config.py', *options.split()])
    assert {path.name for path in tmp_path.iterdir()} == {'data', 'config.py'}
