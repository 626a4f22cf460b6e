"""What several hooks look up in a runner."""

from __future__ import annotations

from typing import Any

from mmengine.hooks import Hook, LoggerHook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from torch import nn

from mm_ummae.datasets.transforms import LoadCompleteImage


def find_hook(runner: Runner, kind: type[Hook]) -> Any:
    """The first hook of a class, or None."""
    return next((hook for hook in runner.hooks if isinstance(hook, kind)), None)


def logging_interval(runner: Runner) -> int:
    """Iterations between two lines of the log; 10, MMEngine's default, without a logger."""
    logger = find_hook(runner, LoggerHook)
    return 10 if logger is None else logger.interval


def unwrapped(model: nn.Module) -> nn.Module:
    """The model itself, which distributed training wraps."""
    return model.module if is_model_wrapper(model) else model


def image_path(dataset: Any, index: int, asking: str) -> str:
    """Path of an image of a data set.

    Args:
        dataset (Any): A data set of MMEngine, or one that wraps it.
        index (int): Of the image.
        asking (str): The argument of a hook that names other images, for the error.
    Raises:
        ValueError: If the data set does not tell paths.
    """
    info = dataset.get_data_info(index) if hasattr(dataset, 'get_data_info') else {}
    if 'img_path' not in info:
        raise ValueError(
            f'{asking} takes files of the data set, but {type(dataset).__name__} has no file paths in '
            f'get_data_info(i)["img_path"]: set {asking} to an image, a folder or a list, or leave the hook out'
        )
    return info['img_path']


def image_loader(dataset: Any) -> LoadCompleteImage:
    """The transform that reads the images of a data set, so that a hook sees them as training does."""
    first = next(iter(getattr(getattr(dataset, 'pipeline', None), 'transforms', ())), None)
    return first if isinstance(first, LoadCompleteImage) else LoadCompleteImage()
