"""Test-time augmentation of boxes and masks, alone and through ``tools/test.py``, and results for a test server."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from mmcv.ops import batched_nms
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.runner import Runner
from mmengine.structures import InstanceData
from pycocotools import mask as mask_tools
from torch import Tensor, nn

from mm_ummae.detection import InstanceTTAModel
from tests.detection.detectors import build, build_htc, build_narrow, leaf, narrow, published, smooth_image

SIZE = (64, 80)  # height and width of the images
FLIPPED_DIMS = {'horizontal': (-1,), 'vertical': (-2,), 'diagonal': (-2, -1)}
NMS = dict(type='nms', iou_threshold=0.5)  # as the first suppression of the models
BASES = {
    'mask-rcnn': '_base_/models/mask-rcnn_r50_fpn.py',
    'cascade': '_base_/models/cascade-mask-rcnn_r50_fpn.py',
    'boxes': '_base_/models/faster-rcnn_r50_fpn.py',
}
every_head = pytest.mark.parametrize('kind', ['mask-rcnn', 'cascade', 'htc', 'htc-without-semantic'])
Tool = Callable[[str], ModuleType]


def detector(kind: str) -> nn.Module:
    """A tiny one that is unsure of everything but finds ten objects."""
    model = build_narrow(published(BASES[kind]).model) if kind in BASES else build_htc(semantic=kind == 'htc')
    model.roi_head.test_cfg.update(score_thr=0.0, max_per_img=10)
    return model.eval()


def augmented(model: nn.Module, **tta_cfg: object) -> InstanceTTAModel:
    return InstanceTTAModel(model, dict(nms=NMS, max_per_img=100) | tta_cfg).eval()


def view(
    image: Tensor, scale: float = 1.0, direction: str | None = None, index: int = 0
) -> tuple[Tensor, DetDataSample]:
    """An image enlarged, then flipped, with the metainfo of MMDetection's pipeline."""
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
    return image.flip(FLIPPED_DIMS[direction]) if direction else image, sample


def collated(*images: list[tuple[Tensor, DetDataSample]]) -> dict[str, list]:
    """Views of each image, as the loader gives them for a pipeline with TestTimeAug: lists over the views first."""
    views = list(zip(*images, strict=True))
    return dict(
        inputs=[[image for image, _ in one] for one in views],
        data_samples=[[sample for _, sample in one] for one in views],
    )


@torch.no_grad()
def predict(model: nn.Module, *views: tuple[Tensor, DetDataSample]) -> InstanceData:
    (result,) = model.test_step(collated(list(views)))
    return result.pred_instances


@torch.no_grad()
def plain(model: nn.Module, image: Tensor, scale: float = 1.0) -> InstanceData:
    """The predictions without augmentation."""
    image, sample = view(image, scale)
    (result,) = model.test_step(dict(inputs=[image], data_samples=[sample]))
    return result.pred_instances


def flipped(found: InstanceData, direction: str) -> InstanceData:
    """The same instances in the flipped image."""
    found, (height, width) = copy.deepcopy(found), SIZE
    if direction in ('horizontal', 'diagonal'):
        found.bboxes[:, [0, 2]] = width - found.bboxes[:, [2, 0]]
    if direction in ('vertical', 'diagonal'):
        found.bboxes[:, [1, 3]] = height - found.bboxes[:, [3, 1]]
    found.masks = found.masks.flip(FLIPPED_DIMS[direction])
    return found


def assert_same(found: InstanceData, expected: InstanceData, different: float = 0.0) -> None:
    """In the same order; ``different`` is the share of mask pixels that rounding may change."""
    assert len(found) == len(expected) > 1
    assert torch.equal(found.labels, expected.labels)
    torch.testing.assert_close(found.scores, expected.scores, atol=1e-5, rtol=0)
    torch.testing.assert_close(found.bboxes, expected.bboxes, atol=1e-3, rtol=0)
    assert found.masks.shape == expected.masks.shape and found.masks.dtype == expected.masks.dtype == torch.bool
    assert expected.masks.any() and (found.masks != expected.masks).float().mean() <= different


