# COCO, 25 epochs, batch 16, AdamW in mixed precision: the published schedule of GFL on UM-MAE.
_base_ = ['./coco_adamw_1x.py']

max_epochs = 25
# Here the position bias has weight decay
optim_wrapper = dict(
    paramwise_cfg=dict(custom_keys={'_delete_': True, '.pos_embed': dict(decay_mult=0.0)}),
)
# A cosine over the whole training, times a linear warm-up over its first 2000 iterations
warmup = dict(_base_.warmup, end=2000)
cosine = dict(
    type='CosineAnnealingLR', eta_min_ratio=0.01, by_epoch=True, begin=0, end=max_epochs, convert_to_iter_based=True
)
param_scheduler = [warmup, cosine]
train_cfg = dict(max_epochs=max_epochs)
