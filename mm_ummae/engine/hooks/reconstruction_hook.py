"""Hook that draws reconstructions during pre-training into every visualisation backend of the run."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import is_main_process, master_only
from mmengine.hooks import Hook
from mmengine.runner import EpochBasedTrainLoop, Runner

from mm_ummae.datasets.image_files import find_images, load_batch
from mm_ummae.datasets.transforms import LoadCompleteImage
from mm_ummae.models import MaskedPixelModel
from mm_ummae.models.frozen_features import evaluating
from mm_ummae.models.selfsup.masked_pixel_model import STATISTICS
from mm_ummae.registry import HOOKS
from mm_ummae.visualization.sheets import reconstruction_sheet

from .lookup import image_loader, image_path, unwrapped


@HOOKS.register_module()
class ReconstructionHook(Hook):
    """Reconstruct the same images under the same masks every few epochs.

    The sheet is added to ``runner.visualizer``, and so to each of its ``vis_backends`` (files, TensorBoard, ...), with
    the number of finished epochs as the step. Training is not affected: all modules keep their training mode, the
    global random number generators are not used, and only the main process draws.

    Args:
        images (str | Path | Sequence[str | Path], optional): An image, a folder, or a list of them. Default: the
            first readable images of the training set. All images are resized and centre-cropped as in a test pipeline;
            the augmentation of the training set is not applied.
        interval (int): Epochs between two sheets. Default 10.
        num_images (int): Maximum number of images taken from a folder or the training set. Default 4.
        image_size (int, optional): Side of the images in pixels. Default: the image size of the backbone.
        seed (int): Random seed of the masks. Default 0.
        name (str): Name of the sheet in the backends. Default ``reconstruction``.
        statistics (str): Where the mean and the contrast of hidden units come from with ``norm_pix``: ``original``, or
            ``visible`` to show what the network knows, see :meth:`MaskedPixelModel.predict`. Default ``original``.

    Raises:
        ValueError: If ``interval`` or ``num_images`` is not positive, or ``statistics`` is unknown. Before training
            starts: if an image cannot be read or masked, the model does not reconstruct images, or training does not
            run by epochs.
        FileNotFoundError: Before training starts, if there is no image.
    """

    priority = 'LOWEST'  # the checkpoint of the epoch is written first

    def __init__(
        self,
        images: str | Path | Sequence[str | Path] | None = None,
        interval: int = 10,
        num_images: int = 4,
        image_size: int | None = None,
        seed: int = 0,
        name: str = 'reconstruction',
        statistics: str = 'original',
    ) -> None:
        for key, value in dict(interval=interval, num_images=num_images).items():
            if value < 1:
                raise ValueError(f'{key} is {value}, but it must be at least 1')
        self.images, self.interval, self.num_images = images, interval, num_images
        self.image_size, self.seed, self.name = image_size, seed, name
        if statistics not in STATISTICS:
            raise ValueError(f'statistics is {statistics!r}, but it must be one of {", ".join(STATISTICS)}')
        self.statistics = statistics
        self.batch: dict[str, Any] = {}

    def before_train(self, runner: Runner) -> None:
        """Check the settings and load the images, so that any mistake stops the run before the first iteration."""
        model = unwrapped(runner.model)
        if not isinstance(model, MaskedPixelModel):  # LoMaRBEiT draws windows as well, but predicts visual tokens
            raise ValueError(
                f'ReconstructionHook is set, but {type(model).__name__} does not reconstruct images: it is for '
                'mm_ummae.UMMAE, mm_ummae.UMSimMIM and mm_ummae.LoMaR'
            )
        if not isinstance(runner.train_loop, EpochBasedTrainLoop):
            raise ValueError(
                f'ReconstructionHook.interval counts epochs, but training runs in {type(runner.train_loop).__name__}: '
                'set train_cfg.by_epoch=True'
            )
        size = min(model.backbone.img_size) if self.image_size is None else self.image_size
        model.draw_mask(1, (size, size), generator=torch.Generator())  # raises if such an image cannot be masked
        if is_main_process():
            dataset = runner.train_dataloader.dataset
            load = image_loader(dataset)
            files = self._files(dataset, size, load)
            self.batch = load_batch(files, size, load)

    @master_only
    def after_train_epoch(self, runner: Runner) -> None:
        """Reconstruct the images and add the sheet to the visualizer."""
        if not self.every_n_epochs(runner, self.interval):
            return
        model = unwrapped(runner.model)
        with evaluating(model):
            samples = model.reconstruct(self.batch, self.seed, statistics=self.statistics)
        epoch = runner.epoch + 1
        runner.visualizer.add_image(self.name, reconstruction_sheet(samples, f'epoch {epoch}'), step=epoch)

    def _files(self, dataset: Any, size: int, load: LoadCompleteImage) -> list[Path]:
        if self.images is None:
            return _first_readable(dataset, self.num_images, size, load)
        paths = [self.images] if isinstance(self.images, (str, Path)) else self.images
        return [file for path in paths for file in find_images(path, self.num_images)]


def _first_readable(dataset: Any, number: int, size: int, load: LoadCompleteImage) -> list[Path]:
    """First files of a dataset that can be decoded; a large dataset may hold a few damaged ones."""
    files: list[Path] = []
    for index in range(len(dataset)):
        path = image_path(dataset, index, 'ReconstructionHook.images')
        with suppress(ValueError):
            load_batch([path], size, load)
            files.append(Path(path))
        if len(files) == number:
            break
    if not files:
        raise ValueError('ReconstructionHook.images is not set, and no image of the training set can be read')
    return files
