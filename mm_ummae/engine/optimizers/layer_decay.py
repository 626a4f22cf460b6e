"""Layer-wise learning rate decay for classifiers, detectors and segmentors."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from mmpretrain.engine.optimizers import LearningRateDecayOptimWrapperConstructor
from torch import nn

from mm_ummae.registry import OPTIM_WRAPPER_CONSTRUCTORS


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class LayerDecayOptimWrapperConstructor(LearningRateDecayOptimWrapperConstructor):
    """MMPretrain's layer-wise learning rate decay, extended to models without ``get_layer_depth``.

    Detectors and segmentors do not know the depth of their layers, so the backbone's ``get_layer_depth`` is used; necks
    and heads get the full learning rate. ``paramwise_cfg.layer_decay_rate=1`` switches the decay off.
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
            params (list[dict]): Parameter groups; extended in place.
            module (nn.Module): The model, or a part of it.
            prefix (str): Name of the part in the model, with a trailing dot. Default ''.
            get_layer_depth (Callable, optional): Maps a parameter name to its layer and the number of layers.
            kwargs: Other arguments of the parent's method.

        Raises:
            ValueError: If neither the model nor its backbone has ``get_layer_depth``.
        """
        if self.paramwise_cfg.get('layer_decay_rate') == 1.0:  # networks that do not count layers need not
            get_layer_depth = get_layer_depth or _one_layer
        if get_layer_depth is None and not hasattr(module, 'get_layer_depth'):
            backbone = getattr(module, 'backbone', None)
            if not hasattr(backbone, 'get_layer_depth'):
                raise ValueError(
                    f'constructor is {type(self).__name__}, but neither {type(module).__name__} nor its backbone '
                    f'{type(backbone).__name__} has get_layer_depth, which maps a parameter name to its layer'
                )
            get_layer_depth = partial(backbone.get_layer_depth, prefix='backbone.')
        super().add_params(params, module, prefix=prefix, get_layer_depth=get_layer_depth, **kwargs)


def _one_layer(param_name: str) -> tuple[int, int]:
    return 0, 1
