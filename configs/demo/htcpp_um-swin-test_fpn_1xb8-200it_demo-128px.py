# HTC++ of the demo: every part at a small size, on generated COCO data with stuff maps, from scratch.
#   python tools/train.py configs/demo/htcpp_um-swin-test_fpn_1xb8-200it_demo-128px.py
# With pre-trained weights: --cfg-options model.backbone.init_cfg.type=Pretrained \
#   model.backbone.init_cfg.checkpoint=PRETRAINED.pth model.backbone.init_cfg.prefix=backbone
_base_ = [
    '../_base_/models/demo_htcpp.py',
    '../_base_/datasets/demo_coco_htcpp.py',
    '../_base_/schedules/demo_finetune.py',
    '../_base_/demo_finetune_runtime.py',
    '../_base_/demo_htcpp_runtime.py',
]

model = dict(
    backbone=dict(img_size=_base_.image_scale),
    roi_head=dict(
        bbox_head=[dict(head, num_classes=_base_.num_classes) for head in _base_.model.roi_head.bbox_head],
        mask_head=[dict(head, num_classes=_base_.num_classes) for head in _base_.model.roi_head.mask_head],
        semantic_head=dict(num_classes=_base_.num_stuff_classes),
    ),
)
max_iters = 200
cosine = dict(_base_.cosine, end=max_iters)
param_scheduler = [_base_.warmup, cosine]
train_cfg = dict(max_iters=max_iters, val_interval=max_iters)
log_processor = dict(by_epoch=False)
default_hooks = dict(**_base_.finetune_hooks, visualization=dict(draw=True, interval=2, score_thr=0.1))
