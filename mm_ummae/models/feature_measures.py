"""What frozen features tell about a network: with labels how well they separate classes, without how much they vary."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

NEIGHBOURS = 10  # of the k-NN classifier
FOLDS = 5  # of the cross validation
DEAD = 1e-3  # a channel that varies by less, relative to the root mean square of all features, is dead


def effective_rank(features: Tensor) -> float:
    """RankMe (arXiv 2210.02885): exponential of the entropy of the singular values, normalised to a sum of 1.

    Args:
        features (Tensor): (N, C), one row for each image.
    Returns:
        float: Between 1, if all features lie on one line, and min(N, C).
    """
    values = torch.linalg.svdvals(features.double())
    shares = values / values.sum().clamp(min=torch.finfo(values.dtype).tiny)
    return torch.special.entr(shares).sum().exp().item()


def spread(features: Tensor) -> float:
    """Standard deviation over images of features of length 1, the mean of all channels, times the root of their number.

    The measure of collapse in SimSiam (arXiv 2011.10566, section 4.1).

    Args:
        features (Tensor): (N, C), one row for each image.
    Returns:
        float: 0 if all images have the same features, 1 if they point anywhere.
    """
    return (F.normalize(features.double()).std(0, correction=0).mean() * features.shape[1] ** 0.5).item()


def dead_share(features: Tensor) -> float:
    """Share of the channels that (almost) do not vary over images: (N, C) -> 0..1."""
    deviations, size = features.double().std(0, correction=0), features.double().square().mean().sqrt()
    return (deviations <= DEAD * size).double().mean().item()


def probe_accuracies(features: Tensor, labels: Tensor) -> dict[str, float]:
    """Top-1 accuracy of two classifiers on frozen features, by cross validation.

    Args:
        features (Tensor): (N, C), one row for each image.
        labels (Tensor): (N, ) int64, at least two images of each class.
    Returns:
        dict[str, float]: In percent, ``knn`` by the ten nearest neighbours, ``linear`` by logistic regression, and
        ``chance``, by always answering the largest class.
    """
    # Imported when they are needed: it takes two seconds
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_score
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import Normalizer, StandardScaler

    counts = labels.bincount()
    folds = StratifiedKFold(min(FOLDS, int(counts[counts > 0].min())))
    classifiers = dict(
        knn=make_pipeline(StandardScaler(), Normalizer(), KNeighborsClassifier(NEIGHBOURS)),
        linear=make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=200)),
    )
    found = {
        name: 100 * float(cross_val_score(classifier, features.numpy(), labels.numpy(), cv=folds).mean())
        for name, classifier in classifiers.items()
    }
    return found | dict(chance=100 * counts.max().item() / len(labels))
