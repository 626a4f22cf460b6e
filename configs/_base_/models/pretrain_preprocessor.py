# Preprocessing of every pre-training model: BGR to RGB, normalised with ImageNet's mean and standard deviation.
model = dict(
    data_preprocessor=dict(
        type='SelfSupDataPreprocessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        to_rgb=True,
    ),
)
