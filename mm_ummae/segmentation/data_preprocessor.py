"""MMSegmentation's data preprocessor for images of any number of channels."""

from __future__ import annotations

from mmseg.models import SegDataPreProcessor

from mm_ummae.models.data_preprocessors import AnyChannels
from mm_ummae.registry import MODELS


@MODELS.register_module()
class AnyChannelsSegPreprocessor(AnyChannels, SegDataPreProcessor):
    """MMSegmentation's data preprocessor; see :class:`~mm_ummae.models.data_preprocessors.AnyChannels`."""
