# LoMaR with a plain ViT: no decoder, and no positions other than the relative ones in attention. A leaf sets the image
# size of its data.
_base_ = ['./pretrain_preprocessor.py']

patch_size = 16  # pixels
model = dict(
    type='mm_ummae.LoMaR',
    # Ablations that cover about the same area: window_size 5, 7, 9, 11 and 14 with num_windows 8, 4, 3, 2 and 1
    window_size=7,  # patches per side
    num_windows=4,
    mask_ratio=0.8,  # share of a window's patches
    pairing='all',
    backbone=dict(type='mm_ummae.LoMaRViT', arch='base', patch_size=patch_size, mask_token=True),
    head=dict(type='mm_ummae.LoMaRHead', in_channels=768, norm_pix=True, patch_size=patch_size),
)
