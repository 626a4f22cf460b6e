"""Length, batch and learning rate of a pre-training and of a fine-tuning, from the number of images."""

from __future__ import annotations

import math
from dataclasses import dataclass

# The published recipes (arXiv 2205.10063): 1,281,167 images, 4096 of them a batch, 2.4e-3, 200 epochs of 312 updates.
# The demo's settings for 2,000 images were measured (demo/tried.md): batches of 16, 4e-4, 20 epochs of 125 updates.
# Between the two each rule is the power law through both, or a bound.
IMAGES_PER_BATCH = 128  # images of the data set for each one of a batch
BATCH = (16, 4096)
UPDATES, UPDATE_IMAGES = 2500, 2000
LR_OF_ONE, MAX_LR = 1e-4, 2.4e-3
EPOCHS = (10, 800)
WARMUP = 0.1  # of the epochs
IMAGES_PER_FINETUNING_BATCH, MIN_FINETUNING_BATCH = 32, 8
FINETUNING_EPOCHS = (1, 300)


@dataclass(frozen=True)
class Settings:
    """Settings of a training.

    Attributes:
        batch (int): Images of an update, on all GPUs together.
        epochs (int): Passes over the images.
        lr (float): Largest learning rate.
        updates (int): Steps of the optimizer.
    """

    batch: int
    epochs: int
    lr: float
    updates: int


def choose_settings(
    images: int, epochs: int | None = None, batch: int | None = None, lr: float | None = None
) -> Settings:
    """Settings for a number of images; what is given is kept, and the others follow from it.

    * **Batch**: the images / 128, rounded down to a power of two, in 16..4096: small data needs updates more than exact
      gradients. With 1.28 million images that is the published 4096.
    * **Updates**: ``2500 * sqrt(images / 2000)``: the demo's number at its 2,000 images, and at 1.28 million the
      published 62,500. The epochs follow, in 10..800 (the longest that is published).
    * **Learning rate**: ``1e-4 * sqrt(batch)``, at most the published 2.4e-3: the square-root rule of adaptive
      optimizers (Malladi et al., NeurIPS 2022, arXiv 2205.10287) through the demo's 4e-4 at 16.

    Args:
        images (int): Images of the data set.
        epochs (int, optional): Keep this number.
        batch (int, optional): Keep this number of images of an update.
        lr (float, optional): Keep this learning rate.
    Returns:
        Settings: All of them.
    Raises:
        ValueError: If a number is not positive, or the images do not fill a batch.
    """
    _check_positive(images=images, epochs=epochs, batch=batch, lr=lr)
    if batch is None:
        power = 2 ** int(math.log2(max(images / IMAGES_PER_BATCH, 1)))
        batch = min(max(power, BATCH[0]), BATCH[1])
        batch = min(batch, images)
    lr = min(LR_OF_ONE * math.sqrt(batch), MAX_LR) if lr is None else lr
    return _settings(images, batch, epochs, lr, UPDATES * math.sqrt(images / UPDATE_IMAGES), EPOCHS)


@dataclass(frozen=True)
class Reference:
    """A fine-tuning recipe from which others are derived.

    Args:
        images (int): Images of its data set.
        batch (int): Images of an update.
        updates (int): Steps of the optimizer.
        lr (float): Largest learning rate.
    """

    images: int
    batch: int
    updates: int
    lr: float


def choose_finetuning(
    reference: Reference,
    images: int,
    epochs: int | None = None,
    batch: int | None = None,
    lr: float | None = None,
    multiple: int = 1,
) -> Settings:
    """Settings of a fine-tuning for a number of images; what is given is kept, and the others follow from it.

    * **Batch**: that of the recipe, but beyond 8 at most the images / 32, rounded down to a power of two: a recipe for
      a million images may have a batch of 1024.
    * **Updates**: those of the recipe times the square root of the ratio of images, as in pre-training. The epochs
      follow, in 1..300.
    * **Learning rate**: that of the recipe times the square root of the ratio of batches.

    Args:
        reference (Reference): The recipe.
        images (int): Images to train on.
        epochs (int, optional): Keep this number.
        batch (int, optional): Keep this number of images of an update.
        lr (float, optional): Keep this learning rate.
        multiple (int): A batch by the rule is a multiple of it. Default 1.
    Returns:
        Settings: All of them.
    Raises:
        ValueError: If a number is not positive, or the images do not fill a batch.
    """
    _check_positive(images=images, epochs=epochs, batch=batch, lr=lr)
    if batch is None:
        power = 2 ** int(math.log2(max(images / IMAGES_PER_FINETUNING_BATCH, 1)))
        batch = min(reference.batch, max(power, MIN_FINETUNING_BATCH), images)
        batch = max(batch // multiple * multiple, multiple)
    lr = reference.lr * math.sqrt(batch / reference.batch) if lr is None else lr
    updates = reference.updates * math.sqrt(images / reference.images)
    return _settings(images, batch, epochs, lr, updates, FINETUNING_EPOCHS)


def _check_positive(**values: float | None) -> None:
    for name, value in values.items():
        if value is not None and not value > 0:
            raise ValueError(f'{name} is {value}, but it must be above 0')


def _settings(
    images: int, batch: int, epochs: int | None, lr: float, updates: float, bounds: tuple[int, int]
) -> Settings:
    """Settings whose epochs, unless given, make about so many updates within bounds."""
    if batch > images:
        raise ValueError(f'batch is {batch}, but there are only {images} images: give a smaller batch')
    per_epoch = images // batch
    if epochs is None:
        epochs = min(max(round(updates / per_epoch), bounds[0]), bounds[1])
    return Settings(batch, epochs, float(f'{lr:.3g}'), epochs * per_epoch)
