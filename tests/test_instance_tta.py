"""Test-time augmentation of boxes and masks, alone and through ``tools/test.py``, and results for a test server."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from mmcv.ops import batched_nms
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.runner import Runner
from mmengine.structures import InstanceData
from pycocotools import mask as mask_tools
from torch import Tensor, nn

from demo.make_data import make_demo_data
from mm_ummae.detection import InstanceTTAModel

from .leaves import CONFIGS
from .leaves import build_model as build_leaf
from .test_htc_roi_head import build, build_htc, narrow, picture, published
from .test_tools import tool

SIZE = (96, 112)  # height and width of the images
AXES = {'horizontal': (-1,), 'vertical': (-2,), 'diagonal': (-2, -1)}
NMS = dict(type='nms', iou_threshold=0.5)  # the first one of the models too
BASES = {
    'mask-rcnn': '_base_/models/mask-rcnn_r50_fpn.py',
    'cascade': '_base_/models/cascade-mask-rcnn_r50_fpn.py',
    'boxes': '_base_/models/faster-rcnn_r50_fpn.py',
}
MASKED = ('mask-rcnn', 'cascade', 'htc', 'htc-without-semantic')
every_segmentor = pytest.mark.parametrize('kind', MASKED)
every_direction = pytest.mark.parametrize('direction', AXES)


def detector(kind: str, seed: int = 0) -> nn.Module:
    """A tiny one that is sure of nothing, but finds ten objects."""
    if kind in BASES:
        model = build(narrow(copy.deepcopy(published(BASES[kind]).model)), seed)
    else:
        model = build_htc(semantic=kind == 'htc', seed=seed)
    model.roi_head.test_cfg.update(score_thr=0.0, max_per_img=10)
    return model.eval()


def augmented(model: nn.Module, **tta_cfg: object) -> InstanceTTAModel:
    return InstanceTTAModel(model, dict(nms=NMS, max_per_img=100) | tta_cfg).eval()


def view(
    image: Tensor, scale: float = 1.0, direction: str | None = None, index: int = 0
) -> tuple[Tensor, DetDataSample]:
    """An image enlarged, then mirrored, with what MMDetection's pipeline says about it."""
    shape = tuple(image.shape[-2:])
    size = tuple(round(scale * side) for side in shape)
    if size != shape:
        image = nn.functional.interpolate(image[None].float(), size, mode='bilinear')[0].to(torch.uint8)
    sample = DetDataSample(
        metainfo=dict(
            img_id=index,
            img_path=f'{index}.jpg',
            ori_shape=shape,
            img_shape=size,
            scale_factor=(size[1] / shape[1], size[0] / shape[0]),
            flip=direction is not None,
            flip_direction=direction,
        )
    )
    return image.flip(AXES[direction]) if direction else image, sample


def collated(*views: tuple[Tensor, DetDataSample]) -> dict[str, list]:
    """One image, as the loader gives it for a pipeline with TestTimeAug."""
    return dict(inputs=[[image] for image, _ in views], data_samples=[[sample] for _, sample in views])


@torch.no_grad()
def predict(model: nn.Module, *views: tuple[Tensor, DetDataSample]) -> InstanceData:
    (result,) = model.test_step(collated(*views))
    return result.pred_instances


@torch.no_grad()
def plain(model: nn.Module, image: Tensor, scale: float = 1.0) -> InstanceData:
    """What the model finds without augmentation."""
    image, sample = view(image, scale)
    (result,) = model.test_step(dict(inputs=[image], data_samples=[sample]))
    return result.pred_instances


def mirrored(found: InstanceData, direction: str, size: tuple[int, int] = SIZE) -> InstanceData:
    """The same instances in the mirror image of their image."""
    found, (height, width) = copy.deepcopy(found), size
    if direction in ('horizontal', 'diagonal'):
        found.bboxes[:, [0, 2]] = width - found.bboxes[:, [2, 0]]
    if direction in ('vertical', 'diagonal'):
        found.bboxes[:, [1, 3]] = height - found.bboxes[:, [3, 1]]
    found.masks = found.masks.flip(AXES[direction])
    return found


