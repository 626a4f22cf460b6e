# LoMaR in BEiT with ViT-B/16 on ImageNet-1K, 300 epochs: BEiT on four windows of 7x7 patches (arXiv 2206.00790).
#   bash tools/dist_train.sh configs/lomar/lomar-beit_beit-base-p16_8xb256-amp-coslr-300e_in1k-224px.py 8 \
#       --cfg-options model.target_generator.init_cfg.checkpoint=TOKENIZER.pth
_base_ = ['../_base_/datasets/imagenet_lomar-beit_224px.py']

model = dict(
    type='mm_ummae.LoMaRBEiT',
    window_size=7,
    num_windows=4,
    mask_ratio=0.8,
    backbone=dict(img_size=112),  # of a window: 7 x 16 px
    # The config comes without a tokenizer: give its file as in the command above
    target_generator=dict(init_cfg=dict(checkpoint='')),
)
runner_type = 'mm_ummae.ResumableRunner'
default_hooks = dict(checkpoint=dict(interval=10, max_keep_ckpts=3))  # epochs
custom_hooks = [dict(type='mm_ummae.CheckpointKeysHook'), dict(type='mm_ummae.LearningHook', interval=20)]
find_unused_parameters = False  # the tokenizer is frozen
