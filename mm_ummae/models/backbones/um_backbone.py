"""Any pyramid of the hosts as the encoder of UM-MAE or SimMIM, unchanged.

The compact image of Uniform Sampling (arXiv 2205.10063, section 3) is an ordinary image of half the side, and hidden
units are filled in the image: the network sees images and nothing else. What it loses against :class:`UMSwin` are the
true positions of the sampled units.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import torch
from mmengine.logging import print_log
from mmengine.model import BaseModule
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mm_ummae.checkpoints.layouts import CONSTANT, OUTPUT_NORM, convert_layout, recognise_layout, resize_table, unwrap
from mm_ummae.checkpoints.loading import start_from_checkpoint
from mm_ummae.checkpoints.names import some
from mm_ummae.masking import CELL, UNIT, UniformMask, compact, enlarge, image_size_pair
from mm_ummae.models.layers import TokensToUnits, fit_channels, keep_traced_size
from mm_ummae.registry import MODELS

from .pyramid import check_mask_inputs
from .true_positions import encode_compact, take_true_positions

HEAD = re.compile(r'head\.')  # of a classifier
MAX_PADDED_WINDOWS = 0.25  # share of the attention layers whose windows may be padding for the most part


@MODELS.register_module()
class UMBackbone(BaseModule):
    """A network of MMPretrain, MMDetection, MMSegmentation or timm for Uniform Masking.

    Without a mask it computes what the network computes. With a mask the network gets the *compact image* (the sampled
    units with the gaps closed, half the side), where a learned unit replaces those that are hidden again. Checkpoints
    have the network's own names, so that its own class loads them, and files of its own class load here.

    Args:
        network (dict): Config of a registered network, such as ``dict(type='mmdet.SwinTransformer', ...)``, that
            returns maps (N, C, h, w) or (N, h, w, C), the last one of stride 32, 16 or 8 (:attr:`stride`).
        img_size (int | tuple[int, int]): Image size (height, width) of pre-training in pixels, multiples of 32. The
            network is tried with it when it is built. Default 224.
        secondary_token (bool): Create the unit that replaces secondary-masked ones, which only pre-training with
            UM-MAE needs. Default False.
        mask_token (bool): Create the unit that replaces masked ones in pre-training with SimMIM. Default False.
        in_channels (int): Channels of the images, those that the network takes. Weights for three are adapted to
            another number (see :func:`~mm_ummae.models.layers.fit_channels`). Default 3.
        true_positions (bool): With a mask, attend with the positions that the sampled units have in the full image,
            see :func:`take_true_positions`; for MMPretrain's Swin V2. Default False: as if the sampled units were
            neighbours.
        init_cfg (dict | list, optional): MMEngine's initialisation. With ``type='Pretrained'`` each parameter must
            find its value in the checkpoint. The network's own ``init_cfg`` works as in its host.

    Raises:
        ImportError: If the network's package is not installed.
        ValueError: If the network returns something else, the last stride is another, the size is no multiple of 32, or
            most of its attention windows would hold padding for the most part at this size.
    """

    # A pre-training checkpoint may hold these though a fine-tuned backbone does not
    PRETRAINING_ONLY = ('secondary_token', 'mask_token')
    # A compact image needs one unit of each cell
    SAMPLING = ('uniform',)
    # Its checkpoints may have the names of another code base, see `adapt_state`
    STOCK_LAYOUTS = True

    def __init__(
        self,
        network: dict,
        img_size: int | tuple[int, int] = 224,
        in_channels: int = 3,
        secondary_token: bool = False,
        mask_token: bool = False,
        true_positions: bool = False,
        init_cfg: dict | list | None = None,
    ) -> None:
        super().__init__(init_cfg=init_cfg)
        self.img_size, self.in_channels = image_size_pair(img_size), in_channels
        if any(side % CELL for side in self.img_size):
            raise ValueError(f'img_size is {img_size}, but its sides must be multiples of {CELL} px, two units')
        self.network = _build(network)
        self._first = next((name for name, part in self.network.named_modules() if isinstance(part, nn.Conv2d)), None)
        taken = in_channels if self._first is None else self.network.get_submodule(self._first).in_channels
        if taken != in_channels:
            raise ValueError(
                f'in_channels is {in_channels}, but the first convolution of network {type(self.network).__name__} '
                f'takes {taken}: give both the same number'
            )
        self.true_positions = true_positions
        if true_positions:
            take_true_positions(self.network)
        self.secondary_token, self.mask_token = (
            nn.Parameter(torch.zeros(in_channels, UNIT, UNIT)) if wanted else None
            for wanted in (secondary_token, mask_token)
        )
        self.channels_last = False  # the maps of some networks of timm are (N, h, w, C)
        self._register_state_dict_hook(_name_as_the_network)
        self._register_load_state_dict_pre_hook(_name_as_here, with_module=True)
        # UM-MAE gives compact images, SimMIM and fine-tuning whole ones
        height, width = (side // 2 for side in self.img_size) if secondary_token else self.img_size
        with _watch_windows(self.network) as watched:
            maps = self._try(height, width)
        _check_windows(watched, (height, width), type(self.network).__name__)
        self.num_features = [each.shape[1] for each in maps]
        norms = [name for name, part in self.network.named_modules() if isinstance(part, _BatchNorm)]
        if norms and secondary_token:
            print_log(
                f'{type(self.network).__name__} has batch norm ({norms[0]}, ...): in pre-training its running '
                'statistics are those of compact images; do not freeze them in fine-tuning (norm_eval=False)',
                'current',
            )

    def forward(
        self, images: Tensor, mask: UniformMask | None = None, replaced: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        """Compute the network's maps.

        Args:
            images (Tensor): (N, 3, H, W), normalised. With a mask the sides must be multiples of 32.
            mask (UniformMask, optional): Units to sample and to hide again. Default: the whole image.
            replaced (Tensor, optional): (N, H / 16, W / 16) bool, True = ``mask_token`` replaces the unit.
        Returns:
            tuple[Tensor, ...]: Maps (N, C_i, h_i, w_i); with a mask those of the compact image, half as large.
        Raises:
            ValueError: If the mask is of another kind or for other images, or the image sides do not allow one.
        """
        check_mask_inputs(self, images, mask, replaced)
        if torch.jit.is_tracing():
            # Hosts turn sizes into constants of a trace, and with them compute wrong maps of other batches without an
            # error: this fails there
            images = keep_traced_size(images).view([int(side) for side in images.shape])
        if mask is not None:
            images = compact(images, mask.offsets)
            if self.secondary_token is not None:
                images = _fill(images, mask.secondary, self.secondary_token)
            if self.true_positions:
                return encode_compact(self.network, images, mask)
        if replaced is not None:
            images = _fill(images, replaced, self.mask_token)
        return self._maps(self.network(images))

    def _maps(self, outputs: Tensor | Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Outputs of the network as maps (N, C, h, w)."""
        maps = tuple(outputs) if isinstance(outputs, (list, tuple)) else (outputs,)
        if not self.channels_last:
            return maps
        # Contiguous: MMCV's RoIAlign reads channels-last memory as if it were not, without an error
        return tuple(each.permute(0, 3, 1, 2).contiguous() for each in maps)

    def init_weights(self) -> None:
        """Initialise as the network does, or load ``init_cfg``'s checkpoint strictly."""
        for token in (self.secondary_token, self.mask_token):
            if token is not None:
                nn.init.trunc_normal_(token, std=0.02)
        if not start_from_checkpoint(self):
            super().init_weights()

    def adapt_state(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Fit weights of another code base, another window or another choice of outputs to this network.

        Names are converted (see :mod:`mm_ummae.checkpoints.layouts`); tables of relative positions are resized
        bicubically; norms of outputs and tokens of pre-training that the file lacks keep their initial value.

        Args:
            state (dict[str, Tensor]): Parameters by name; unchanged.
        Returns:
            dict[str, Tensor]: Parameters by this module's names.
        Raises:
            ValueError: If the names fit no layout, or a table no square window.
        """
        own = self.state_dict()
        initial = {name for name in own if OUTPUT_NORM.fullmatch(name) or name in self.PRETRAINING_ONLY}
        left_out: list[str] = []
        if own.keys() - state.keys() - initial - set(filter(CONSTANT.search, own)):
            try:
                layout = recognise_layout(own.keys() - set(self.PRETRAINING_ONLY)).name
            except ValueError:  # a network without a table of names: the caller lists what differs
                return state
            inside, left_out = unwrap(state)
            source = recognise_layout(inside)
            state, unused = convert_layout(inside, layout)
            left_out += unused
            print_log(f'{type(self.network).__name__}: the weights are converted from {source}', 'current')
        state = {name: value for name, value in state.items() if not CONSTANT.search(name)}
        for name in [name for name in state if name not in own and (OUTPUT_NORM.fullmatch(name) or HEAD.match(name))]:
            left_out.append(name)
            del state[name]
        for name in self.PRETRAINING_ONLY:  # a unit of pixels with other channels is learned anew
            if name in state and name in own and state[name].shape != own[name].shape:
                left_out.append(name)
                del state[name]
        state = fit_channels(state, f'{self._first}.weight', self.in_channels)
        for name in own.keys() & state.keys():
            if name.endswith('relative_position_bias_table') and len(state[name]) != len(own[name]):
                state[name] = resize_table(state[name], len(own[name]))
        if left_out:
            print_log(f'{type(self.network).__name__}: not used: {some(sorted(left_out))}', 'current')
        kept = {name: own[name] for name in own if name in initial or CONSTANT.search(name)}
        return kept | state

    def get_layer_depth(self, param_name: str, prefix: str = '') -> tuple[int, int]:
        """Layer of a parameter for layer-wise learning-rate decay, as the network counts them.

        Raises:
            ValueError: If the network does not count layers.
        """
        if not hasattr(self.network, 'get_layer_depth'):
            raise ValueError(
                f'{type(self.network).__name__} does not count layers, which layer-wise learning-rate decay needs: '
                "remove layer_decay_rate, or take MMPretrain's network if it has the same one"
            )
        inside = f'{prefix}network.'
        if param_name.startswith(inside):
            return self.network.get_layer_depth(param_name, inside)
        num_layers = self.network.get_layer_depth(inside, inside)[1]
        return (0 if param_name.startswith(prefix) else num_layers - 1), num_layers

    def _try(self, height: int, width: int) -> tuple[Tensor, ...]:
        """Maps of one image of zeros, checked."""
        name, training = type(self.network).__name__, self.network.training
        self.network.eval()
        with torch.no_grad():
            images = torch.zeros(1, self.in_channels, height, width)
            if self.true_positions:
                cells = torch.zeros(1, height // UNIT, width // UNIT, dtype=torch.long)
                maps = encode_compact(self.network, images, UniformMask(cells, cells.bool()))
            else:
                maps = self._maps(self.network(images))
        self.network.train(training)
        shapes = [tuple(each.shape) if isinstance(each, Tensor) else type(each).__name__ for each in maps]
        if not maps or any(not isinstance(each, Tensor) or each.dim() != 4 for each in maps):
            raise ValueError(
                f'network {name} returns {shapes}, but maps (N, C, h, w) are needed: set its options so that it gives '
                'feature maps (ConvNeXt of MMPretrain: gap_before_final_norm=False), or take mm_ummae.UMViT for a ViT'
            )
        sides = {stride: (-(-height // stride), -(-width // stride)) for stride in TokensToUnits.STRIDES}
        for stride, side in sides.items():
            if side in (shapes[-1][2:], shapes[-1][1:3]):
                self.stride, self.channels_last = stride, shapes[-1][2:] != side
                return self._maps(maps)
        if shapes[-1][2:] in [(height // stride, width // stride) for stride in sides]:
            way = 'it drops what is left of sides that are no multiples of its stride: choose img_size accordingly'
        else:
            way = 'choose out_indices that end with such a stage'
        raise ValueError(
            f'the last map of network {name} is {shapes[-1]} for an image of {height}x{width} px, but its stride must '
            f'be one of {", ".join(map(str, sides))}: {way}'
        )


def _build(network: dict) -> nn.Module:
    kind = network.get('type') if isinstance(network, Mapping) else None
    if kind is None:
        raise ValueError(f"network is {network!r}, but it must be a config such as dict(type='mmdet.SwinTransformer')")
    if isinstance(kind, str) and '.' in kind:
        package = kind.partition('.')[0]
        try:
            import_module(f'{package}.models')  # registers its networks
        except ModuleNotFoundError as error:
            raise ImportError(f'network.type is {kind!r}, but {package} cannot be imported: {error}') from error
    return MODELS.build(network)


def _fill(images: Tensor, units: Tensor, token: Tensor) -> Tensor:
    """Put a unit of pixels in place of others.

    (N, C, 16 h, 16 w), (N, h, w) bool, (C, 16, 16) -> (N, C, 16 h, 16 w)
    """
    _, h, w = units.shape
    return torch.where(enlarge(units, UNIT)[:, None], token.to(images.dtype).repeat(1, h, w), images)


def _name_as_the_network(module: UMBackbone, state: dict, prefix: str, *_: Any) -> None:
    """Names of a saved state, as the network alone would have them: in place, in the same order."""
    inside = f'{prefix}network.'
    for name in list(state):
        if name.startswith(prefix):
            value = state.pop(name)
            state[prefix + name.removeprefix(inside) if name.startswith(inside) else name] = value


def _name_as_here(module: UMBackbone, state: dict, prefix: str, *_: Any) -> None:
    """The opposite, before a state is loaded."""
    own = {f'{prefix}{name}' for name in UMBackbone.PRETRAINING_ONLY}
    for name in [name for name in state if name.startswith(prefix) and name not in own]:
        state[f'{prefix}network.{name.removeprefix(prefix)}'] = state.pop(name)


@contextmanager
def _watch_windows(network: nn.Module) -> Iterator[list[tuple[str, int, tuple[int, int]]]]:
    """Window side and map of each layer of windowed attention that is called meanwhile."""
    found: list[tuple[str, int, tuple[int, int]]] = []

    def watch(name: str, size: int) -> Any:
        def hook(part: nn.Module, inputs: tuple) -> None:
            if len(inputs) > 1 and isinstance(inputs[1], tuple) and len(inputs[1]) == 2:
                found.append((name, size, tuple(int(side) for side in inputs[1])))

        return hook

    # The hosts' windowed attention is called with tokens and the sides of their map
    handles = [
        part.register_forward_pre_hook(watch(name, part.window_size))
        for name, part in network.named_modules()
        if isinstance(getattr(part, 'window_size', None), int)
    ]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _check_windows(watched: list[tuple[str, int, tuple[int, int]]], image: tuple[int, int], network: str) -> None:
    """Raise ValueError where padding fills most of the windows of more than a quarter of the attention layers."""
    poor = []
    for name, size, sides in watched:
        padded = [-(-side // size) * size for side in sides]
        if 2 * sides[0] * sides[1] < padded[0] * padded[1]:
            poor.append(f'{name}: a map of {sides[0]}x{sides[1]} in windows of {size}')
    if not poor:
        return
    more = ', ...' if len(poor) > 1 else ''
    text = (
        f'{len(poor)} of {len(watched)} attention layers of network {network} have windows that are padding for the '
        f'most part at {image[0]}x{image[1]} px, the images that it is given ({poor[0]}{more})'
    )
    if len(poor) > MAX_PADDED_WINDOWS * len(watched):
        raise ValueError(f'{text}: set a larger img_size, or smaller windows in the network')
    print_log(text, 'current')