def assert_same(found: InstanceData, expected: InstanceData, different: float = 0.0) -> None:
    """In the same order; ``different`` is the fraction of mask pixels that rounding may change."""
    assert len(found) == len(expected) > 1
    assert torch.equal(found.labels, expected.labels)
    assert torch.allclose(found.scores, expected.scores, atol=1e-5)
    assert torch.allclose(found.bboxes, expected.bboxes, atol=1e-3)
    assert found.masks.shape == expected.masks.shape and found.masks.dtype == expected.masks.dtype == torch.bool
    assert expected.masks.any() and (found.masks != expected.masks).float().mean() <= different


# One view


@every_segmentor
def test_one_view_gives_what_the_model_gives(kind: str) -> None:
    """The second suppression has nothing left to do."""
    model, image = detector(kind), picture(SIZE)
    expected = plain(model, image)
    assert_same(predict(augmented(model), view(image)), expected)
    assert expected.bboxes.min() > -1 and not expected.masks.all(), 'nothing to compare'


@every_segmentor
def test_an_enlarged_view_gives_what_the_model_gives(kind: str) -> None:
    model, image = detector(kind), picture(SIZE)
    assert_same(predict(augmented(model), view(image, 1.5)), plain(model, image, 1.5), different=1e-3)


@every_direction
@every_segmentor
def test_a_mirrored_view_is_mirrored_back(kind: str, direction: str) -> None:
    """The model sees the mirror image; its instances are those of the image."""
    model, image = detector(kind), picture(SIZE)
    seen = plain(model, image.flip(AXES[direction]))
    expected = mirrored(seen, direction)
    assert (expected.masks != seen.masks).float().mean() > 0.01, 'a mask that is not mirrored back would pass'
    assert_same(predict(augmented(model), view(image, direction=direction)), expected, different=1e-3)


# Several views


@every_direction
def test_the_mirror_image_of_a_picture_gives_the_mirrored_result(direction: str) -> None:
    """Both are seen as they are and mirrored, so that the network sees the same images."""
    model, image = augmented(detector('mask-rcnn')), picture(SIZE)
    of_picture, of_mirror_image = (
        predict(model, view(x), view(x, direction=direction)) for x in (image, image.flip(AXES[direction]))
    )
    assert_same(of_mirror_image, mirrored(of_picture, direction), different=1e-3)


@every_segmentor
def test_boxes_and_masks_are_merged_over_scales_and_mirror_images(kind: str) -> None:
    """Boxes as one suppression leaves those of all views; masks against pasted ones of each view, through the head."""
    model, image = detector(kind), picture(SIZE)
    views = [dict(), dict(scale=1.5), dict(scale=1.25, direction='horizontal')]
    found = predict(augmented(model, max_per_img=12), *(view(image, **kwargs) for kwargs in views))

    alone = [predict(augmented(model), view(image, **kwargs)) for kwargs in views]
    boxes, scores, labels = (torch.cat([x[name] for x in alone]) for name in ('bboxes', 'scores', 'labels'))
    expected, kept = batched_nms(boxes, scores, labels, dict(NMS))
    assert len(kept) > 12
    assert torch.allclose(found.bboxes, expected[:12, :4], atol=1e-3)
    assert torch.allclose(found.scores, expected[:12, 4], atol=1e-5)
    assert torch.equal(found.labels, labels[kept[:12]])

    probabilities = torch.stack([pasted_masks(model, image, found, **kwargs) for kwargs in views])
    clear = (probabilities.mean(0) - 0.5).abs() > 2 / 255  # they come in steps of 1/255
    assert clear.float().mean() > 0.95
    assert torch.equal(found.masks[clear], probabilities.mean(0)[clear] >= 0.5)
    for one in probabilities:
        assert ((one >= 0.5) != found.masks)[clear].any(), 'one view alone would pass'


@torch.no_grad()
def pasted_masks(
    model: nn.Module, image: Tensor, found: InstanceData, scale: float = 1.0, direction: str | None = None
) -> Tensor:
    """Probabilities (n, height, width) that one view gives to the instances, in steps of 1/255."""
    image, sample = view(image, scale, direction)
    boxes = mirrored(found, direction).bboxes if direction else found.bboxes
    boxes = boxes * torch.tensor(sample.scale_factor * 2)
    x = model.extract_feat(model.data_preprocessor(dict(inputs=[image], data_samples=[sample]), False)['inputs'])
    head = copy.copy(model.roi_head)
    head.test_cfg = model.roi_head.test_cfg | dict(mask_thr_binary=-1)
    semantic = {}
    if hasattr(head, 'mask_info_flow'):  # HTC
        semantic['semantic_heat'] = head.semantic_head(x)[1] if head.with_semantic else None
    meta = dict(ori_shape=sample.ori_shape, scale_factor=sample.scale_factor)
    instances = InstanceData(bboxes=boxes, labels=found.labels, scores=found.scores)
    (result,) = head.predict_mask(x=x, batch_img_metas=[meta], results_list=[instances], rescale=True, **semantic)
    return (result.masks.flip(AXES[direction]) if direction else result.masks) / 255


