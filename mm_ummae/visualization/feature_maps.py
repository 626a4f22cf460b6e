"""Feature maps of a pyramid's stages, coloured by the first three principal components of their tokens."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.model import ImgDataPreprocessor
from mmengine.registry import DefaultScope
from torch import Tensor, nn

from mm_ummae.datasets.image_files import load_batch
from mm_ummae.datasets.transforms import LoadCompleteImage
from mm_ummae.models import PyramidBackbone, UMBackbone
from mm_ummae.models.frozen_features import token_map
from mm_ummae.registry import MODELS
from mm_ummae.visualization.sheets import image_sheet, loaded_colours

NEGLIGIBLE = 1e-6  # below this share of the first singular value, a component is rounding noise


def load_backbone(
    config: str | Path | Config, checkpoint: str, device: str | None = None
) -> tuple[nn.Module, ImgDataPreprocessor]:
    """Build only the backbone of a config and load its weights, for configs of any host and task.

    Args:
        config (str | Path | Config): Config of a pre-training run, a classifier, detector or segmentor.
        checkpoint (str): Checkpoint of that run, or of the pre-training it started from.
        device (str, optional): Default: the GPU, or the CPU if there is none.
    Returns:
        tuple[nn.Module, ImgDataPreprocessor]: The backbone in eval mode, and the preprocessor that normalises its
        images.
    Raises:
        FileNotFoundError: If there is no such checkpoint.
        ValueError: If the config has no backbone with stages, or the checkpoint does not fit the backbone.
    """
    config = Config.fromfile(config) if isinstance(config, (str, Path)) else config
    if 'backbone' not in config.get('model', {}):
        raise ValueError(f'the config {config.filename} has no model.backbone, whose feature maps could be drawn')
    with DefaultScope.overwrite_default_scope(config.get('default_scope') or 'mmpretrain'):
        backbone = MODELS.build(config.model.backbone)
    _check_stages(backbone)
    backbone.init_cfg = dict(type='Pretrained', checkpoint=str(checkpoint), prefix='backbone')
    backbone.init_weights()
    # MMPretrain's classifiers may have it next to the model, and the hosts use two names for the channel order
    settings = config.model.get('data_preprocessor') or config.get('data_preprocessor') or {}
    preprocessor = ImgDataPreprocessor(
        settings.get('mean'), settings.get('std'), bgr_to_rgb=settings.get('to_rgb', settings.get('bgr_to_rgb', False))
    )
    device = device or ('cuda' if torch.cuda.is_available() else 'cpu')
    return backbone.to(device).eval(), preprocessor.to(device)


@torch.no_grad()
def stage_maps(backbone: nn.Module, images: Tensor) -> list[Tensor]:
    """Compute the feature maps of all stages, including those not in ``out_indices``.

    Args:
        backbone (nn.Module): A pyramid, :class:`UMSwin` or :class:`UMPVT`, whose ``out_indices`` is restored; or
            :class:`UMBackbone`, for the maps that its network returns.
        images (Tensor): (N, 3, H, W), normalised.
    Returns:
        list[Tensor]: (N, C_i, h_i, w_i) of the unmasked images, the last one after the final norm if the backbone
        has one.
    Raises:
        ValueError: If the backbone has no stages.
    """
    _check_stages(backbone)
    if isinstance(backbone, UMBackbone):
        return list(backbone(images))
    out_indices = backbone.out_indices
    backbone.out_indices = tuple(range(len(backbone.stages)))
    try:
        return list(backbone(images))
    finally:
        backbone.out_indices = out_indices


def principal_colors(features: Tensor) -> np.ndarray:
    """Colour each token of an image by its first three principal components.

    The components are computed from this image's tokens. Each is stretched to the full range of its channel (red,
    green, blue in descending order of variance); a component without variance is grey. The sign of a component is
    arbitrary, so it is chosen such that its largest weight is positive, which makes the colours reproducible.

    Args:
        features (Tensor): (C, h, w), one feature map of one image.
    Returns:
        np.ndarray: (h, w, 3) uint8.
    """
    channels, height, width = features.shape
    tokens = features.detach().cpu().double().view(channels, -1).T  # (h * w, C)
    tokens = tokens - tokens.mean(0)
    _, spreads, axes = torch.linalg.svd(tokens, full_matrices=False)
    colors = torch.full((len(tokens), 3), 0.5, dtype=torch.float64)
    for i, (spread, axis) in enumerate(zip(spreads[:3], axes[:3], strict=True)):
        if spread <= NEGLIGIBLE * spreads[0]:
            break
        scores = tokens @ (axis * axis[axis.abs().argmax()].sign())
        colors[:, i] = (scores - scores.min()) / (scores.max() - scores.min())
    return (255 * colors).round().byte().view(height, width, 3).numpy()


def feature_panels(backbone: nn.Module, images: Tensor) -> list[list[np.ndarray]]:
    """Coloured feature maps of all stages at the size of the image, each token as a square.

    Args:
        backbone (nn.Module): See :func:`stage_maps`.
        images (Tensor): (N, 3, H, W), normalised.
    Returns:
        list[list[np.ndarray]]: For each image, one (H, W, 3) uint8 array per stage.
    """
    side = images.shape[-2:]
    panels = [[principal_colors(features) for features in maps] for maps in stage_maps(backbone, images)]
    panels = [[_enlarge(panel, side) for panel in stage] for stage in panels]
    return [list(row) for row in zip(*panels, strict=True)]  # [stage][image] -> [image][stage]


def feature_sheet(
    backbone: nn.Module,
    preprocessor: nn.Module,
    images: Sequence[str | Path],
    image_size: int,
    title: str = '',
    load: LoadCompleteImage | None = None,
) -> np.ndarray:
    """Draw one row per image file: the image, then the coloured feature map of each stage.

    Args:
        backbone (nn.Module): See :func:`stage_maps`.
        preprocessor (nn.Module): Normalises the images: from :func:`load_backbone`, or a model's data preprocessor.
        images (Sequence[str | Path]): Image files.
        image_size (int): Side in pixels to which images are resized and centre-cropped.
        title (str): Title above the sheet. Default ''.
        load (LoadCompleteImage, optional): Reads the images, see :func:`~mm_ummae.datasets.image_files.loader_of`.
    Returns:
        np.ndarray: (height, width, 3) uint8.
    Raises:
        ValueError: If there is no image or one cannot be read, or the backbone has no stages.
    """
    batch = load_batch(images, image_size, load)
    originals = loaded_colours(batch['inputs'])
    inputs = preprocessor(dict(batch), training=False)['inputs']
    panels = feature_panels(backbone, inputs)
    rows = [[original, *row] for original, row in zip(originals, panels, strict=True)]
    sides = [features.shape[-1] for features in stage_maps(backbone, inputs[:1])]
    names = [f'map {i + 1}, stride {round(inputs.shape[-1] / side)}' for i, side in enumerate(sides)]
    return image_sheet(rows, ['image', *names], title=title)


def model_feature_sheet(model: nn.Module, images: Tensor, title: str = '') -> np.ndarray:
    """Draw one row per image: the image, then its feature maps, of a pyramid all stages and of a ViT the last layer.

    Args:
        model (nn.Module): A pre-training model in eval mode.
        images (Tensor): (N, 3, S, S) uint8 BGR, as :func:`~mm_ummae.datasets.image_files.load_batch` gives them.
        title (str): Title above the sheet. Default ''.
    Returns:
        np.ndarray: (height, width, 3) uint8.
    """
    if isinstance(model.backbone, (PyramidBackbone, UMBackbone)):
        inputs = model.data_preprocessor(dict(inputs=images, data_samples=None), training=False)['inputs']
        maps = stage_maps(model.backbone, inputs)
    else:
        maps = [token_map(model, images)]
    side = images.shape[-1]
    rows = [
        [image, *(_enlarge(principal_colors(features[i]), (side, side)) for features in maps)]
        for i, image in enumerate(loaded_colours(images))
    ]
    names = [f'map of {each.shape[2]}x{each.shape[3]}' for each in maps]
    return image_sheet(rows, ['image', *names], title=title)


def _check_stages(backbone: nn.Module) -> None:
    if not isinstance(backbone, (PyramidBackbone, UMBackbone)):
        raise ValueError(
            f'the backbone is {type(backbone).__name__}, but feature maps are drawn of a pyramid (mm_ummae.UMSwin, '
            'mm_ummae.UMPVT, or mm_ummae.UMBackbone with any network)'
        )


def _enlarge(panel: np.ndarray, side: Sequence[int]) -> np.ndarray:
    """(h, w, 3) -> (H, W, 3), nearest neighbour."""
    values = torch.from_numpy(panel).permute(2, 0, 1)[None]
    return F.interpolate(values, tuple(side), mode='nearest')[0].permute(1, 2, 0).numpy()