# One view


@every_head
@pytest.mark.parametrize(('scale', 'different'), [(1.0, 0.0), (1.5, 2e-3)])
def test_one_view_gives_what_the_detector_gives(scale: float, different: float, kind: str) -> None:
    """The second suppression has nothing left to remove."""
    model, image = detector(kind), smooth_image(SIZE)
    expected = plain(model, image, scale)
    assert not expected.masks.all(), 'nothing to compare'
    assert_same(predict(augmented(model), view(image, scale)), expected, different)


@pytest.mark.parametrize(
    ('kind', 'direction'),
    [('mask-rcnn', 'vertical'), ('cascade', 'diagonal'), ('htc', 'horizontal'), ('htc-without-semantic', 'horizontal')],
)
def test_flips_are_undone(kind: str, direction: str) -> None:
    model, image = detector(kind), smooth_image(SIZE)
    seen = plain(model, image.flip(FLIPPED_DIMS[direction]))
    expected = flipped(seen, direction)
    assert (expected.masks != seen.masks).float().mean() > 0.01, 'a mask that is not flipped back would pass'
    assert_same(predict(augmented(model), view(image, direction=direction)), expected, different=2e-3)


# Several views


@every_head
def test_boxes_and_masks_are_merged(kind: str) -> None:
    """Boxes by one suppression over those of all views; masks by the mean over the pasted masks of all views."""
    model, image = detector(kind), smooth_image(SIZE)
    before = copy.deepcopy(model.test_cfg)
    views = [dict(), dict(scale=1.5), dict(scale=1.25, direction='horizontal')]
    found = predict(augmented(model, max_per_img=12), *(view(image, **kwargs) for kwargs in views))

    alone = [predict(augmented(model), view(image, **kwargs)) for kwargs in views]
    boxes, scores, labels = (torch.cat([x[name] for x in alone]) for name in ('bboxes', 'scores', 'labels'))
    expected, kept = batched_nms(boxes, scores, labels, dict(NMS))
    assert len(kept) > 12
    torch.testing.assert_close(found.bboxes, expected[:12, :4], atol=1e-3, rtol=0)
    torch.testing.assert_close(found.scores, expected[:12, 4], atol=1e-5, rtol=0)
    assert torch.equal(found.labels, labels[kept[:12]])

    probabilities = torch.stack([pasted_masks(model, image, found, **kwargs) for kwargs in views])
    clear = (probabilities.mean(0) - 0.5).abs() > 2 / 255  # they come in steps of 1/255
    assert clear.float().mean() > 0.95
    assert torch.equal(found.masks[clear], probabilities.mean(0)[clear] >= 0.5)
    for one in probabilities:
        assert ((one >= 0.5) != found.masks)[clear].any(), 'one view alone would pass'
    assert model.test_cfg == before and model.roi_head.test_cfg == before.rcnn, 'the detector was changed'


@torch.no_grad()
def pasted_masks(
    model: nn.Module, image: Tensor, found: InstanceData, scale: float = 1.0, direction: str | None = None
) -> Tensor:
    """Probabilities (n, height, width) of one view for the given instances, in steps of 1/255."""
    image, sample = view(image, scale, direction)
    boxes = flipped(found, direction).bboxes if direction else found.bboxes
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
    return (result.masks.flip(FLIPPED_DIMS[direction]) if direction else result.masks) / 255


def test_suppression_of_equal_views() -> None:
    """NMS removes the second of two equal boxes; Soft-NMS keeps it with a lower score."""
    model, image = detector('mask-rcnn'), smooth_image(SIZE)
    twice = view(image), view(image)
    hard = predict(augmented(model), *twice)
    assert_same(hard, predict(augmented(model), view(image)))
    nms = dict(type='soft_nms', method='gaussian', sigma=0.5)
    soft = predict(augmented(model, nms=nms), *twice)
    assert len(soft) > len(hard) and soft.masks.shape == (len(soft), *SIZE)
    torch.testing.assert_close(soft.scores.max(), hard.scores.max())
    assert soft.scores.min() < hard.scores.min() and (soft.scores.diff() <= 0).all()
    few = predict(augmented(model, nms=nms, max_per_img=3), *twice)
    assert torch.equal(few.scores, soft.scores[:3]) and torch.equal(few.masks, soft.masks[:3])


