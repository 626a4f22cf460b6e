"""Reconstruct pictures with a pre-trained checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from mmcv.transforms import Compose
from mmengine.config import Config
from mmengine.dataset import default_collate
from mmengine.registry import DefaultScope
from mmpretrain import get_model
from mmpretrain.registry import TRANSFORMS
from mmpretrain.structures import DataSample
from torch import nn

from mm_ummae.masking import draw_uniform_mask
from mm_ummae.models.pretrained import compare_state, read_state_dict


def load_model(config: str | Path | Config, checkpoint: str, device: str | None = None) -> nn.Module:
    """Build a pre-training model and load all of its weights.

    Args:
        config (str | Path | Config): Config of the run.
        checkpoint (str): Its checkpoint.
        device (str, optional): Default: the GPU if there is one.
    Returns:
        nn.Module: The model in eval mode; its config is ``model._config``.
    Raises:
        FileNotFoundError: If there is no such checkpoint.
        ValueError: If the checkpoint does not fit the config's model; the names are listed.
    """
    config = Config.fromfile(config) if isinstance(config, (str, Path)) else config
    device = device or ('cuda' if torch.cuda.is_available() else 'cpu')
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        model = get_model(config, pretrained=False, device=device)
    state = read_state_dict(checkpoint, prefix='')
    problems = compare_state(model.state_dict(), state)
    if problems:
        raise ValueError(f'checkpoint {checkpoint} does not fit {type(model).__name__} of the config. {problems}')
    model.load_state_dict(state)
    return model.eval()


def reconstruct(
    model: nn.Module, images: Sequence[str | Path], image_size: int | None = None, seed: int = 0
) -> list[DataSample]:
    """Mask and reconstruct picture files.

    Args:
        model (nn.Module): From :func:`load_model`.
        images (Sequence[str | Path]): Files.
        image_size (int, optional): Side in pixels to resize and centre-crop to. Default: that of the encoder.
        seed (int): Of the masks: the same seed gives the same masks. Default 0.
    Returns:
        list[DataSample]: See :meth:`UMMAE.predict`.
    Raises:
        ValueError: If there is no picture or one cannot be read; it is named.
    """
    if not images:
        raise ValueError('images is empty, but there must be at least one picture to reconstruct')
    image_size = image_size or model.backbone.stages[0].img_side
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        pipeline = Compose(
            [
                TRANSFORMS.build(step)
                for step in (
                    dict(type='LoadImageFromFile', imdecode_backend='pillow'),
                    dict(
                        type='ResizeEdge',
                        scale=image_size,
                        edge='short',
                        backend='pillow',
                        interpolation='bicubic',
                    ),
                    dict(type='CenterCrop', crop_size=image_size),
                    dict(type='PackInputs'),
                )
            ]
        )
    batch = default_collate([_load(pipeline, path) for path in images])
    with torch.no_grad():
        data = model.data_preprocessor(batch, training=False)
        inputs = data['inputs']
        # Drawn on the CPU, so that a seed gives the same masks on every device
        mask = draw_uniform_mask(
            len(inputs),
            inputs.shape[2:],
            model.secondary_ratio,
            generator=torch.Generator().manual_seed(seed),
        )
        mask = type(mask)(*(value.to(inputs.device) for value in mask))
        return model(inputs, data['data_samples'], mode='predict', mask=mask)


def _load(pipeline: Compose, path: str | Path) -> dict:
    try:
        return pipeline(dict(img_path=str(path)))
    except Exception as error:  # decoders raise many kinds
        raise ValueError(f'the picture {path} cannot be read: {type(error).__name__}: {error}') from error
