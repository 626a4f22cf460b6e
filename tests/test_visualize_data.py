"""The sheet of augmented samples: what stands where on it, and which configs it takes."""

from __future__ import annotations

import importlib.util
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
from demo.make_data import make_demo_data
from mm_ummae.visualization.sheets import GAP, LINE

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / 'configs'
SIDE = 64  # pixels of the images
HTC = CONFIGS / 'htc' / 'htcpp_um-swin-test_fpn_1xb8-200it_demo-128px.py'
MASK_RCNN = CONFIGS / 'demo' / 'mask-rcnn_um-swin-test_1xb8-200it_demo-128px.py'
# Each kind of pipeline, and the rows that an image takes
KINDS = {
    HTC: 2,
    CONFIGS / 'htc' / 'htcpp-without-semantic_um-swin-tiny_fpn_8xb2-amp-6x_coco.py': 1,
    CONFIGS / 'mask_rcnn' / 'mask-rcnn_um-swin-tiny_fpn_amp-ms-3x_coco.py': 1,
    CONFIGS / 'gfl' / 'gfl_um-swin-tiny_fpn_8xb2-amp-lsj-25e_coco.py': 1,
    CONFIGS / 'upernet' / 'upernet_um-swin-tiny_8xb2-amp-160k_ade20k-512x512.py': 1,
}


