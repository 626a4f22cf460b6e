# UM-MAE with MMPretrain's Swin-T, unchanged: what it learns fits the Swin of every code base (export_checkpoint.py).
# A leaf sets the image size of its data and, for other networks, the encoder's width and the decoder's depth.
_base_ = ['./pretrain_preprocessor.py']

model = dict(
    type='mm_ummae.UMMAE',
    secondary_ratio=0.25,  # share of the sampled units that is hidden again
    backbone=dict(
        type='mm_ummae.UMBackbone',
        secondary_token=True,
        # The last map alone: norms of others would get no gradient
        network=dict(
            type='mmpretrain.SwinTransformer',
            arch='tiny',
            window_size=7,
            pad_small_map=True,
            drop_path_rate=0.0,
            out_indices=(3,),
        ),
    ),
    neck=dict(type='mm_ummae.UMMAEDecoder', in_channels=768, embed_dims=512, depth=2, num_heads=16),
    head=dict(type='mm_ummae.UMMAEHead', in_channels=512, norm_pix=True),
)