def test_a_second_equal_view_changes_nothing() -> None:
    model, image = augmented(detector('mask-rcnn')), picture(SIZE)
    assert_same(predict(model, view(image), view(image)), predict(model, view(image)))


def test_soft_nms_keeps_overlapping_boxes_at_lower_scores() -> None:
    model, image = detector('mask-rcnn'), picture(SIZE)
    views = view(image), view(image)  # each box twice
    nms = dict(type='soft_nms', method='gaussian', sigma=0.5)
    soft, hard = predict(augmented(model, nms=nms), *views), predict(augmented(model), *views)
    assert len(soft) > len(hard) and soft.masks.shape == (len(soft), *SIZE)
    assert torch.allclose(soft.scores.max(), hard.scores.max())
    assert soft.scores.min() < hard.scores.min() and (soft.scores.diff() <= 0).all()
    few = predict(augmented(model, nms=nms, max_per_img=3), *views)
    assert torch.equal(few.scores, soft.scores[:3]) and torch.equal(few.masks, soft.masks[:3])


@torch.no_grad()
def test_a_batch_gives_what_its_pictures_give() -> None:
    """Also where they differ in size: an image is not padded to the size of another."""
    model, images = augmented(detector('htc')), [picture(SIZE, 1), picture((128, 80), 2)]
    views = [[view(image, scale, index=i) for scale in (1.0, 1.5)] for i, image in enumerate(images)]
    batch = dict(
        inputs=[[image for image, _ in pair] for pair in zip(*views, strict=True)],
        data_samples=[[sample for _, sample in pair] for pair in zip(*views, strict=True)],
    )
    results = model.test_step(copy.deepcopy(batch))
    assert [result.img_id for result in results] == [0, 1]
    for result, pair in zip(results, views, strict=True):
        assert_same(result.pred_instances, predict(model, *pair))


# What comes out


@torch.no_grad()
def test_results_keep_what_an_evaluator_needs() -> None:
    model, views = augmented(detector('mask-rcnn')), [view(picture(SIZE), scale, index=7) for scale in (1.5, 1.0)]
    truth = InstanceData(bboxes=torch.tensor([[1.0, 2.0, 30.0, 40.0]]), labels=torch.tensor([2]))
    for _, sample in views:
        sample.gt_instances = copy.deepcopy(truth)
    (result,) = model.test_step(collated(*views))
    assert (result.img_id, result.ori_shape, result.img_path) == (7, SIZE, '7.jpg')
    assert torch.equal(result.gt_instances.bboxes, truth.bboxes)
    assert set(result.pred_instances.keys()) == {'bboxes', 'scores', 'labels', 'masks'}


@every_segmentor
def test_the_model_stays_as_it_is(kind: str) -> None:
    model, image = detector(kind), picture(SIZE)
    before = copy.deepcopy(model.test_cfg)
    expected = plain(model, image)
    predict(augmented(model), view(image), view(image, direction='horizontal'))
    assert model.test_cfg == before and model.roi_head.test_cfg == before.rcnn
    assert_same(plain(model, image), expected)


@every_segmentor
def test_a_picture_without_instances(kind: str) -> None:
    model = detector(kind)
    model.roi_head.test_cfg.score_thr = 1.0
    found = predict(augmented(model), view(picture(SIZE), 1.5), view(picture(SIZE), direction='vertical'))
    assert found.bboxes.shape == (0, 4) and found.scores.shape == found.labels.shape == (0,)
    assert found.masks.shape == (0, *SIZE) and found.masks.dtype == torch.bool


def test_a_detector_without_masks_gives_boxes() -> None:
    model, image = detector('boxes'), picture(SIZE)
    expected = plain(model, image)
    found = predict(augmented(model), view(image), view(image))
    assert torch.allclose(found.bboxes, expected.bboxes) and torch.allclose(found.scores, expected.scores)
    assert len(found) == 10 and 'masks' not in found