@torch.no_grad()
def test_a_batch_gives_the_results_of_its_images() -> None:
    """Images are not padded to each other's size, and keep what an evaluator needs."""
    model, sizes = augmented(detector('htc')), [SIZE, (96, 56)]
    views = [[view(smooth_image(size, i), scale, index=i) for scale in (1.5, 1.0)] for i, size in enumerate(sizes)]
    ground_truth = InstanceData(bboxes=torch.tensor([[1.0, 2.0, 30.0, 40.0]]), labels=torch.tensor([2]))
    for _, sample in views[0]:
        sample.gt_instances = copy.deepcopy(ground_truth)
    results = model.test_step(collated(*copy.deepcopy(views)))
    assert [(x.img_id, x.ori_shape, x.img_path) for x in results] == [(0, SIZE, '0.jpg'), (1, (96, 56), '1.jpg')]
    assert torch.equal(results[0].gt_instances.bboxes, ground_truth.bboxes)
    for result, pair in zip(results, views, strict=True):
        assert set(result.pred_instances.keys()) == {'bboxes', 'scores', 'labels', 'masks'}
        assert_same(result.pred_instances, predict(model, *pair))


@every_head
def test_no_instances(kind: str) -> None:
    model = detector(kind)
    model.roi_head.test_cfg.score_thr = 1.0
    image = smooth_image(SIZE)
    found = predict(augmented(model), view(image, 1.5), view(image, direction='vertical'))
    assert found.bboxes.shape == (0, 4) and found.scores.shape == found.labels.shape == (0,)
    assert found.masks.shape == (0, *SIZE) and found.masks.dtype == torch.bool


def test_detector_without_masks_gives_boxes() -> None:
    model, image = detector('boxes'), smooth_image(SIZE)
    expected, found = plain(model, image), predict(augmented(model), view(image), view(image))
    torch.testing.assert_close(found.bboxes, expected.bboxes)
    torch.testing.assert_close(found.scores, expected.scores)
    assert len(found) == 10 and 'masks' not in found


# Errors


def test_one_stage_detectors_are_referred_to_mmdetection() -> None:
    model = copy.deepcopy(published('_base_/models/retinanet_r50_fpn.py').model)
    model.backbone.update(depth=18, init_cfg=None)
    model.neck.in_channels = [64, 128, 256, 512]
    with pytest.raises(TypeError, match=r'module is RetinaNet, but it must .* RPN .* mmdet\.DetTTAModel merges'):
        augmented(build(model))


def test_masks_of_another_kind_are_refused() -> None:
    model = narrow(copy.deepcopy(published(BASES['mask-rcnn']).model))
    model.roi_head.update(
        type='MaskScoringRoIHead',
        mask_iou_head=dict(type='MaskIoUHead', in_channels=16, conv_out_channels=16, fc_out_channels=8, num_classes=4),
    )
    with pytest.raises(TypeError, match=r'roi_head of module is MaskScoringRoIHead, but its masks must be predicted'):
        augmented(build(model))


@pytest.mark.parametrize(
    ('tta_cfg', 'missing'),
    [(None, 'max_per_img and nms'), (dict(nms=NMS), 'max_per_img'), (dict(max_per_img=1), 'nms')],
)
def test_tta_cfg_must_be_complete(tta_cfg: dict | None, missing: str) -> None:
    with pytest.raises(ValueError, match=rf'tta_cfg is .*, but it must have {missing}$'):
        InstanceTTAModel(nn.Identity(), tta_cfg)


@pytest.mark.parametrize('key', ['flip', 'flip_direction'])
def test_metainfo_must_say_whether_a_view_is_flipped(key: str) -> None:
    """MMDetection's usual test pipelines do not, and a flip that goes unnoticed spoils the result."""
    image, sample = view(smooth_image(SIZE))
    delattr(sample, key)
    with pytest.raises(ValueError, match=r'metainfo of a view has .*img_id, .*, but it must have flip and flip_direc'):
        predict(augmented(detector('boxes')), (image, sample))


