"""Strict loading of weights: a checkpoint that does not fit is an error, never a silent start from scratch."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

from mmengine.logging import print_log
from mmengine.model import PretrainedInit
from mmengine.runner import CheckpointLoader
from torch import Tensor, nn

from mm_ummae.checkpoints.conversion import to_ours
from mm_ummae.checkpoints.files import CheckpointError, find_state, read_checkpoint
from mm_ummae.checkpoints.names import backbone_alone, naming_of, some


def pretrained_cfg(init_cfg: dict | list | None) -> dict | None:
    """The ``dict(type='Pretrained', ...)`` of an ``init_cfg``, or None if there is none.

    Raises:
        ValueError: If there are other entries: a checkpoint sets every parameter, so they would have no effect.
    """
    cfgs = init_cfg if isinstance(init_cfg, (list, tuple)) else [init_cfg]
    found = [cfg for cfg in cfgs if cfg and cfg.get('type') in ('Pretrained', PretrainedInit)]
    if found and len(cfgs) > 1:
        raise ValueError(f'init_cfg is {init_cfg}, but type Pretrained sets every parameter and must be the only entry')
    return found[0] if found else None


def start_from_checkpoint(module: nn.Module) -> bool:
    """Load the checkpoint of a backbone's ``init_cfg``, if it has one, in place of initialising the weights.

    Args:
        module (nn.Module): A backbone. The checkpoint may also hold the names in its ``PRETRAINING_ONLY``.
    Returns:
        bool: Whether a checkpoint was loaded.
    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: See :func:`load_pretrained`.
    """
    init_cfg = pretrained_cfg(module.init_cfg)
    if init_cfg is None:
        return False
    load_pretrained(module, init_cfg, module.PRETRAINING_ONLY)
    module._is_init = True
    return True


def read_state_dict(checkpoint: str, prefix: str | None = None) -> dict[str, Tensor]:
    """Read the parameters of one module from a checkpoint file.

    Files in published naming are recognised and converted (see :func:`to_ours`). Files and addresses are read safely
    (no arbitrary code execution).

    Args:
        checkpoint (str): Path, or any address that MMEngine's ``CheckpointLoader`` takes.
        prefix (str, optional): Part of the model to take. Default: ``backbone`` if the file has such names, else all;
            '' always takes all.
    Returns:
        dict[str, Tensor]: Parameters by our names, without the prefix.
    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If it is not a readable checkpoint, cannot be converted or has no names with the prefix.
    """
    return _state_dict(read_content(checkpoint), checkpoint, prefix)


def _state_dict(content: Any, checkpoint: str, prefix: str | None, stock: bool = False) -> dict[str, Tensor]:
    """Parameters in the content of a file; see :func:`read_state_dict`. With ``stock`` of any other network."""
    state = find_state(content, checkpoint)
    if stock and not any(name.startswith('backbone.') for name in state):
        return state
    if not stock and naming_of(state) == 'published':
        try:
            state = _to_ours(state, backbone_only=prefix in (None, 'backbone', 'backbone.'))
        except ValueError as error:
            raise CheckpointError(f'the checkpoint {checkpoint} cannot be converted. {error}') from error
    if prefix is None and any(name.startswith('backbone.') for name in state):
        prefix = 'backbone'
    if not prefix:
        return state
    prefix = prefix.rstrip('.') + '.'
    inside = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    if not inside and prefix == 'backbone.' and 'patch_embed.projection.weight' in state:
        print_log(f'{checkpoint} holds a backbone alone, without the prefix {prefix}', 'current')
        return state
    if not inside:
        raise CheckpointError(
            f'prefix is {prefix!r}, but no parameter of the checkpoint {checkpoint} starts with it; '
            f'it has {some(sorted(state))}'
        )
    return inside


def load_pretrained(module: nn.Module, init_cfg: dict, optional: Collection[str] = ()) -> None:
    """Load the checkpoint of ``init_cfg`` into ``module``, or raise unless every parameter finds its value.

    A module may have a method ``adapt_state(state) -> state`` that is called before, to resize a position embedding or
    to add new parameters. The log lists what was resized, added or not used.

    Args:
        module (nn.Module): Receives the weights; unchanged after an error.
        init_cfg (dict): ``dict(type='Pretrained', checkpoint=..., prefix=...)``.
        optional (Collection[str]): Names that the checkpoint may hold though the module does not, for parts that
            only pre-training has.
    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If ``init_cfg`` names no file, the file cannot be read, or names or shapes do not fit; all kinds
            are listed.
    """
    unknown = set(init_cfg) - {'type', 'checkpoint', 'prefix'}
    if unknown or 'checkpoint' not in init_cfg:
        raise ValueError(f'init_cfg is {init_cfg}, but type Pretrained takes checkpoint and optionally prefix')
    checkpoint = init_cfg['checkpoint']
    if not checkpoint:
        raise ValueError(
            'init_cfg.checkpoint is empty, but training starts from these weights: give them with --cfg-options '
            'model.backbone.init_cfg.checkpoint=PATH, or start from scratch with model.backbone.init_cfg=None'
        )
    stock = getattr(module, 'STOCK_LAYOUTS', False)
    state = _state_dict(read_content(checkpoint), checkpoint, init_cfg.get('prefix'), stock)
    adapted = _load(module, state, checkpoint, optional)
    own = module.state_dict()
    if not own.keys() & state.keys():  # names of another layout, whose conversion the module has logged
        state = adapted
    notes = {
        'resized': [
            f'{name} {tuple(state[name].shape)} to {tuple(own[name].shape)}'
            for name in sorted(own.keys() & state.keys())
            if state[name].shape != own[name].shape
        ],
        'new': sorted(own.keys() - state.keys()),
        'not used': sorted(state.keys() - own.keys()),
    }
    note = ''.join(f', {kind}: {", ".join(names)}' for kind, names in notes.items() if names)
    print_log(f'{type(module).__name__}: all {len(own)} parameters loaded from {checkpoint}{note}', 'current')


def load_whole(model: nn.Module, checkpoint: str) -> dict:
    """Load a checkpoint into a whole model with a backbone, or raise unless every parameter finds its value.

    Args:
        model (nn.Module): Receives the weights; unchanged after an error.
        checkpoint (str): File in our naming or the published one.
    Returns:
        dict: ``meta`` of the file, such as ``dataset_meta`` with the names of classes; empty if it has none.
    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If the file cannot be read, or names or shapes do not fit; all kinds are listed.
    """
    # A backbone that returns other stages, say, does not use its last norm
    optional = [f'backbone.{name}' for name in getattr(model.backbone, 'PRETRAINING_ONLY', ())]
    content = read_content(checkpoint)
    _load(model, _state_dict(content, checkpoint, prefix=''), checkpoint, optional)
    meta = content.get('meta')
    return meta if isinstance(meta, dict) else {}


def compare_state(own: dict[str, Tensor], state: dict[str, Tensor], optional: Collection[str] = ()) -> str:
    """Compare names and shapes of a checkpoint with those of a module.

    Args:
        own (dict[str, Tensor]): Parameters and buffers of the module.
        state (dict[str, Tensor]): Those of the checkpoint.
        optional (Collection[str]): Names that only the checkpoint may have.
    Returns:
        str: Missing and unexpected names and other shapes, or '' if all fit.
    """
    kinds = {
        'missing': sorted(own.keys() - state.keys()),
        'unexpected': sorted(state.keys() - own.keys() - set(optional)),
        'other shape': [
            f'{name} {tuple(state[name].shape)} instead of {tuple(own[name].shape)}'
            for name in sorted(own.keys() & state.keys())
            if state[name].shape != own[name].shape
        ],
    }
    return '; '.join(f'{kind}: {some(names)}' for kind, names in kinds.items() if names)


def _load(module: nn.Module, state: dict[str, Tensor], checkpoint: str, optional: Collection[str]) -> dict[str, Tensor]:
    """Load and return what ``adapt_state`` made of the state."""
    own = module.state_dict()
    try:
        adapted = module.adapt_state(state) if hasattr(module, 'adapt_state') else state
        problems = compare_state(own, adapted, optional)
    except ValueError as error:
        problems = str(error)
    if problems:
        raise CheckpointError(
            f'the checkpoint {checkpoint} does not fit {type(module).__name__}, nothing was loaded. {problems}'
        )
    # All names are there, see above; MMPretrain's Swin V2 ignores the tables that it computes, which is no error
    module.load_state_dict({name: value for name, value in adapted.items() if name in own}, strict=False)
    return adapted


def _to_ours(state: dict[str, Tensor], backbone_only: bool) -> dict[str, Tensor]:
    """Convert a file in published naming; where a backbone is wanted, other parts may be incomplete or absent."""
    try:
        return to_ours(state)
    except ValueError:
        backbone = backbone_alone(state)
        if not backbone_only or backbone.keys() == state.keys():
            raise
    left_out = sorted(state.keys() - backbone.keys() - {f'backbone.{name}' for name in backbone})
    print_log(f'only the backbone is taken, the file is no complete model; not used: {some(left_out)}', 'current')
    return to_ours(backbone)


def read_content(checkpoint: str | Path) -> Any:
    """Read a file or an address; arguments and errors are those of :func:`read_state_dict`."""
    checkpoint = str(checkpoint)
    if Path(checkpoint).exists() or not re.match(r'[\w+.-]+:', checkpoint):
        return read_checkpoint(checkpoint)
    try:
        return CheckpointLoader.load_checkpoint(checkpoint, map_location='cpu', logger='silent')
    except CheckpointError:
        raise
    except Exception as error:  # many kinds, of networks and of damaged files
        raise CheckpointError(f'the checkpoint {checkpoint} cannot be read. {type(error).__name__}: {error}') from error