# What is refused


def test_one_stage_detectors_are_referred_to_mmdetection() -> None:
    model = copy.deepcopy(published('_base_/models/retinanet_r50_fpn.py').model)
    model.backbone.init_cfg = None
    with pytest.raises(TypeError, match=r'module is RetinaNet, but it must .* RPN .* mmdet\.DetTTAModel merges'):
        augmented(build(model))


def test_masks_of_another_kind_are_refused() -> None:
    model = narrow(copy.deepcopy(published(BASES['mask-rcnn']).model))
    model.roi_head.update(
        type='MaskScoringRoIHead',
        mask_iou_head=dict(type='MaskIoUHead', in_channels=16, conv_out_channels=16, fc_out_channels=8, num_classes=4),
    )
    with pytest.raises(
        TypeError, match=r'roi_head of module is MaskScoringRoIHead, but its masks must be predicted as'
    ):
        augmented(build(model))


@pytest.mark.parametrize(
    ('tta_cfg', 'lacking'),
    [(None, 'max_per_img and nms'), (dict(nms=NMS), 'max_per_img'), (dict(max_per_img=1), 'nms')],
)
def test_tta_cfg_must_be_complete(tta_cfg: dict | None, lacking: str) -> None:
    with pytest.raises(ValueError, match=rf'tta_cfg is .*, but it must have {lacking}$'):
        InstanceTTAModel(nn.Identity(), tta_cfg)


@pytest.mark.parametrize('key', ['flip', 'flip_direction'])
def test_a_view_must_say_whether_it_is_mirrored(key: str) -> None:
    """MMDetection's usual test pipelines do not say it, and a view that is mirrored unnoticed spoils the result."""
    image, sample = view(picture(SIZE))
    delattr(sample, key)
    with pytest.raises(ValueError, match=r'metainfo of a view has .*img_id, .*, but it must have flip and flip_direc'):
        predict(augmented(detector('boxes')), (image, sample))


# tools/test.py


DEMO = {
    'detector': 'mask-rcnn_um-swin-test_1xb8-200it_demo-128px',
    'segmentor': 'upernet_um-swin-test_1xb8-150it_demo-128px',
    'classifier': 'um-swin-test_classification_1xb16-100it_demo-128px',
}
# Sides of an image, and the steps behind a view's size and mirror image
VIEWS = {
    'detector': """
tta_model = dict(type='mm_ummae.InstanceTTAModel', tta_cfg=dict(nms=dict(type='nms', iou_threshold=0.5), max_per_img=9))
sizes = [dict(type='Resize', scale=(side, side), keep_ratio=True) for side in {sides}]
last = [
    [dict(type='LoadAnnotations', with_bbox=True, with_mask=True)],
    [dict(type='PackDetInputs')],
]
""",
    'segmentor': """
tta_model = dict(type='SegTTAModel')
sizes = [dict(type='Resize', scale=(side, side), keep_ratio=True) for side in {sides}]
last = [[dict(type='LoadAnnotations', reduce_zero_label=True)], [dict(type='PackSegInputs')]]
default_hooks = dict(visualization=dict(draw=False))
""",
    'classifier': """
tta_model = dict(type='AverageClsScoreTTA')
sizes = [dict(type='Resize', scale=side, backend='pillow') for side in {sides}]
last = [[dict(type='PackInputs')]]
""",
}
COMMON = """
_base_ = '{base}'
custom_imports = dict(imports=['mm_ummae.detection'], allow_failed_imports=False)
custom_hooks = [dict(type='mm_ummae.CheckpointKeysHook')]
visualizer = dict(name='{name}')  # one of another host, once made in this process, would be taken again
mirrors = [dict(type='RandomFlip', prob=prob) for prob in {probabilities}]
tta_pipeline = [dict(type='LoadImageFromFile'), dict(type='TestTimeAug', transforms=[sizes, mirrors, *last])]
test_dataloader = dict(
    batch_size=2, num_workers=0, persistent_workers=False, dataset=dict(data_root='{data}')
)
"""


@pytest.fixture(autouse=True)
def no_formatted_config(monkeypatch: pytest.MonkeyPatch) -> None:
    """A runner formats its config for the log, which takes longer than all the rest."""
    monkeypatch.setattr(Config, 'pretty_text', '')