# tools/test.py

LEAVES = {
    'detector': 'mask-rcnn_um-swin-test_*_demo-128px',
    'segmentor': 'upernet_um-swin-test_*_demo-128px',
    'classifier': 'um-swin-test_classification_*_demo-128px',
}
# Folder of the data, model of the augmented test, and steps after the flip
TTA = {
    'detector': ('coco', dict(type='mm_ummae.InstanceTTAModel', tta_cfg=dict(nms=NMS, max_per_img=9)), 'PackDetInputs'),
    'segmentor': ('ade', dict(type='SegTTAModel'), 'PackSegInputs'),
    'classifier': ('imagenet', dict(type='AverageClsScoreTTA'), 'PackInputs'),
}
LOAD = {'detector': dict(with_bbox=True, with_mask=True), 'segmentor': dict(reduce_zero_label=True)}


@pytest.fixture
def quick_runner(monkeypatch: pytest.MonkeyPatch) -> None:
    """A runner formats its config for the log, which takes longer than the rest of a test."""
    monkeypatch.setattr(Config, 'pretty_text', '')


@pytest.fixture(scope='module')
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Random weights for each task of the demo."""
    folder, paths = tmp_path_factory.mktemp('checkpoints'), {}
    for kind, name in LEAVES.items():
        cfg = Config.fromfile(leaf(name))
        cfg.model.backbone.init_cfg = None
        paths[kind] = folder / f'{kind}.pth'
        torch.save(dict(state_dict=build(cfg.model, cfg.default_scope, seed=5).state_dict(), meta={}), paths[kind])
    return paths


def write_config(kind: str, data: Path, folder: Path, views: int = 1) -> Path:
    """A config of the demo with a number of equal views."""
    name, tta_model, pack = TTA[kind]
    load = [[dict(type='LoadAnnotations', **LOAD[kind])]] if kind in LOAD else []
    resizes = views * [dict(type='Resize', scale=(128, 128), keep_ratio=True)]
    transforms = [resizes, [dict(type='RandomFlip', prob=0.0)], *load, [dict(type=pack)]]
    path = folder / f'{kind}_tta.py'
    path.write_text(f"""
