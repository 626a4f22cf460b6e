"""The recipe of HTC++, number by number: what the Swin paper says of it (arXiv 2103.14030, appendix A2.2).

Optimiser, batch and layer decay are tested with the other dense recipes (test_recipes_dense.py).
"""

from __future__ import annotations

from pathlib import Path

import pytest

from mm_ummae.models import GlobalAttention

from .leaves import CONFIGS, WIDTHS, backbone_kind, config, full_model, is_demo, leaf, learning_rates

HTCPP = sorted(path for path in (CONFIGS / 'htc').glob('*.py') if not is_demo(path))
SMALL = leaf('htcpp_um-swin-test_fpn_1xb8-200it_demo-128px')
every_htcpp = pytest.mark.parametrize('path', HTCPP, ids=lambda path: path.stem)
every_size = pytest.mark.parametrize('path', [*HTCPP, SMALL], ids=lambda path: path.stem)


def has_semantic(path: Path) -> bool:
    return 'without-semantic' not in path.stem


@every_htcpp
def test_schedule(path: Path) -> None:
    """72 epochs, a tenth from epoch 63 and a hundredth from 69 on (or 36 and 12 epochs); 1000 iterations of warm-up."""
    cfg = config(path)
    epochs, first, second = {'6x': (72, 63, 69), '3x': (36, 27, 33), '1x': (12, 8, 11)}[path.stem.split('-')[-1][:2]]
    assert (cfg.train_cfg.type, cfg.train_cfg.max_epochs) == ('EpochBasedTrainLoop', epochs)
    length = 1001
    rates = [rate for (rate,) in learning_rates(cfg, length)]
    assert len(rates) == epochs * length
    for epoch in range(1, epochs):
        assert rates[epoch * length] == pytest.approx(1.0 if epoch < first else 0.1 if epoch < second else 0.01)
    assert rates[0] == pytest.approx(0.001) and rates[500] == pytest.approx(0.5, abs=0.01)
    assert rates[999] == pytest.approx(1.0)


@every_htcpp
def test_pictures(path: Path) -> None:
    """InstaBoost, short side 400 to 1400, long side at most 1600; stuff maps for the semantic branch only."""
    dataset = config(path).train_dataloader.dataset
    pipeline = {step.type: step for step in dataset.pipeline}
    order = list(pipeline)
    assert order.index('mm_ummae.InstaBoost') == order.index('LoadAnnotations') - 1
    assert pipeline['mm_ummae.InstaBoost'].aug_ratio == 0.5
    assert [tuple(scale) for scale in pipeline['RandomResize'].scale] == [(1600, 400), (1600, 1400)]
    assert pipeline['RandomResize'].keep_ratio and pipeline['RandomFlip'].prob == 0.5
    assert pipeline['LoadAnnotations'].with_mask
    semantic = has_semantic(path)
    assert pipeline['LoadAnnotations'].get('with_seg', False) is semantic
    assert ('mm_ummae.MoveStuff' in pipeline) is semantic
    assert dataset.type == ('mm_ummae.CocoStuffDataset' if semantic else 'CocoDataset')
    assert dataset.data_prefix.get('seg') == ('stuffthingmaps/train2017/' if semantic else None)


@every_size
def test_network(path: Path) -> None:
    """HTC: three box heads with rising precision, mask heads with information flow, the semantic branch where named."""
    model = full_model(path)
    assert type(model).__name__ == 'HybridTaskCascade'
    head = model.roi_head
    assert head.interleaved and head.mask_info_flow and head.stage_loss_weights == [1, 0.5, 0.25]
    assert [assigner.pos_iou_thr for assigner in head.bbox_assigner] == [0.5, 0.6, 0.7]
    stds = [tuple(part.bbox_coder.stds) for part in head.bbox_head]
    assert stds == [(0.1, 0.1, 0.2, 0.2), (0.05, 0.05, 0.1, 0.1), (0.033, 0.033, 0.067, 0.067)]
    assert [part.with_conv_res for part in head.mask_head] == [False, True, True]
    assert model.with_semantic is has_semantic(path)
    if path != SMALL:
        assert {part.num_classes for part in [*head.bbox_head, *head.mask_head]} == {80}
    if path != SMALL and has_semantic(path):
        assert head.semantic_head.num_classes == 183 and head.semantic_head.fusion_level == 1
        assert model.data_preprocessor.pad_seg and model.data_preprocessor.seg_pad_value == 255


