"""Loading weights into a backbone, loudly: a checkpoint that does not fit must never train silently from scratch."""

from __future__ import annotations

from collections.abc import Collection

from mmengine.logging import print_log
from mmengine.model import PretrainedInit
from mmengine.runner import CheckpointLoader
from torch import Tensor, nn

MAX_NAMED = 8  # keys named one by one in an error


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


def read_state_dict(checkpoint: str, prefix: str | None = None) -> dict[str, Tensor]:
    """Read the parameters of one module from a checkpoint file.

    Args:
        checkpoint (str): Path or any address MMEngine's ``CheckpointLoader`` takes.
        prefix (str, optional): Take only names under it. Default: ``backbone`` if such names exist, else all;
            '' always takes all.
    Returns:
        dict[str, Tensor]: Names without the prefix.
    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is no readable checkpoint or has nothing under the prefix.
    """
    try:
        content = CheckpointLoader.load_checkpoint(checkpoint, map_location='cpu', logger='silent')
    except FileNotFoundError as error:
        raise FileNotFoundError(f'the checkpoint {checkpoint} does not exist') from error
    except Exception as error:  # torch.load raises many kinds on damaged files
        raise ValueError(
            f'the checkpoint {checkpoint} cannot be read '
            f'(truncated or not made by torch.save?): {type(error).__name__}: {error}'
        ) from error
    state = content.get('state_dict', content) if isinstance(content, dict) else None
    if not isinstance(state, dict) or not state or not all(map(_is_parameter, state.items())):
        raise ValueError(f'the checkpoint {checkpoint} holds no state_dict of tensors')
    state = {name.removeprefix('module.'): value for name, value in state.items()}
    if prefix is None and any(name.startswith('backbone.') for name in state):
        prefix = 'backbone'
    if not prefix:
        return state
    prefix = prefix.rstrip('.') + '.'
    inside = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    if not inside:
        raise ValueError(
            f'prefix is {prefix!r}, but no parameter of the checkpoint {checkpoint} starts with it; '
            f'it has {_some(sorted(state))}'
        )
    return inside


def load_pretrained(module: nn.Module, init_cfg: dict, optional: Collection[str] = ()) -> None:
    """Load ``init_cfg``'s checkpoint into ``module`` and raise unless every parameter finds its value.

    Args:
        module (nn.Module): Receives the weights; unchanged if anything is wrong.
        init_cfg (dict): ``dict(type='Pretrained', checkpoint=..., prefix=...)``.
        optional (Collection[str]): Names the checkpoint may hold though the module does not, for parts that
            only pre-training has. They are logged.
    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file cannot be read, or names or shapes do not fit; all three kinds are listed.
    """
    unknown = set(init_cfg) - {'type', 'checkpoint', 'prefix'}
    if unknown or 'checkpoint' not in init_cfg:
        raise ValueError(f'init_cfg is {init_cfg}, but type Pretrained takes checkpoint and optionally prefix')
    checkpoint = init_cfg['checkpoint']
    state = read_state_dict(checkpoint, init_cfg.get('prefix'))
    own = module.state_dict()
    problems = compare_state(own, state, optional)
    if problems:
        raise ValueError(
            f'the checkpoint {checkpoint} does not fit {type(module).__name__}, nothing was loaded. {problems}'
        )
    surplus = sorted(state.keys() - own.keys())
    module.load_state_dict({name: value for name, value in state.items() if name in own})
    left = f', not used: {", ".join(surplus)}' if surplus else ''
    print_log(f'{type(module).__name__}: all {len(own)} parameters loaded from {checkpoint}{left}', 'current')


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
    return '; '.join(f'{kind}: {_some(names)}' for kind, names in kinds.items() if names)


def _is_parameter(item: tuple) -> bool:
    return isinstance(item[0], str) and isinstance(item[1], Tensor)


def _some(names: list[str]) -> str:
    rest = f' and {len(names) - MAX_NAMED} more' if len(names) > MAX_NAMED else ''
    return ', '.join(names[:MAX_NAMED]) + rest
