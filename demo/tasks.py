"""The fine-tuning tasks of the demo: config, data folder, and what each reports."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

PRETRAIN = 'ummae_swin-test_1xb64-coslr-20e_demo-128px.py'
PRETRAIN_SIMMIM = 'simmim_swin-test_1xb64-coslr-20e_demo-128px.py'
PRETRAIN_LOMAR = 'lomar_vit-test_1xb32-coslr-10e_demo-128px.py'
# What the smallest size changes: it shows that every step works and learns nothing worth comparing.
SMOKE_DATA = dict(
    num_pretrain=128, num_labelled_train=50, num_labelled_val=50, num_coco_train=16, num_coco_val=8,
    num_ade_train=16, num_ade_val=8,
)  # fmt: skip
SMOKE_PRETRAIN = ('train_cfg.max_epochs=1', 'param_scheduler.0.end=1', 'default_hooks.logger.interval=1')
SMOKE_FINETUNE = ('train_cfg.max_iters=4', 'train_cfg.val_interval=4', 'default_hooks.logger.interval=1')


@dataclass(frozen=True)
class Task:
    """One fine-tuning.

    Attributes:
        config (str): File in ``configs/demo``.
        data (str): Folder below the demo's data.
        metrics (dict[str, str]): Row of a report -> MMEngine's name of the metric.
    """

    config: str
    data: str
    metrics: dict[str, str]

    def data_options(self, data: Path) -> list[str]:
        """``--cfg-options`` that point the config at the data, as absolute paths."""
        splits = ('train', 'val', 'test')
        options = [f'{split}_dataloader.dataset.data_root={data / self.data}/' for split in splits]
        if self.data == 'coco':
            truth = data / 'coco/annotations/instances_val2017.json'
            options += [f'{split}_evaluator.ann_file={truth}' for split in splits[1:]]
        return options

    def percent(self, metrics: dict[str, float]) -> dict[str, float]:
        """Row -> value in percent; mmdet logs AP as a fraction, the others log percent."""
        return {row: metrics[key] * (100 if row.endswith('_ap') else 1) for row, key in self.metrics.items()}


TASKS = {
    'classification': Task(
        'um-swin-test_classification_1xb16-100it_demo-128px.py', 'imagenet', {'top1': 'accuracy/top1'}
    ),
    'Mask R-CNN': Task(
        'mask-rcnn_um-swin-test_1xb8-200it_demo-128px.py',
        'coco',
        {'box_ap': 'coco/bbox_mAP', 'mask_ap': 'coco/segm_mAP'},
    ),
    'UperNet': Task('upernet_um-swin-test_1xb8-150it_demo-128px.py', 'ade', {'miou': 'mIoU'}),
}
# What frozen features are taken of: the map of stride 16 of the pyramid, the last one of LoMaR's ViT
PROBED = dict(type='mm_ummae.UMSwin', arch='test', img_size=128, out_indices=(2,))
PROBED_LOMAR = dict(type='mm_ummae.LoMaRViT', arch='test', img_size=128, patch_size=8, final_norm=False)
# From LoMaR's encoder
LOMAR_TASK = Task('lomar-vit-test_classification_1xb16-100it_demo-128px.py', 'imagenet', {'top1': 'accuracy/top1'})