@pytest.fixture(scope='module')
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    counts = dict(num_pretrain=1, num_labelled_train=10, num_labelled_val=10, num_coco_train=1, num_coco_val=3)
    root = tmp_path_factory.mktemp('data') / 'demo'
    return make_demo_data(root, image_size=128, num_ade_train=1, num_ade_val=3, **counts)


@pytest.fixture(scope='module')
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Random weights for each of the demo's tasks."""
    folder, paths = tmp_path_factory.mktemp('checkpoints'), {}
    for kind, name in DEMO.items():
        cfg = Config.fromfile(CONFIGS / 'demo' / f'{name}.py')
        cfg.model.backbone.init_cfg = None
        torch.manual_seed(5)
        paths[kind] = folder / f'{kind}.pth'
        torch.save(dict(state_dict=build_leaf(cfg, 'cpu').state_dict(), meta={}), paths[kind])
    return paths


def write_config(
    kind: str, data: Path, folder: Path, sides: tuple[int, ...] = (128,), probabilities: tuple[float, ...] = (0.0,)
) -> Path:
    """A config of the demo with views of these sizes and chances of being mirrored, 0 or 1."""
    root = {'detector': 'coco', 'segmentor': 'ade', 'classifier': 'imagenet'}[kind]
    text = VIEWS[kind].format(sides=sides) + COMMON.format(
        base=CONFIGS / 'demo' / f'{DEMO[kind]}.py',
        probabilities=probabilities,
        data=f'{data / root}/',
        name=folder.name,
    )
    if kind == 'detector':
        text += f"test_evaluator = dict(ann_file='{data}/coco/annotations/instances_val2017.json')\n"
        text += 'model = dict(test_cfg=dict(rcnn=dict(score_thr=0.0, max_per_img=9)))\n'
    path = folder / f'{kind}_tta.py'
    path.write_text(text)
    return path


def run_tool(config: Path, checkpoint: Path, *arguments: object) -> dict[str, float]:
    words = (config, checkpoint, '--work-dir', config.parent / 'run', *arguments)
    return tool('test').main([str(word) for word in words])


def test_tta_evaluates_boxes_and_masks(data: Path, checkpoints: dict[str, Path], tmp_path: Path) -> None:
    """With images of the predictions, from two sizes and their mirror images."""
    config = write_config('detector', data, tmp_path, (128, 192), (0.0, 1.0))
    metrics = run_tool(config, checkpoints['detector'], '--tta', '--show-dir', 'seen')
    expected = {
        f'coco/{kind}_mAP{which}' for kind in ('bbox', 'segm') for which in ('', '_50', '_75', '_s', '_m', '_l')
    }
    assert metrics.keys() == expected
    assert all(-1 <= value <= 1 for value in metrics.values())
    assert list((tmp_path / 'run' / 'seen').rglob('*.jpg')) or list((tmp_path / 'run' / 'seen').rglob('*.png'))


