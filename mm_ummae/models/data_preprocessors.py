"""Data preprocessors for images of any number of channels; those of the hosts take one or three."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from mmpretrain.models import ClsDataPreprocessor, SelfSupDataPreprocessor

from mm_ummae.registry import MODELS


class AnyChannels:
    """Mix-in for a host's data preprocessor: mean and standard deviation of any number of channels.

    Args:
        mean (Sequence[float], optional): Of each channel, in pixel values 0..255. Default: images are not normalised.
        std (Sequence[float], optional): Of each channel.
        kwargs: Other arguments of the host's class.

    Raises:
        ValueError: If the numbers of values differ, or the order of other than three channels is to be changed.
    """

    def __init__(self, mean: Sequence[float] | None = None, std: Sequence[float] | None = None, **kwargs) -> None:
        if mean is None or std is None or len(mean) == len(std) == 3:
            super().__init__(mean=mean, std=std, **kwargs)
            return
        turned = [name for name in ('to_rgb', 'bgr_to_rgb', 'rgb_to_bgr') if kwargs.get(name)]
        if len(mean) != len(std) or turned:
            raise ValueError(
                f'mean has {len(mean)} values, std {len(std)} and {", ".join(turned) or "no order"} is set, but there '
                'must be as many of each, and only three channels have an order to change: set to_rgb and '
                'bgr_to_rgb to False'
            )
        super().__init__(mean=[0.0], std=[1.0], **kwargs)
        for name, values in (('mean', mean), ('std', std)):
            self.register_buffer(name, torch.tensor(values, dtype=torch.float32).view(-1, 1, 1), persistent=False)


@MODELS.register_module()
class AnyChannelsPreprocessor(AnyChannels, SelfSupDataPreprocessor):
    """MMPretrain's data preprocessor of pre-training for images of any number of channels; see :class:`AnyChannels`."""


@MODELS.register_module()
class AnyChannelsClsPreprocessor(AnyChannels, ClsDataPreprocessor):
    """MMPretrain's data preprocessor of classifiers for images of any number of channels; see :class:`AnyChannels`."""
