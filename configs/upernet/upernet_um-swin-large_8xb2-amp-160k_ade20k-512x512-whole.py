# UperNet on UMSwin-L, ADE20K, tested on whole images: fewer forward passes, on inputs larger than the training
# crops. It is trained as upernet_um-swin-large_8xb2-amp-160k_ade20k-512x512.
#   python tools/test.py configs/upernet/upernet_um-swin-large_8xb2-amp-160k_ade20k-512x512-whole.py CHECKPOINT.pth
_base_ = ['./upernet_um-swin-large_8xb2-amp-160k_ade20k-512x512.py']

model = dict(test_cfg=dict(_delete_=True, mode='whole'))
