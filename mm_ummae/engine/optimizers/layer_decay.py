"""Layer-wise learning-rate decay for networks of every host."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from mmpretrain.engine.optimizers import LearningRateDecayOptimWrapperConstructor
from torch import nn

from mm_ummae.registry import OPTIM_WRAPPER_CONSTRUCTORS


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class LayerDecayOptimWrapperConstructor(LearningRateDecayOptimWrapperConstructor):
    """MMPretrain's constructor for detectors and segmentors too, which do not know the depth of their layers.

    The backbone is asked; necks and heads get the full rate. ``paramwise_cfg.layer_decay_rate`` 1 decays nothing.
    """

    def add_params(
        self,
        params: list[dict],
        module: nn.Module,
        prefix: str = '',
        get_layer_depth: Callable[[str], tuple[int, int]] | None = None,
        **kwargs,
    ) -> None:
        """Add a parameter group for each parameter of ``module``.

        Args:
            params (list[dict]): Groups so far; changed in place.
            module (nn.Module): The network, or a part of it.
            prefix (str): Name of the part in the network, with a dot at its end. Default ''.
            get_layer_depth (Callable, optional): Gives the layer of a parameter name and the number of layers.
            kwargs: The rest of the parent's.

        Raises:
            ValueError: If neither the network nor its backbone can tell the depth of a parameter.
        """
        if get_layer_depth is None and not hasattr(module, 'get_layer_depth'):
            backbone = getattr(module, 'backbone', None)
            if not hasattr(backbone, 'get_layer_depth'):
                raise ValueError(
                    f'constructor is {type(self).__name__}, but neither {type(module).__name__} nor its backbone '
                    f'{type(backbone).__name__} has get_layer_depth, which tells the layer of a parameter'
                )
            get_layer_depth = partial(backbone.get_layer_depth, prefix='backbone.')
        super().add_params(params, module, prefix=prefix, get_layer_depth=get_layer_depth, **kwargs)