@every_size
def test_extra_layer(path: Path) -> None:
    """Global attention on the last stage, with heads of 32 channels as in Swin (16 in the small one)."""
    layer = full_model(path).neck[0].extra_layer
    assert isinstance(layer, GlobalAttention)
    channels = WIDTHS[backbone_kind(config(path))][-1]
    assert layer.norm1.normalized_shape == (channels,)
    assert channels // layer.num_heads == (16 if path == SMALL else 32)


@every_htcpp
def test_memory_is_saved_where_it_is_short(path: Path) -> None:
    """Swin-B and Swin-L recompute the activations of the backbone, Swin-L also those of the extra layer."""
    arch = backbone_kind(config(path))[1]
    model = full_model(path)
    assert {stage.with_cp for stage in model.backbone.stages} == {arch != 'tiny'}
    assert model.neck[0].extra_layer.with_cp is (arch == 'large')
    assert config(path).optim_wrapper.type == 'AmpOptimWrapper'


@every_size
def test_soft_nms(path: Path) -> None:
    """In the single test and, against boxes of all views, in the augmented one."""
    cfg = config(path)
    assert cfg.model.test_cfg.rcnn.nms == dict(type='soft_nms', iou_threshold=0.5)
    assert cfg.model.test_cfg.rcnn.score_thr == 0.001 and cfg.model.test_cfg.rcnn.max_per_img == 100
    assert cfg.tta_model == dict(
        type='mm_ummae.InstanceTTAModel',
        tta_cfg=dict(nms=dict(type='soft_nms', iou_threshold=0.5), max_per_img=100),
    )


@every_htcpp
def test_sizes_of_the_augmented_test(path: Path) -> None:
    """Short sides of 800 to 1400, each also mirrored."""
    resizes, flips, _ = config(path).tta_pipeline[1].transforms
    assert [tuple(resize.scale) for resize in resizes] == [(1333, 800), (1666, 1000), (2000, 1200), (2333, 1400)]
    assert [flip.prob for flip in flips] == [0.0, 1.0]


@every_htcpp
def test_open_box_heads(path: Path) -> None:
    """Four convolutions with SyncBN, one linear layer and GIoU on decoded boxes, where the name says so."""
    for head in config(path).model.roi_head.bbox_head:
        if path.stem.startswith('htcpp-giou-4conv1fc'):
            assert head.type == 'Shared4Conv1FCBBoxHead' and head.norm_cfg.type == 'SyncBN'
            assert head.loss_bbox == dict(type='GIoULoss', loss_weight=10.0) and head.reg_decoded_bbox
        else:
            assert head.type == 'Shared2FCBBoxHead' and head.loss_bbox.type == 'SmoothL1Loss'
    comment = path.read_text().split('_base_')[0]
    assert ("our option, not the paper's" in comment) == ('giou' in path.stem)


@pytest.mark.parametrize('size', ['tiny', 'base', 'large'])
def test_variants_differ_in_what_their_names_say(size: str) -> None:
    """A longer schedule changes the schedule only, other box heads the box heads only."""
    whole = config(leaf(f'htcpp_um-swin-{size}_fpn_8xb2-amp-6x_coco'))
    for schedule in ('1x', '3x'):
        other = config(leaf(f'htcpp_um-swin-{size}_fpn_8xb2-amp-{schedule}_coco'))
        assert other.model == whole.model and other.train_dataloader == whole.train_dataloader
        assert other.optim_wrapper == whole.optim_wrapper and other.param_scheduler != whole.param_scheduler
    giou = config(leaf(f'htcpp-giou-4conv1fc_um-swin-{size}_fpn_8xb2-amp-6x_coco'))
    assert giou.model.roi_head.bbox_head != whole.model.roi_head.bbox_head
    giou.model.roi_head.bbox_head = whole.model.roi_head.bbox_head
    assert giou.model == whole.model
    without = config(leaf(f'htcpp-without-semantic_um-swin-{size}_fpn_8xb2-amp-6x_coco'))
    for key in ('semantic_head', 'semantic_roi_extractor'):
        whole.model.roi_head.pop(key)
    whole.model.data_preprocessor.pop('pad_seg')
    assert without.model == whole.model
