"""Files for other code: the network of a checkpoint under the names that another library's own class loads."""

from __future__ import annotations

import re
from pathlib import Path

from mmengine.logging import print_log
from torch import Tensor

from mm_ummae.version import __version__

from .files import file_hash, find_state, read_checkpoint, write_checkpoint
from .layouts import LEFT_OUT, OUTPUT_NORM, convert_layout, recognise_layout, unwrap
from .names import naming_of, some

HOSTS = ('mmpretrain', 'mmdet', 'mmseg')
TARGETS = (*HOSTS, 'official', 'timm', 'torchvision', 'transformers')
# Where the file goes, as `{path}`
USES = {
    'mmpretrain': "backbone=dict(init_cfg=dict(type='Pretrained', checkpoint='{path}', prefix='backbone.'))",
    'mmdet': "backbone=dict(init_cfg=dict(checkpoint='{path}'))",
    'mmseg': "backbone=dict(init_cfg=dict(checkpoint='{path}'))",
    'official': "model.load_state_dict(torch.load('{path}')['model'], strict=False)  # it computes attn_mask",
    'timm': "timm.create_model(NAME, num_classes=0, checkpoint_path='{path}')",
    'torchvision': "model.head = torch.nn.Identity(); model.load_state_dict(torch.load('{path}'))",
    'transformers': "model.load_state_dict(torch.load('{path}'))  # SwinModel(config), ViTModel(config), ...",
}


def export_checkpoint(
    source: str | Path, target: str | Path, to: str, window_size: int | None = None, licence: str | None = None
) -> Path:
    """Write the network of a checkpoint for the class of another library.

    Args:
        source (str | Path): Checkpoint of a pre-training with ``UMBackbone`` or a ViT, or weights in any layout of
            :mod:`mm_ummae.checkpoints.layouts`.
        target (str | Path): File to write atomically, by safetensors if that is its suffix; replaces an existing one.
        to (str): One of :data:`TARGETS`. ``mmdet``: what its stock configs load, which for Swin is the official layout.
        window_size (int, optional): See :func:`convert_layout`.
        licence (str, optional): Licence of the weights. Default: that in the source's meta, or 'not stated'.
    Returns:
        Path: The written file. MMPretrain's and MMSegmentation's have a ``state_dict`` with the prefix ``backbone.``,
        MMDetection's and the official one a ``model``; the others are plain dicts of tensors.
    Raises:
        FileNotFoundError: If the source does not exist.
        ValueError: If an argument is illegal, or the weights are not recognised.
    """
    source, target = Path(source).expanduser(), Path(target).expanduser()
    if to not in TARGETS:
        raise ValueError(f'to is {to!r}, but it must be one of {", ".join(TARGETS)}')
    if target.is_dir() or not target.parent.is_dir():
        raise ValueError(f'target is {target}, but it must be a file in a folder that exists')
    content = read_checkpoint(source)
    if target.exists() and target.samefile(source):
        raise ValueError(f'target is {target}, but that is the source, which is not overwritten')
    meta = content.get('meta') if isinstance(content, dict) and isinstance(content.get('meta'), dict) else {}
    try:
        state, left_out = _exported(find_state(content, source), to, window_size)
    except ValueError as error:
        raise ValueError(f'the checkpoint {source} cannot be exported to {to}. {error}') from error
    if left_out:
        print_log(f'{source}: left out: {some(left_out)}', 'current')
    if to in ('timm', 'torchvision', 'transformers') and target.suffix != '.safetensors':
        return write_checkpoint(state, target)
    new_meta = dict(
        mm_ummae_version=__version__,
        source=source.name,
        source_sha256=file_hash(source),
        layout=to,
        licence=licence or str(meta.get('licence') or 'not stated'),
    )
    return write_checkpoint(
        {'meta': new_meta, 'state_dict' if to in ('mmpretrain', 'mmseg') else 'model': state}, target
    )


def _exported(state: dict[str, Tensor], to: str, window_size: int | None) -> tuple[dict[str, Tensor], list[str]]:
    """Parameters under the names of a target, and what is left out."""
    inside, left_out = unwrap(state)
    try:
        source = recognise_layout(inside)
    except ValueError:
        # The wrapper holds networks without a table of names, whose own class can load them
        if to not in HOSTS or naming_of(state) == 'published':
            raise
        print_log(f'the network is none of the known ones: its own names are kept for {to}', 'current')
        own = {name: value for name, value in inside.items() if not LEFT_OUT.fullmatch(name)}
        return own if to == 'mmdet' else _prefixed(own), left_out
    layout = 'official' if to == 'mmdet' and source.family.name == 'Swin' else 'openmmlab' if to in HOSTS else to
    converted, unused = convert_layout(inside, layout, window_size)
    if to == 'mmdet' and layout == 'official':
        # Its converter leaves norms of outputs as they are, and knows no last one without a number
        last = f'norm{len(source.depths) - 1}.'
        norms = {name: value for name, value in inside.items() if OUTPUT_NORM.fullmatch(name)}
        converted = {re.sub(r'^norm\.', last, name): value for name, value in converted.items()} | norms
        unused = [name for name in unused if name not in norms]
    elif to in ('mmpretrain', 'mmseg'):
        converted = _prefixed(converted)
    return converted, sorted([*left_out, *unused])


def _prefixed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names in a model of OpenMMLab."""
    return {name if name.startswith('head.') else f'backbone.{name}': value for name, value in state.items()}
