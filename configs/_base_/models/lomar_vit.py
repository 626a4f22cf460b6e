# LoMaR with a plain ViT: no decoder, and no positions but the relative ones in attention. A leaf sets the image size of
# its data.
_base_ = ['./pretrain_preprocessor.py']

patch_size = 16  # pixels
model = dict(
    type='mm_ummae.LoMaR',
    # Ablations: window_size and num_windows 5 and 8, 7 and 4, 9 and 3, 11 and 2, 14 and 1 cover much the same area
    window_size=7,  # patches a side
    num_windows=4,
    mask_ratio=0.8,  # share of a window's patches
    pairing='all',
    backbone=dict(type='mm_ummae.LoMaRViT', arch='base', patch_size=patch_size, mask_token=True),
    head=dict(type='mm_ummae.LoMaRHead', in_channels=768, norm_pix=True, patch_size=patch_size),
)
