"""How good are frozen features? A linear probe and k nearest neighbours on the labelled demo images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from mmengine.logging import MMLogger
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import Normalizer, StandardScaler
from torch import Tensor, nn

from mm_ummae.registry import MODELS

MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


def load_labelled(folder: str | Path) -> tuple[Tensor, np.ndarray]:
    """Read ``folder/<class>/*.jpg``.

    Args:
        folder (str | Path): Split of an ImageNet-style data set, images of one size.
    Returns:
        tuple[Tensor, np.ndarray]: Normalised images (N, 3, H, W) and class indices (N, ).
    Raises:
        FileNotFoundError: If there is no image.
    """
    files = sorted(Path(folder).glob('*/*.jpg'))
    if not files:
        raise FileNotFoundError(f'{folder} holds no <class>/*.jpg')
    classes = sorted({file.parent.name for file in files})
    pixels = np.stack([np.asarray(Image.open(file).convert('RGB')) for file in files])
    images = (torch.from_numpy(pixels).float() - torch.tensor(MEAN)) / torch.tensor(STD)
    return images.permute(0, 3, 1, 2).contiguous(), np.array([classes.index(file.parent.name) for file in files])


@torch.no_grad()
def frozen_features(backbone: nn.Module, images: Tensor, batch_size: int = 50) -> np.ndarray:
    """Mean-pooled map of the backbone's first output: (N, 3, H, W) -> (N, C)."""
    backbone.eval()
    return torch.cat([backbone(batch)[0].mean((2, 3)) for batch in images.split(batch_size)]).numpy()


def probe(backbone: dict, checkpoint: str | None, data_root: str | Path, seed: int) -> dict[str, float]:
    """Accuracy of simple classifiers on the mean of a backbone's first map.

    Args:
        backbone (dict): Config of the backbone.
        checkpoint (str | None): Pre-trained weights; None takes random ones.
        data_root (str | Path): Holds ``train`` and ``val``.
        seed (int): Of random weights.
    Returns:
        dict[str, float]: ``linear`` and ``knn`` top-1 accuracy in percent.
    """
    if not MMLogger.check_instance_created('probe'):
        MMLogger.get_instance('probe', log_level='WARNING')  # MMEngine would print every initialised parameter
    torch.manual_seed(seed)
    start = None if checkpoint is None else dict(type='Pretrained', checkpoint=checkpoint, prefix='backbone')
    network = MODELS.build({**backbone, 'init_cfg': start})
    network.init_weights()
    (train, train_labels), (val, val_labels) = (load_labelled(Path(data_root) / split) for split in ('train', 'val'))
    train, val = frozen_features(network, train), frozen_features(network, val)
    classifiers = dict(
        linear=make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=2000)),
        knn=make_pipeline(StandardScaler(), Normalizer(), KNeighborsClassifier(n_neighbors=10)),
    )
    return {
        name: 100 * float(classifier.fit(train, train_labels).score(val, val_labels))
        for name, classifier in classifiers.items()
    }
