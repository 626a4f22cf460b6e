"""Loading weights into a backbone, loudly: a checkpoint that does not fit must never train silently from scratch."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path

from mmengine.logging import print_log
from mmengine.model import PretrainedInit
from mmengine.runner import CheckpointLoader
from torch import Tensor, nn

from mm_ummae.checkpoints.conversion import to_ours
from mm_ummae.checkpoints.files import find_state, read_checkpoint
from mm_ummae.checkpoints.names import naming_of, some


def pretrained_cfg(init_cfg: dict | list | None) -> dict | None:
    """The ``dict(type='Pretrained', ...)`` of an ``init_cfg``, or None if there is none.

    Raises:
        ValueError: If it stands among others: a checkpoint sets every parameter, so nothing else can have effect.
    """
    cfgs = init_cfg if isinstance(init_cfg, (list, tuple)) else [init_cfg]
    found = [cfg for cfg in cfgs if cfg and cfg.get('type') in ('Pretrained', PretrainedInit)]
    if found and len(cfgs) > 1:
        raise ValueError(f'init_cfg is {init_cfg}, but type Pretrained sets every parameter and stands alone')
    return found[0] if found else None


def start_from_checkpoint(module: nn.Module) -> bool:
    """Load the checkpoint that a backbone's ``init_cfg`` names, if it names one: its ``init_weights`` is then done.

    Args:
        module (nn.Module): A backbone; ``PRETRAINING_ONLY`` of it may be in the checkpoint alone.
    Returns:
        bool: Whether there was one.
    Raises:
        FileNotFoundError: If there is no such file.
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

    Files of the published implementation are recognised by their names and converted (see conversion.py), so that a
    released file works without a further step. Files on disk are read without running code they may hold; addresses go
    to MMEngine, which trusts them.

    Args:
        checkpoint (str): Path, or any address MMEngine's ``CheckpointLoader`` takes.
        prefix (str, optional): Take only names under it. Default: ``backbone`` if such names exist, else all;
            '' always takes all.
    Returns:
        dict[str, Tensor]: Our names, without the prefix.
    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is no readable checkpoint, cannot be converted or has nothing under the prefix.
    """
    state = find_state(_read(str(checkpoint)), checkpoint)
    if naming_of(state) == 'published':
        try:
            state = to_ours(state)
        except ValueError as error:
            raise ValueError(f'the checkpoint {checkpoint} cannot be converted. {error}') from error
    if prefix is None and any(name.startswith('backbone.') for name in state):
        prefix = 'backbone'
    if not prefix:
        return state
    prefix = prefix.rstrip('.') + '.'
    inside = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    if not inside:
        raise ValueError(
            f'prefix is {prefix!r}, but no parameter of the checkpoint {checkpoint} starts with it; '
            f'it has {some(sorted(state))}'
        )
    return inside


def load_pretrained(module: nn.Module, init_cfg: dict, optional: Collection[str] = ()) -> None:
    """Load ``init_cfg``'s checkpoint into ``module`` and raise unless every parameter finds its value.

    A module with a method ``adapt_state(state) -> state`` may change what it is given before that, to resize a position
    embedding or to add what is new. The log says what was resized or added, and every name that was not used.

    Args:
        module (nn.Module): Receives the weights; unchanged if anything is wrong.
        init_cfg (dict): ``dict(type='Pretrained', checkpoint=..., prefix=...)``.
        optional (Collection[str]): Names the checkpoint may hold though the module does not, for parts that
            only pre-training has. They are logged.
    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If none is named, the file cannot be read, or names or shapes do not fit; all kinds are listed.
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
    state = read_state_dict(checkpoint, init_cfg.get('prefix'))
    own = module.state_dict()
    try:
        adapted = module.adapt_state(state) if hasattr(module, 'adapt_state') else state
        problems = compare_state(own, adapted, optional)
    except ValueError as error:
        problems = str(error)
    if problems:
        raise ValueError(
            f'the checkpoint {checkpoint} does not fit {type(module).__name__}, nothing was loaded. {problems}'
        )
    module.load_state_dict({name: value for name, value in adapted.items() if name in own})
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


def load_whole(model: nn.Module, checkpoint: str) -> None:
    """Load a checkpoint into a whole model with a backbone, or raise unless every parameter finds its value.

    Args:
        model (nn.Module): Receives the weights; unchanged if anything is wrong.
        checkpoint (str): Ours or the published implementation's.
    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file cannot be read, or names or shapes do not fit; all three kinds are listed.
    """
    own, state = model.state_dict(), read_state_dict(checkpoint, prefix='')
    # A backbone that returns other stages, say, has no use for its last norm
    optional = [f'backbone.{name}' for name in getattr(model.backbone, 'PRETRAINING_ONLY', ())]
    problems = compare_state(own, state, optional)
    if problems:
        raise ValueError(
            f'the checkpoint {checkpoint} does not fit {type(model).__name__}, nothing was loaded. {problems}'
        )
    model.load_state_dict({name: value for name, value in state.items() if name in own})


def compare_state(own: dict[str, Tensor], state: dict[str, Tensor], optional: Collection[str] = ()) -> str:
    """Say where a checkpoint's parameters do not fit a module's.

    Args:
        own (dict[str, Tensor]): Parameters and buffers of the module.
        state (dict[str, Tensor]): Those of the checkpoint.
        optional (Collection[str]): Names that only the checkpoint may have.
    Returns:
        str: Missing and unexpected names and other shapes, or '' if all fits.
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


def _read(checkpoint: str) -> dict:
    if Path(checkpoint).exists() or not re.match(r'[\w+.-]+:', checkpoint):
        return read_checkpoint(checkpoint)
    try:
        return CheckpointLoader.load_checkpoint(checkpoint, map_location='cpu', logger='silent')
    except Exception as error:  # many kinds, of networks and of damaged files
        raise ValueError(f'the checkpoint {checkpoint} cannot be read. {type(error).__name__}: {error}') from error
