# UperNet on UMSwin-T as in upernet_um-swin-tiny_8xb2-amp-160k_ade20k-512x512, but tested on whole images: fewer
# forward passes, of inputs larger than the training's crops. The training is the same, so its checkpoints serve.
#   python tools/test.py configs/upernet/upernet_um-swin-tiny_8xb2-amp-160k_ade20k-512x512-whole.py CHECKPOINT.pth
_base_ = ['./upernet_um-swin-tiny_8xb2-amp-160k_ade20k-512x512.py']

model = dict(test_cfg=dict(_delete_=True, mode='whole'))