_base_ = '{leaf(LEAVES[kind])}'
custom_imports = dict(imports=['mm_ummae.detection'], allow_failed_imports=False)
custom_hooks = [dict(type='mm_ummae.CheckpointKeysHook')]
visualizer = dict(name='{folder.name}')  # a visualizer of the same name in this process would be used again
tta_model = {tta_model}
tta_pipeline = [dict(type='LoadImageFromFile'), dict(type='TestTimeAug', transforms={transforms})]
data = dict(data_root='{data / name}/')
train_dataloader = dict(dataset=data)  # built in tests too where MMSegmentation 1.2 reads the runner's iteration
test_dataloader = dict(batch_size=2, num_workers=0, persistent_workers=False, dataset=data)
""")
    return path


def run_tool(tool: Tool, config: Path, checkpoint: Path, *arguments: object) -> dict[str, float]:
    words = (config, checkpoint, '--work-dir', config.parent / 'run', *arguments)
    return tool('test').main([str(word) for word in words])


@pytest.mark.integration
@pytest.mark.parametrize(('kind', 'metric'), [('segmentor', 'mIoU'), ('classifier', 'accuracy/top1')])
def test_tta_wraps_models_of_the_other_hosts(
    kind: str,
    metric: str,
    demo_data: Path,
    checkpoints: dict[str, Path],
    tool: Tool,
    tmp_path: Path,
    quick_runner: None,
) -> None:
    """Two equal views give the metrics of the model alone."""
    config = write_config(kind, demo_data, tmp_path, views=2)
    alone, merged = (run_tool(tool, config, checkpoints[kind], *flags) for flags in ([], ['--tta']))
    assert merged == pytest.approx(alone) and metric in merged


@pytest.mark.integration
def test_format_only_writes_results_for_images_without_annotations(
    demo_data: Path, checkpoints: dict[str, Path], tool: Tool, tmp_path: Path, quick_runner: None
) -> None:
    """As in COCO's test-dev, whose file has only images and categories. One view gives what the model gives alone."""
    ground_truth = json.loads((demo_data / 'coco' / 'annotations' / 'instances_val2017.json').read_text())
    infos = tmp_path / 'image_info.json'
    infos.write_text(json.dumps({key: ground_truth[key] for key in ('images', 'categories')}))
    options = ['--cfg-options', 'model.test_cfg.rcnn.score_thr=0.0', 'model.test_cfg.rcnn.max_per_img=9']
    options += [f'test_dataloader.dataset.ann_file={infos}', f'test_evaluator.ann_file={infos}']
    config, written = write_config('detector', demo_data, tmp_path), []
    for name, flags in (('plain', []), ('augmented', ['--tta'])):
        prefix = tmp_path / 'new' / name / 'detections'
        metrics = run_tool(tool, config, checkpoints['detector'], '--format-only', prefix, *flags, *options)
        assert metrics == {}
        assert {path.name for path in prefix.parent.iterdir()} == {'detections.bbox.json', 'detections.segm.json'}
        written.append([json.loads(Path(f'{prefix}.{kind}.json').read_text()) for kind in ('bbox', 'segm')])
    for boxes, masks in written:
        assert len(boxes) == len(masks) == 18
        assert {box['image_id'] for box in boxes} == {image['id'] for image in ground_truth['images']}
        assert {box['category_id'] for box in boxes} <= {category['id'] for category in ground_truth['categories']}
        assert all(box.keys() == {'image_id', 'bbox', 'score', 'category_id'} for box in boxes)
        assert all(mask['segmentation']['size'] == [128, 128] for mask in masks)
    for one, other in zip(written[0][1], written[1][1], strict=True):
        assert (one['image_id'], one['category_id']) == (other['image_id'], other['category_id'])
        assert one['bbox'] == pytest.approx(other['bbox'], abs=1e-3)
        assert one['score'] == pytest.approx(other['score'], abs=1e-5)
        first, second = (mask_tools.decode(mask['segmentation']) for mask in (one, other))
        assert first.any() and (first != second).mean() < 1e-3


@pytest.mark.integration
def test_tta_refuses_a_checkpoint_that_does_not_fit(
    demo_data: Path, checkpoints: dict[str, Path], tool: Tool, tmp_path: Path, quick_runner: None
) -> None:
    config = write_config('segmentor', demo_data, tmp_path)
    with pytest.raises(
        SystemExit, match=r'error: the checkpoint .*detector\.pth .* does not fit EncoderDecoder\. missing: '
    ):
        run_tool(tool, config, checkpoints['detector'], '--tta')


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[Config]:
    """Configs that reach MMEngine's runner, which does not run."""
    seen: list[Config] = []
    monkeypatch.setattr(Runner, 'from_cfg', lambda cfg: seen.append(cfg) or SimpleNamespace(test=dict))
    return seen


def test_tta_replaces_the_pipeline_of_wrapped_datasets(started: list[Config], tool: Tool, tmp_path: Path) -> None:
    config = write_config('detector', tmp_path, tmp_path)
    wrapped = "dict(_delete_=True, type='Wrapper', dataset=_base_.test_dataloader.dataset)"
    config.write_text(f"{config.read_text()}test_dataloader['dataset'] = {wrapped}\n")
    for flags in (['--tta'], []):
        run_tool(tool, config, Path('x.pth'), *flags)
    merged, unchanged = started
    assert (merged.model.type, merged.model.module.type) == ('mm_ummae.InstanceTTAModel', 'MaskRCNN')
    assert merged.test_dataloader.dataset.dataset.pipeline == merged.tta_pipeline
    assert unchanged.model.type == 'MaskRCNN'
    assert unchanged.test_dataloader.dataset.dataset.pipeline != merged.tta_pipeline