@pytest.mark.parametrize('kind', ['segmentor', 'classifier'])
def test_tta_wraps_models_of_the_other_hosts(
    kind: str, data: Path, checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    """Two equal views give the numbers of the model alone."""
    config = write_config(kind, data, tmp_path, (128, 128))
    alone = run_tool(config, checkpoints[kind])
    merged = run_tool(config, checkpoints[kind], '--tta')
    assert merged == pytest.approx(alone) and {'segmentor': 'mIoU', 'classifier': 'accuracy/top1'}[kind] in merged


def test_tta_refuses_a_checkpoint_that_does_not_fit(data: Path, checkpoints: dict[str, Path], tmp_path: Path) -> None:
    config = write_config('detector', data, tmp_path)
    with pytest.raises(ValueError, match=r'the checkpoint .*segmentor\.pth .* does not fit MaskRCNN\. missing: '):
        run_tool(config, checkpoints['segmentor'], '--tta')


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[Config]:
    """Configs that reach MMEngine's runner; nothing runs."""
    seen: list[Config] = []
    monkeypatch.setattr(Runner, 'from_cfg', lambda cfg: seen.append(cfg) or SimpleNamespace(test=dict))
    return seen


def test_tta_looks_into_wrapped_datasets(data: Path, started: list[Config], tmp_path: Path) -> None:
    config = write_config('detector', data, tmp_path)
    wrapped = (
        "test_dataloader['dataset'] = dict(_delete_=True, type='Wrapper', dataset=_base_.test_dataloader.dataset)\n"
    )
    config.write_text(config.read_text() + wrapped)
    run_tool(config, Path('x.pth'), '--tta')
    run_tool(config, Path('x.pth'))
    augmented, unchanged = started
    assert (augmented.model.type, augmented.model.module.type) == ('mm_ummae.InstanceTTAModel', 'MaskRCNN')
    assert augmented.test_dataloader.dataset.dataset.pipeline == augmented.tta_pipeline
    assert unchanged.model.type == 'MaskRCNN'
    assert unchanged.test_dataloader.dataset.dataset.pipeline != augmented.tta_pipeline


@pytest.mark.parametrize(
    ('text', 'missing'), [('', 'tta_model and tta_pipeline'), ('tta_model = dict()', 'tta_pipeline')]
)
def test_tta_needs_a_model_and_a_pipeline(text: str, missing: str, started: list[Config], tmp_path: Path) -> None:
    config = tmp_path / 'bare.py'
    config.write_text(f"model = dict(type='MaskRCNN')\n{text}\n")
    with pytest.raises(ValueError, match=rf'--tta needs {missing}, which .*bare\.py does not set'):
        run_tool(config, Path('x.pth'), '--tta')
    assert not started


# Results for a test server


def test_format_only_writes_results_for_pictures_without_annotations(
    data: Path, checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    """As COCO's test-dev: the file has images and categories alone. One view gives what the model gives alone."""
    truth = json.loads((data / 'coco' / 'annotations' / 'instances_val2017.json').read_text())
    infos = tmp_path / 'image_info.json'
    infos.write_text(json.dumps({key: truth[key] for key in ('images', 'categories')}))
    options = ('--cfg-options', f'test_dataloader.dataset.ann_file={infos}', f'test_evaluator.ann_file={infos}')
    config = write_config('detector', data, tmp_path)
    written = []
    for name, more in (('plain', []), ('augmented', ['--tta'])):
        prefix = tmp_path / 'new' / name / 'detections'
        arguments = ('--format-only', prefix, *more, *options)
        assert run_tool(config, checkpoints['detector'], *arguments) == {}
        assert {path.name for path in prefix.parent.iterdir()} == {'detections.bbox.json', 'detections.segm.json'}
        written.append([json.loads(Path(f'{prefix}.{kind}.json').read_text()) for kind in ('bbox', 'segm')])
    for boxes, masks in written:
        assert len(boxes) == len(masks) == 27
        assert {box['image_id'] for box in boxes} == {image['id'] for image in truth['images']}
        assert {box['category_id'] for box in boxes} <= {category['id'] for category in truth['categories']}
        sizes = {image['id']: [image['height'], image['width']] for image in truth['images']}
        assert all(mask['segmentation']['size'] == sizes[mask['image_id']] for mask in masks)
        assert all(box.keys() == {'image_id', 'bbox', 'score', 'category_id'} for box in boxes)
    for one, other in zip(written[0][1], written[1][1], strict=True):
        assert (one['image_id'], one['category_id']) == (other['image_id'], other['category_id'])
        assert one['bbox'] == pytest.approx(other['bbox'], abs=1e-3)
        assert one['score'] == pytest.approx(other['score'], abs=1e-5)
        first, second = (mask_tools.decode(mask['segmentation']) for mask in (one, other))
        assert first.any() and (first != second).mean() < 1e-3


@pytest.mark.parametrize(
    ('text', 'kind'),
    [
        ("test_evaluator = dict(type='IoUMetric')", 'IoUMetric'),
        ("test_evaluator = [dict(type='CocoMetric'), dict(type='CocoMetric')]", r'\[.*'),
        ('', 'None'),
    ],
)
def test_format_only_needs_one_coco_metric(text: str, kind: str, started: list[Config], tmp_path: Path) -> None:
    config = tmp_path / 'other.py'
    config.write_text(f'{text}\n')
    with pytest.raises(ValueError, match=rf'--format-only needs a CocoMetric .*, but in .*other\.py it is {kind}'):
        run_tool(config, Path('x.pth'), '--format-only', tmp_path / 'new' / 'results')
    assert not started and not (tmp_path / 'new').exists()
