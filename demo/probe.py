"""Linear probe and k nearest neighbours on frozen features of the labelled demo images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import Normalizer, StandardScaler
from torch import Tensor, nn

from mm_ummae.registry import MODELS

from .screen import keep_log_off

MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


def probe(
    backbone: Mapping[str, Any],
    checkpoint: str | None,
    data_root: Path,
    seed: int,
    level: int = 0,
    mean: Sequence[float] = MEAN,
    std: Sequence[float] = STD,
) -> dict[str, float]:
    """Accuracy of simple classifiers on the mean of an output map of a backbone.

    Args:
        backbone (Mapping[str, Any]): Config of the backbone.
        checkpoint (str, optional): Pre-trained weights. None: random ones.
        data_root (Path): Folder with ``train`` and ``val``.
        seed (int): Of random weights.
        level (int): Which of the output maps. Default: the first.
        mean (Sequence[float]): Of each channel, RGB, which is subtracted from the images. Default: ImageNet's.
        std (Sequence[float]): By which they are divided then. Default: ImageNet's.
    Returns:
        dict[str, float]: Top-1 accuracy in percent, ``linear`` and ``knn``.
    """
    keep_log_off()  # of every initialised parameter
    torch.manual_seed(seed)
    start = None if checkpoint is None else dict(type='Pretrained', checkpoint=checkpoint, prefix='backbone')
    network = MODELS.build({**backbone, 'init_cfg': start})
    network.init_weights()
    (train, train_labels), (val, val_labels) = (
        load_labelled(data_root / split, mean, std) for split in ('train', 'val')
    )
    train, val = (frozen_features(network, each, level) for each in (train, val))
    classifiers = dict(
        linear=make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=2000)),
        knn=make_pipeline(StandardScaler(), Normalizer(), KNeighborsClassifier(n_neighbors=10)),
    )
    return {
        name: 100 * float(classifier.fit(train, train_labels).score(val, val_labels))
        for name, classifier in classifiers.items()
    }


def load_labelled(folder: Path, mean: Sequence[float] = MEAN, std: Sequence[float] = STD) -> tuple[Tensor, np.ndarray]:
    """Load ``folder/<class>/*.jpg``, images of one size.

    Args:
        folder (Path): With a subfolder for each class.
        mean, std (Sequence[float]): See :func:`probe`.
    Returns:
        tuple[Tensor, np.ndarray]: Normalised images (N, 3, H, W) and class indices (N, ).
    Raises:
        FileNotFoundError: If there is no image.
    """
    files = sorted(folder.glob('*/*.jpg'))
    if not files:
        raise FileNotFoundError(f'{folder} has no images <class>/*.jpg')
    classes = sorted({file.parent.name for file in files})
    pixels = np.stack([np.asarray(Image.open(file).convert('RGB')) for file in files])  # (N, H, W, 3)
    images = (torch.from_numpy(pixels).float() - torch.tensor(mean)) / torch.tensor(std)
    return images.permute(0, 3, 1, 2).contiguous(), np.array([classes.index(file.parent.name) for file in files])


@torch.no_grad()
def frozen_features(backbone: nn.Module, images: Tensor, level: int = 0, batch_size: int = 50) -> np.ndarray:
    """Mean over an output map: (N, 3, H, W) -> (N, C)."""
    backbone.eval()
    return torch.cat([backbone(batch)[level].mean((2, 3)) for batch in images.split(batch_size)]).numpy()
