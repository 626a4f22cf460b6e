"""Hook that tells during pre-training whether the network learns, by frozen features with and without labels."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.dist import is_main_process, master_only
from mmengine.hooks import Hook
from mmengine.registry import DefaultScope
from mmengine.runner import EpochBasedTrainLoop, Runner
from torch import Tensor

from mm_ummae.datasets.image_files import find_images, load_batch
from mm_ummae.datasets.random_streams import keeping_streams
from mm_ummae.datasets.sampling import evenly_spaced
from mm_ummae.datasets.transforms import LoadCompleteImage
from mm_ummae.models.feature_measures import FOLDS, dead_share, effective_rank, probe_accuracies, spread
from mm_ummae.models.frozen_features import frozen_features
from mm_ummae.registry import DATASETS, HOOKS

from .lookup import image_loader, image_path, unwrapped

PREFIX = 'learning/'  # of the names of the scalars
START = 'learning_start'  # key of the first values in the message hub, and so in checkpoints
# Of each value: its name in the log, and its format
TEXTS = dict(
    rank=('rank', '.1f'),
    spread=('spread', '.3f'),
    dead=('dead channels', '.1%'),
    knn=('k-NN %', '.1f'),
    linear=('linear probe %', '.1f'),
    chance=('chance %', '.1f'),
)
SIZE = 224  # pixels, of a backbone without `img_size`
PER_CLASS = 2 * FOLDS  # labelled images of a class that are left where there are more classes than can be shown

# A network has collapsed beyond these
MIN_RANK, MIN_SPREAD, MAX_DEAD = 2.0, 0.02, 0.5
# Later than this share of the run, features should be better than those of random weights, and the loss lower
EARLY = 0.25
SURE = 2.0  # standard errors of an accuracy
STUCK = 0.99  # of the loss of the first epoch
WAYS_OUT = (
    'Ways out: a lower learning rate (optim_wrapper.optimizer.lr) or a longer warm-up (param_scheduler), another mask '
    'ratio (model.secondary_ratio of UM-MAE, model.mask_ratio of LoMaR), or images of the size at which objects fill '
    'more than a few units of 16 px (image_size)'
)


@HOOKS.register_module()
class LearningHook(Hook):
    """Measure frozen features every few epochs, and warn when the network does not learn.

    The images are whole, resized and centre-cropped as in a test pipeline, and their feature is the mean over the last
    map of the backbone. Without labels:

    * ``rank``: effective rank of the features of images of the training set (RankMe, arXiv 2210.02885);
    * ``spread``: by how much they differ between images, 0..1 (as in SimSiam, arXiv 2011.10566);
    * ``dead``: share of the channels that are the same for all images.

    With labels, ``knn`` and ``linear``: accuracies in percent of ten nearest neighbours and of logistic regression, by
    cross validation, and ``chance``, that of always answering the largest class.

    The values go to the log, to the message hub and to every backend of the visualizer, as ``learning/rank`` and so on,
    with the number of finished epochs as the step; the first ones are kept in checkpoints. ``learning/seconds`` is the
    time that it took, and ``learning/time_share`` the share of all measurements in the time of the run. Training is not
    affected: modes and random streams are restored, and only the main process measures, while the others wait for it
    where they next exchange gradients.

    A warning says what to do if

    * the rank is below 2, the spread below 0.02, or more than half of the channels are dead: the features have
      collapsed, and images can no longer be told apart;
    * after a quarter of the run the mean of both accuracies is below that of the start by more than two standard
      errors: the features are worse than those of random weights;
    * after a quarter of the run the mean loss of an epoch is above 99 % of that of the first one: it is stuck.

    The rank is not compared with that of the start: random weights spread images over many directions, and it falls
    while a network learns.

    Args:
        labelled (str | dict, optional): Folder with a subfolder for each class, or the config of a labelled data set of
            MMPretrain, whose pipeline is not used. Default: no probes.
        interval (int): Epochs between two measurements; one more follows the last epoch. Default 10.
        images (str | Path | Sequence[str | Path], optional): Images without labels: a folder, or a list of files and
            folders. Default: images of the training set, evenly spaced.
        num_images (int): Maximum number of images taken from a folder or the training set. Default 512.
        num_labelled (int): Labelled images, equally many of each class; with many classes, 10 of some of them.
            Default 1000.
        image_size (int, optional): Side of the images in pixels. Default: the image size of the backbone, which for
            LoMaR in BEiT is that of a window.
        start (bool): Also measure before the first epoch, for comparison. Default True.
        batch_size (int): Images that are encoded at a time. Default 32.

    Raises:
        ValueError: If a number is not positive. Before training starts: if no image can be read, the labelled data set
            has fewer than two classes of two images, the model gives no features, or training does not run by epochs.
        ImportError: Before training starts, if ``labelled`` is set and scikit-learn is not installed.
        FileNotFoundError: Before training starts, if the labelled folder does not exist.
    """

    priority = 'LOWEST'  # the checkpoint of the epoch is written first

    def __init__(
        self,
        labelled: str | Mapping[str, Any] | None = None,
        interval: int = 10,
        images: str | Path | Sequence[str | Path] | None = None,
        num_images: int = 512,
        num_labelled: int = 1000,
        image_size: int | None = None,
        start: bool = True,
        batch_size: int = 32,
    ) -> None:
        numbers = dict(interval=interval, num_images=num_images, num_labelled=num_labelled, batch_size=batch_size)
        for key, value in numbers.items():
            if value < 1:
                raise ValueError(f'{key} is {value}, but it must be at least 1')
        self.labelled, self.interval, self.images, self.num_images = labelled, interval, images, num_images
        self.num_labelled, self.image_size, self.start, self.batch_size = num_labelled, image_size, start, batch_size
        self.loaded: Tensor | None = None  # (N, 3, S, S) uint8 BGR
        self.probed: tuple[Tensor, Tensor] | None = None  # labelled images, and their classes (M, ) int64
        self._seconds = 0.0  # of all measurements, with the loading of the images

    def before_train(self, runner: Runner) -> None:
        """Check the settings, load the images, and measure the start."""
        model = unwrapped(runner.model)
        if not isinstance(runner.train_loop, EpochBasedTrainLoop):
            raise ValueError(
                f'LearningHook.interval counts epochs, but training runs in {type(runner.train_loop).__name__}: set '
                'train_cfg.by_epoch=True'
            )
        if not hasattr(model, 'extract_feat') or not hasattr(model, 'data_preprocessor'):
            raise ValueError(
                f'LearningHook is set, but {type(model).__name__} has no extract_feat: it is for pre-training models'
            )
        if self.labelled is not None and importlib.util.find_spec('sklearn') is None:
            raise ImportError(
                'LearningHook.labelled is set, but scikit-learn is not installed: pip install scikit-learn'
            )
        self._began = time.perf_counter()
        if is_main_process():
            with keeping_streams():
                size, dataset = self.image_size or _image_size(model), runner.train_dataloader.dataset
                load = image_loader(dataset)
                self.loaded = self._load_images(dataset, size, load)
                self.probed = None if self.labelled is None else self._load_labelled(size, load)
            self._seconds = time.perf_counter() - self._began
            if self.start and runner.iter == 0:  # a run may be resumed in the middle of its first epoch
                self._measure(runner, 0)

    @master_only
    def after_train_epoch(self, runner: Runner) -> None:
        """Measure, and warn if the network does not learn."""
        if self.every_n_epochs(runner, self.interval) or runner.epoch + 1 == runner.max_epochs:
            self._measure(runner, runner.epoch + 1)

    def _measure(self, runner: Runner, epoch: int) -> None:
        began, model = time.perf_counter(), unwrapped(runner.model)
        with keeping_streams():
            features = frozen_features(model, self.loaded, self.batch_size)
            if not features.isfinite().all():
                runner.logger.warning(f'the features after {epoch} epochs are not finite, and are not measured')
                return
            values = dict(rank=effective_rank(features), spread=spread(features), dead=dead_share(features))
            if self.probed is not None:
                images, labels = self.probed
                values |= probe_accuracies(frozen_features(model, images, self.batch_size), labels)
        seconds = time.perf_counter() - began
        self._seconds += seconds
        share = self._seconds / (time.perf_counter() - self._began)
        first = runner.message_hub.runtime_info.get(START)
        runner.logger.info(
            f'features of {len(self.loaded)} images after {epoch} epochs: {_describe(values, first)}; {seconds:.1f} s, '
            f'{share:.1%} of the time so far'
        )
        if first is None:
            runner.message_hub.update_info(START, values)
        elif epoch:
            for problem in self._problems(runner, values, first):
                # With the epoch: MMEngine logs the same warning only once
                runner.logger.warning(f'after {epoch} epochs {problem}. {WAYS_OUT}')
        scalars = {f'{PREFIX}{name}': value for name, value in values.items()}
        scalars |= {f'{PREFIX}seconds': seconds, f'{PREFIX}time_share': share}
        runner.message_hub.update_scalars(scalars)
        runner.visualizer.add_scalars(scalars, step=epoch)

    def _problems(self, runner: Runner, values: dict[str, float], first: dict[str, float]) -> list[str]:
        """What is wrong, by the rules of the class."""
        found = []
        rank = min(MIN_RANK, len(self.loaded) / 4)  # a few images cannot have more
        if values['rank'] < rank or values['spread'] < MIN_SPREAD or values['dead'] > MAX_DEAD:
            measured = _describe({name: values[name] for name in ('rank', 'spread', 'dead')})
            found.append(f'the features have collapsed, images can hardly be told apart: {measured}')
        if runner.iter < EARLY * runner.max_iters:
            return found
        if self.probed is not None and 'knn' in first:
            now, before = ((each['knn'] + each['linear']) / 200 for each in (values, first))
            error = (before * (1 - before) / len(self.probed[1])) ** 0.5
            if now < before - SURE * error:
                measured = _describe({name: values[name] for name in ('knn', 'linear')}, first)
                found.append(f'the features are worse than those of the start: {measured}')
        losses = _epoch_losses(runner)
        if losses is not None and losses[1] > STUCK * losses[0]:
            found.append(f'the loss is stuck: {losses[0]:.4f} in the first epoch, {losses[1]:.4f} in the last one')
        return found

    def _load_images(self, dataset: Any, size: int, load: LoadCompleteImage) -> Tensor:
        if self.images is None:
            # Evenly spaced: files are sorted, often by what they show
            places = evenly_spaced(range(len(dataset)), self.num_images)
            files = [image_path(dataset, place, 'LearningHook.images') for place in places]
        else:
            paths = [self.images] if isinstance(self.images, (str, Path)) else self.images
            files = [file for path in paths for file in find_images(path, self.num_images)]
        images, _ = _load(files, size, load)
        if len(images) < 2:
            raise ValueError(
                f'LearningHook needs at least two images that can be read, but of {len(files)} {len(images)} can'
            )
        return images

    def _load_labelled(self, size: int, load: LoadCompleteImage) -> tuple[Tensor, Tensor]:
        config = dict(self.labelled) if isinstance(self.labelled, Mapping) else dict(data_root=str(self.labelled))
        with DefaultScope.overwrite_default_scope('mmpretrain'):
            dataset = DATASETS.build(dict(type='CustomDataset', data_prefix='') | config | dict(pipeline=[]))
        labels = [dataset.get_data_info(i).get('gt_label') for i in range(len(dataset))]
        if not all(isinstance(label, (int, np.integer)) for label in labels):
            raise ValueError(f'LearningHook.labelled is {self.labelled}, but its images must have one class each')
        chosen = _choose(np.asarray(labels, dtype=np.int64), self.num_labelled)
        files = (image_path(dataset, int(i), 'LearningHook.labelled') for i in chosen)
        images, read = _load(files, size, load)
        classes = torch.tensor([labels[chosen[i]] for i in read], dtype=torch.long)
        counts = classes.bincount(minlength=1)
        kept = counts[classes] > 1
        if (counts > 1).sum() < 2:
            raise ValueError(
                f'LearningHook.labelled is {self.labelled}, of which {len(classes)} images of {(counts > 0).sum()} '
                'classes are taken, but probes need at least two classes of two images that can be read'
            )
        return images[kept], classes[kept]


def _load(files: Iterable[str], size: int, load: LoadCompleteImage) -> tuple[Tensor, list[int]]:
    """Images that can be read, (N, C, size, size) uint8, BGR, and their places; a large set has damaged files."""
    images, places = [], []
    for place, file in enumerate(files):
        with suppress(ValueError):
            images.append(load_batch([file], size, load)['inputs'])
            places.append(place)
    return torch.cat(images) if images else torch.empty(0, load.channels, size, size, dtype=torch.uint8), places


def _choose(labels: np.ndarray, number: int) -> list[int]:
    """Indices of at most ``number`` images, equally many of each class; always the same ones."""
    generator = np.random.default_rng(0)
    classes = np.unique(labels)
    fitting = max(number // PER_CLASS, 2)
    if len(classes) > fitting:
        classes = generator.choice(classes, fitting, replace=False)
    each = max(number // len(classes), 2)
    return [int(i) for c in sorted(classes) for i in generator.permutation(np.flatnonzero(labels == c))[:each]]


def _image_size(model: Any) -> int:
    size = getattr(model.backbone, 'img_size', SIZE)
    return size if isinstance(size, int) else min(size)


def _epoch_losses(runner: Runner) -> tuple[float, float] | None:
    """Mean loss of the first and of the last epoch, if these are two."""
    length, done = len(runner.train_loop.dataloader), runner.iter
    if 'train/loss' not in runner.message_hub.log_scalars or done < 2 * length:
        return None
    history = runner.message_hub.get_scalar('train/loss').data[0]
    return float(history[:length].mean()), float(history[-length:].mean())


def _describe(values: Mapping[str, float], first: Mapping[str, float] | None = None) -> str:
    """Values as text, with the first ones in brackets."""
    parts = []
    for key, value in values.items():
        name, style = TEXTS[key]
        before = f' (first {first[key]:{style}})' if first and key in first and key != 'chance' else ''
        parts.append(f'{name} {value:{style}}{before}')
    return ', '.join(parts)
