"""Sheets of training samples: their content, panel by panel, and the configs that are refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

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
from tests.runs import PRETRAIN, ROOT


def leaf(pattern: str) -> Path:
    return sorted((ROOT / 'configs').rglob(f'{pattern}.py'))[0]


HTC = leaf('htcpp_um-swin-test_*')
MASK_RCNN = leaf('demo/mask-rcnn_um-swin-test_*')
# One config of each kind of pipeline, and the rows of an image
KINDS = {
    HTC: 2,
    leaf('htcpp-without-semantic_um-swin-tiny_*'): 1,
    leaf('mask-rcnn_um-swin-tiny_*ms-3x*'): 1,
    leaf('gfl_um-swin-tiny_*lsj*'): 1,
    leaf('upernet_um-swin-tiny_*'): 1,
}


def paths(config: Path, data: Path) -> dict:
    """Overrides of the data in a config."""
    if 'upernet' in config.name:
        return {'train_dataloader.dataset.data_root': f'{data}/ade/'}
    return {
        'train_dataloader.dataset.data_root': f'{data}/coco/',
        'train_dataloader.dataset.metainfo.classes': list(DIGIT_CLASSES),
    }


def build(config: Path, data: Path, changes: dict | None = None) -> tuple[BaseDataset, Callable]:
    cfg = Config.fromfile(config)
    cfg.merge_from_dict({**paths(config, data), **(changes or {})})
    dataset = build_training_set(cfg)
    return dataset, build_layers(cfg, dataset)


def enlarged(labels: np.ndarray) -> np.ndarray:
    """(H, W) at the size of a panel."""
    return mmcv.imresize(labels.astype(np.uint8), (SIDE, SIDE), interpolation='nearest')


def changed(panel: np.ndarray, dataset: BaseDataset, index: int) -> np.ndarray:
    """(SIDE, SIDE) bool, where a panel differs from the image of the data set."""
    image = mmcv.imread(dataset.get_data_info(index)['img_path'], channel_order='rgb')
    return np.abs(panel[:SIDE].astype(int) - mmcv.imrescale(image, (SIDE, SIDE))).max(2) > 2


# The sheet


@pytest.fixture
def draw(tool: Callable[[str], ModuleType], demo_data: Path, tmp_path: Path) -> Callable[..., np.ndarray]:
    """The sheet of one sample of one image: ``draw(config, *options)``."""

    def run(config: Path, *options: str) -> np.ndarray:
        changes = [f'{key}={value}'.replace(' ', '') for key, value in paths(config, demo_data).items()]
        out = tmp_path / 'new' / 'sheet.png'
        words = [str(config), '--out', str(out), '--images', '1', '--samples', '1', *options, '--cfg-options', *changes]
        assert tool('visualize_data').main(words) == out
        return np.asarray(Image.open(out))

    return run


@pytest.mark.parametrize('config', KINDS, ids=[path.stem for path in KINDS])
def test_every_kind_of_config_is_drawn(config: Path, draw: Callable[..., np.ndarray]) -> None:
    sheet, titles = draw(config), 2 * LINE + 2 * GAP
    height, width = SIDE + LINE + GAP, SIDE + GAP
    assert sheet.shape == (titles + KINDS[config] * height, GAP + 2 * width, 3)
    for row in range(KINDS[config]):
        for column in range(2):
            top, left = titles + row * height, GAP + column * width
            assert sheet[top : top + SIDE, left : left + SIDE].std() > 10, 'an empty panel'


def test_the_sheet_depends_on_the_seed_and_ends_with_the_data_set(draw: Callable[..., np.ndarray]) -> None:
    first, same, other = (draw(HTC, '--seed', seed) for seed in '001')
    assert np.array_equal(first, same) and not np.array_equal(first, other)
    rows = (len(draw(MASK_RCNN, '--images', '99')) - 2 * LINE - 2 * GAP) / (SIDE + LINE + GAP)
    assert rows == 4, 'as many as the data set has images'


# Its panels


def test_the_first_column_is_the_data_set_itself(demo_data: Path) -> None:
    """Without resizing, cropping, and InstaBoost; also within a wrapper."""
    dataset, _ = build(HTC, demo_data, {'train_dataloader.dataset.pipeline.1.aug_ratio': 1.0})
    first, second = draw_samples(dataset, 2, 1)
    info = dataset.get_data_info(2)
    assert np.array_equal(first['inputs'].numpy().transpose(1, 2, 0), mmcv.imread(info['img_path']))
    assert first['data_samples'].gt_instances.bboxes.tensor.tolist() == [item['bbox'] for item in info['instances']]
    assert 'moved' not in first and second['inputs'].shape != first['inputs'].shape
    cfg = Config.fromfile(HTC)
    cfg.merge_from_dict(paths(HTC, demo_data))
    cfg.train_dataloader.dataset = dict(type='RepeatDataset', times=3, dataset=cfg.train_dataloader.dataset)
    assert len(build_training_set(cfg)) == len(dataset)


@pytest.mark.parametrize('ratio', [0.0, 1.0])
def test_the_caption_has_the_number_of_moved_instances(
    demo_data: Path, monkeypatch: pytest.MonkeyPatch, ratio: float
) -> None:
    dataset, layers_of = build(HTC, demo_data, {'train_dataloader.dataset.pipeline.1.aug_ratio': ratio})
    sizes = [len(dataset.get_data_info(index)['instances']) for index in range(len(dataset))]
    index = int(np.argmax(sizes))
    _, sample = draw_samples(dataset, index, 1)
    texts, draw = [], Visualizer.draw_texts

    def note(self: Visualizer, text: str, *args: object, **kwargs: object) -> Visualizer:
        texts.append(text)
        return draw(self, text, *args, **kwargs)

    monkeypatch.setattr(Visualizer, 'draw_texts', note)
    panels = draw_panels(layers_of, sample)
    height, width = sample['inputs'].shape[1:]
    assert sizes[index] > 1 and len(panels) == 2
    assert texts.count(f'{width} × {height} px, {int(ratio * sizes[index])} moved') == 2


def test_boxes_and_masks_lie_on_their_objects(demo_data: Path) -> None:
    """Outside the boxes a panel is the enlarged image; masks are painted."""
    dataset, layers_of = build(MASK_RCNN, demo_data)
    for index in range(len(dataset)):
        sample, _ = draw_samples(dataset, index, 1)
        (panel,) = draw_panels(layers_of, sample)
        drawn, inside = changed(panel, dataset, index), np.zeros((SIDE, SIDE), bool)
        ground_truth = sample['data_samples'].gt_instances
        for box in ground_truth.bboxes.tensor.numpy() * SIDE / sample['inputs'].shape[1]:
            left, top, right, bottom = np.rint(box).astype(int)
            inside[max(top - 3, 0) : bottom + 3, max(left - 3, 0) : right + 3] = True
        assert not drawn[~inside].any()
        assert drawn[enlarged(ground_truth.masks.masks.any(0)) > 0].mean() > 0.9


def test_maps_have_a_colour_for_each_class_and_none_where_they_are_ignored(demo_data: Path) -> None:
    dataset, layers_of = build(HTC, demo_data)
    sample, _ = draw_samples(dataset, 0, 1)
    _, panel = draw_panels(layers_of, sample)
    labels = enlarged(sample['data_samples'].gt_sem_seg.sem_seg[0].numpy())
    drawn = changed(panel, dataset, 0)
    assert drawn[labels != 255].mean() > 0.95
    assert drawn[labels == 255].mean() < 0.1  # texts may lie on it


def test_images_keep_their_aspect_ratio(demo_data: Path) -> None:
    """Centred on white, the longer side as long as the panel."""
    changes = {'train_dataloader.dataset.pipeline.2': dict(type='Resize', scale=(200, 50), keep_ratio=False)}
    dataset, layers_of = build(MASK_RCNN, demo_data, changes)
    (panel,) = draw_panels(layers_of, draw_samples(dataset, 0, 1)[1])
    assert panel.shape == (SIDE + LINE, SIDE, 3)
    middle = slice(3 * SIDE // 8, 5 * SIDE // 8)
    assert (panel[: middle.start] == 255).all()
    assert (panel[middle].reshape(-1, 3) < 255).any(1).mean() > 0.9


# Errors


def test_a_rejected_sample_is_repeated(demo_data: Path) -> None:
    dataset, _ = build(MASK_RCNN, demo_data)
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
        ("default_scope = 'mmdet'", (), r'config\.py has no train_dataloader, but its data set and pipeline are drawn'),
        (f'_base_ = {str(PRETRAIN)!r}', (), r"default_scope of .* is 'mmpretrain', but it must be 'mmdet' or 'mmseg'"),
        ('', ('--images', '0'), r'images is 0, but it must be at least 1'),
        ('', ('--samples', '0'), r'samples is 0, but it must be at least 1'),
        ('', ('--out', 'a.tiff'), r"a\.tiff has the suffix '\.tiff', but a sheet is written as"),
    ],
)
def test_wrong_arguments_are_refused(
    text: str, options: tuple[str, ...], message: str, tool: Callable[[str], ModuleType], tmp_path: Path
) -> None:
    (tmp_path / 'config.py').write_text(f'{text}\n')
    with pytest.raises(ValueError, match=message):
        tool('visualize_data').main([str(tmp_path / 'config.py'), '--out', str(tmp_path / 'sheet.png'), *options])
    assert not (tmp_path / 'sheet.png').exists()
