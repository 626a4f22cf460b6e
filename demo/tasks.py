"""Pre-trainings and fine-tuning tasks of the demos: config, data folder, metrics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Files in configs/demo
PRETRAIN = 'ummae_swin-test_1xb16-coslr-20e_demo-128px.py'
PRETRAIN_SIMMIM = 'simmim_swin-test_1xb16-coslr-20e_demo-128px.py'
PRETRAIN_LOMAR = 'lomar_vit-test_1xb32-coslr-10e_demo-128px.py'

# Changes for --size smoke, which shows that every step works and learns nothing worth comparing
SMOKE_DATA = dict(
    num_pretrain=128, num_labelled_train=50, num_labelled_val=50, num_coco_train=16, num_coco_val=8,
    num_ade_train=16, num_ade_val=8,
)  # fmt: skip
SMOKE_PRETRAIN = {'train_cfg.max_epochs': 1, 'param_scheduler.0.end': 1, 'default_hooks.logger.interval': 1}
SMOKE_FINETUNE = {'train_cfg.max_iters': 4, 'train_cfg.val_interval': 4, 'default_hooks.logger.interval': 1}


@dataclass(frozen=True)
class Task:
    """A fine-tuning task.

    Attributes:
        config (str): File in ``configs/demo``.
        data (str): Folder inside that of the demo data.
        metrics (Mapping[str, str]): Key of the report -> MMEngine's name of the metric.
        scratch_lr (float, optional): Learning rate of the run from scratch, the best one of three on a seed that is not
            reported. Default: that of the config.
    """

    config: str
    data: str
    metrics: Mapping[str, str]
    scratch_lr: float | None = None

    @property
    def has_images(self) -> bool:
        """Whether the config draws predictions beside the ground truth."""
        return self.data != 'imagenet'

    def data_options(self, data: Path) -> dict[str, Any]:
        """Config keys and values that point to the data; ``data`` is absolute."""
        options = {
            f'{split}_dataloader.dataset.data_root': f'{data / self.data}/' for split in ('train', 'val', 'test')
        }
        if self.data == 'coco':
            ground_truth = data / 'coco' / 'annotations' / 'instances_val2017.json'
            options |= {f'{split}_evaluator.ann_file': str(ground_truth) for split in ('val', 'test')}
        return options

    def percent(self, metrics: Mapping[str, float]) -> dict[str, float]:
        """Key of the report -> percent; MMDetection logs AP as a fraction, the other hosts log percent."""
        return {key: metrics[name] * (100 if key.endswith('_ap') else 1) for key, name in self.metrics.items()}


TASKS = {
    'classification': Task(
        'um-swin-test_classification_1xb8-200it_demo-128px.py',
        'imagenet',
        {'top1': 'accuracy/top1'},
        scratch_lr=2.5e-4,
    ),
    'Mask R-CNN': Task(
        'mask-rcnn_um-swin-test_1xb4-400it_demo-128px.py',
        'coco',
        {'box_ap': 'coco/bbox_mAP', 'mask_ap': 'coco/segm_mAP'},
    ),
    'UperNet': Task('upernet_um-swin-test_1xb8-150it_demo-128px.py', 'ade', {'miou': 'mIoU'}),
}
LOMAR_TASKS = {
    'classification': Task(
        'lomar-vit-test_classification_1xb16-100it_demo-128px.py', 'imagenet', {'top1': 'accuracy/top1'}
    )
}

# Backbones whose frozen features are probed: the map of stride 16 of a pyramid, the last one of LoMaR's ViT
PROBED = dict(type='mm_ummae.UMSwin', arch='test', img_size=128, out_indices=(2,))
PROBED_PVT = dict(type='mm_ummae.UMPVT', arch='test', img_size=128, out_indices=(2,))
PROBED_LOMAR = dict(type='mm_ummae.LoMaRViT', arch='test', img_size=128, patch_size=8, final_norm=False)