@pytest.fixture(scope='module')
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location('visualize_data_tool', ROOT / 'tools' / 'visualize_data.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope='module')
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    counts = dict(num_pretrain=1, num_labelled_train=10, num_labelled_val=10)
    counts |= dict(num_coco_train=4, num_coco_val=1, num_ade_train=4, num_ade_val=1)
    return make_demo_data(tmp_path_factory.mktemp('data') / 'demo', image_size=SIDE, **counts)


def places(config: Path, data: Path) -> dict:
    """Overrides of the config's places."""
    if 'upernet' in config.name:
        return {'train_dataloader.dataset.data_root': f'{data}/ade/'}
    dataset = 'train_dataloader.dataset.'
    return {dataset + 'data_root': f'{data}/coco/', dataset + 'metainfo.classes': list(DIGIT_CLASSES)}


def arguments(config: Path, data: Path, out: Path, *more: str) -> list[str]:
    changes = [f'{key}={value}'.replace(' ', '') for key, value in places(config, data).items()]
    return [str(config), '--out', str(out), *more, '--cfg-options', *changes]


def build(tool: ModuleType, config: Path, data: Path, changes: dict | None = None) -> BaseDataset:
    cfg = Config.fromfile(config)
    cfg.merge_from_dict({**places(config, data), **(changes or {})})
    return tool.build_dataset(cfg)


def changed(cell: np.ndarray, picture: np.ndarray, side: int) -> np.ndarray:
    """(side, side) bool, where a cell is not its image."""
    return np.abs(cell[:side].astype(int) - mmcv.imrescale(picture, (side, side))).max(2) > 2


def read(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


# The sheet


@pytest.mark.parametrize('config', KINDS, ids=[path.stem for path in KINDS])
def test_every_kind_of_config_is_drawn(tool: ModuleType, config: Path, data: Path, tmp_path: Path) -> None:
    out = tool.main(arguments(config, data, tmp_path / 'made' / 'sheet.png', '--pictures', '1', '--samples', '1'))
    sheet, cell = read(out), tool.CELL + LINE
    titles = 2 * LINE + 2 * GAP
    assert out == tmp_path / 'made' / 'sheet.png'
    assert sheet.shape == (titles + KINDS[config] * (cell + GAP), GAP + 2 * (tool.CELL + GAP), 3)
    for row in range(KINDS[config]):
        for column in range(2):
            top, left = titles + row * (cell + GAP), GAP + column * (tool.CELL + GAP)
            assert sheet[top : top + tool.CELL, left : left + tool.CELL].std() > 10, 'an empty place'


def test_the_sheet_depends_on_the_seed_alone(tool: ModuleType, data: Path, tmp_path: Path) -> None:
    sheets = []
    for name, seed in (('a', 0), ('b', 0), ('c', 1)):
        more = ('--pictures', '1', '--samples', '1', '--seed', str(seed))
        sheets.append(read(tool.main(arguments(HTC, data, tmp_path / f'{name}.png', *more))))
    assert np.array_equal(sheets[0], sheets[1])
    assert not np.array_equal(sheets[0], sheets[2])


def test_there_are_no_more_pictures_than_the_data_set_has(
    tool: ModuleType, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tool.main(arguments(MASK_RCNN, data, tmp_path / 'sheet.png', '--pictures', '99', '--samples', '1'))
    assert '1 draws of each of 4 images' in capsys.readouterr().out


# Its cells


def test_the_first_column_is_the_data_set_itself(tool: ModuleType, data: Path) -> None:
    """Not resized, cropped, or boosted."""
    dataset = build(tool, HTC, data, {'train_dataloader.dataset.pipeline.1.aug_ratio': 1.0})
    first, second = tool.draw_samples(dataset, 2, 1)
    info = dataset.get_data_info(2)
    assert np.array_equal(first['inputs'].numpy().transpose(1, 2, 0), mmcv.imread(info['img_path']))
    assert first['data_samples'].gt_instances.bboxes.tensor.tolist() == [item['bbox'] for item in info['instances']]
    assert 'moved' not in first and second['inputs'].shape != first['inputs'].shape


@pytest.mark.parametrize('ratio', [0.0, 1.0])
def test_the_caption_tells_how_many_instances_moved(
    tool: ModuleType, data: Path, monkeypatch: pytest.MonkeyPatch, ratio: float
) -> None:
    dataset = build(tool, HTC, data, {'train_dataloader.dataset.pipeline.1.aug_ratio': ratio})
    sizes = [len(dataset.get_data_info(index)['instances']) for index in range(len(dataset))]
    index = int(np.argmax(sizes))
    _, sample = tool.draw_samples(dataset, index, 1)
    texts, draw = [], Visualizer.draw_texts

    def note(self: Visualizer, text: str, *args: object, **kwargs: object) -> Visualizer:
        texts.append(text)
        return draw(self, text, *args, **kwargs)

    monkeypatch.setattr(Visualizer, 'draw_texts', note)
    cells = tool.draw_cells(tool.build_visualizers(dataset), sample)
    height, width = sample['inputs'].shape[1:]
    assert sizes[index] > 1 and len(cells) == 2
    assert texts.count(f'{width} × {height} px, {int(ratio * sizes[index])} moved') == 2


def test_boxes_and_masks_lie_on_their_objects(tool: ModuleType, data: Path) -> None:
    """Outside of the boxes a cell is its image, enlarged; inside of them it is painted."""
    dataset = build(tool, MASK_RCNN, data)
    visualizers = tool.build_visualizers(dataset)
    for index in range(len(dataset)):
        sample, _ = tool.draw_samples(dataset, index, 1)
        (cell,) = tool.draw_cells(visualizers, sample)
        picture = mmcv.imread(dataset.get_data_info(index)['img_path'], channel_order='rgb')
        drawn = changed(cell, picture, tool.CELL)
        inside = np.zeros_like(drawn)
        for box in sample['data_samples'].gt_instances.bboxes.tensor.numpy() * tool.CELL / SIDE:
            left, top, right, bottom = np.rint(box).astype(int)
            inside[max(top - 3, 0) : bottom + 3, max(left - 3, 0) : right + 3] = True
        masks = np.kron(sample['data_samples'].gt_instances.masks.masks.any(0), np.ones((tool.CELL // SIDE,) * 2)) > 0
        assert not drawn[~inside].any()
        assert drawn[masks].mean() > 0.9


def test_maps_have_a_colour_for_each_class_and_none_where_they_are_ignored(tool: ModuleType, data: Path) -> None:
    dataset = build(tool, HTC, data)
    sample, _ = tool.draw_samples(dataset, 0, 1)
    _, cell = tool.draw_cells(tool.build_visualizers(dataset), sample)
    labels = np.kron(sample['data_samples'].gt_sem_seg.sem_seg[0].numpy(), np.ones((tool.CELL // SIDE,) * 2, np.uint8))
    drawn = changed(cell, mmcv.imread(dataset.get_data_info(0)['img_path'], channel_order='rgb'), tool.CELL)
    assert drawn[labels != 255].mean() > 0.95
    assert drawn[labels == 255].mean() < 0.1  # the text may lie on it


def test_pictures_of_any_shape_keep_it(tool: ModuleType, data: Path) -> None:
    """On white, the longer side as long as the cell."""
    changes = {'train_dataloader.dataset.pipeline.2': dict(type='Resize', scale=(200, 50), keep_ratio=False)}
    dataset = build(tool, MASK_RCNN, data, changes)
    _, sample = tool.draw_samples(dataset, 0, 1)
    (cell,) = tool.draw_cells(tool.build_visualizers(dataset), sample)
    assert cell.shape == (tool.CELL + LINE, tool.CELL, 3)
    middle = slice(3 * tool.CELL // 8, 5 * tool.CELL // 8)
    assert (cell[: middle.start] == 255).all()
    assert (cell[middle].reshape(-1, 3) < 255).any(1).mean() > 0.9


# What goes wrong


def test_a_draw_that_the_pipeline_refuses_is_repeated(tool: ModuleType, data: Path) -> None:
    dataset, calls = build(tool, MASK_RCNN, data), []
    dataset.pipeline.transforms.insert(1, lambda results: calls.append(1) or (results if len(calls) == 3 else None))
    _, sample = tool.draw_samples(dataset, 1, 1)
    assert sample['data_samples'].img_path == dataset.get_data_info(1)['img_path']
    dataset.max_refetch = 5
    with pytest.raises(ValueError, match='the pipeline refused image 1 of the data set 5 times'):
        tool.draw_samples(dataset, 1, 1)


def test_a_config_without_training_data_is_refused(tool: ModuleType, tmp_path: Path) -> None:
    config = tmp_path / 'model_only.py'
    config.write_text("default_scope = 'mmdet'\n")
    with pytest.raises(ValueError, match=r'model_only\.py has no train_dataloader, but its data set and pipeline'):
        tool.main([str(config), '--out', str(tmp_path / 'sheet.png')])


def test_a_config_of_a_pretraining_is_refused(tool: ModuleType, tmp_path: Path) -> None:
    config = CONFIGS / 'demo' / 'ummae_swin-test_1xb64-coslr-20e_demo-128px.py'
    with pytest.raises(ValueError, match=r"default_scope of .* is 'mmpretrain', but it must be 'mmdet' or 'mmseg'"):
        tool.main([str(config), '--out', str(tmp_path / 'sheet.png')])


def test_a_wrong_suffix_is_refused_before_anything_is_read(tool: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"sheet\.tiff has the suffix '\.tiff', but a sheet is written as"):
        tool.main(['no_config.py', '--out', str(tmp_path / 'sheet.tiff')])


@pytest.mark.parametrize('name', ['pictures', 'samples'])
def test_nothing_to_draw_is_refused(tool: ModuleType, name: str) -> None:
    with pytest.raises(ValueError, match=f'--{name} is 0, but it must be at least 1'):
        tool.main([str(HTC), f'--{name}', '0'])
