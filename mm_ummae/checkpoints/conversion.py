"""Conversion of checkpoints between the published parameter names and ours, in both directions.

A conversion is complete: every tensor of the source is used once, and missing and unknown names are errors. Shapes are
checked by the model that loads the result.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import isqrt
from pathlib import Path

import torch.nn.functional as F
from torch import Tensor

from mm_ummae.checkpoints.files import file_hash, find_state, read_checkpoint, write_checkpoint
from mm_ummae.checkpoints.names import FLAT, NAMINGS, NUM_STAGES, POINTWISE, TABLES, Layout, recognise, some
from mm_ummae.masking import UNIT, sincos_position
from mm_ummae.version import __version__

State = dict[str, Tensor]
ImageSize = int | tuple[int, int] | None
RELEASED_LICENCE = 'CC BY-NC 4.0 for the released weights'
TABLE_TOLERANCE = 1e-5


def convert_checkpoint(
    source: str | Path,
    target: str | Path,
    to: str | None = None,
    img_size: ImageSize = None,
    licence: str | None = None,
    hash_suffix: bool = False,
) -> Path:
    """Convert a checkpoint file and write a publishable one: tensors, and a ``meta`` that states their origin.

    Args:
        source (str | Path): Published file, or a checkpoint of ours.
        target (str | Path): File to write atomically; an existing one is replaced.
        to (str, optional): 'ours' or 'published'. Default: the naming that the source does not have.
        img_size (int | tuple[int, int], optional): Image size of UM-MAE or LoMaR pre-training, see :func:`to_ours` and
            :func:`to_published`. Default: that in the source's meta.
        licence (str, optional): Licence of the weights. Default: that in the source's meta; without one, that of the
            released weights for published files, and 'not stated' for ours.
        hash_suffix (bool): Append the first 8 digits of the file's SHA-256 to its name (``-xxxxxxxx.pth``), as
            OpenMMLab does. Default False.
    Returns:
        Path: The written file. ``state_dict`` holds our naming, ``model`` the published one.
    Raises:
        FileNotFoundError: If the source does not exist.
        ValueError: If an argument is illegal, or the source cannot be read or converted.
    """
    source, target = Path(source).expanduser(), Path(target).expanduser()
    if to is not None and to not in NAMINGS:
        raise ValueError(f'to is {to!r}, but it must be one of {", ".join(NAMINGS)}')
    if target.is_dir() or not target.parent.is_dir():
        raise ValueError(f'target is {target}, but it must be a file in a folder that exists')
    content = read_checkpoint(source)
    if target.exists() and target.samefile(source):
        raise ValueError(f'target is {target}, but that is the source, which is not overwritten')
    state = find_state(content, source)
    meta = content.get('meta') if isinstance(content.get('meta'), dict) else {}
    if img_size is None and isinstance(meta.get('arch'), dict):
        img_size = meta['arch'].get('img_size')
    try:
        layout = recognise(state)
        if to == layout.naming:
            raise ValueError(f'to is {to!r}, but the source has that naming already')
        if layout.naming == 'published':
            ours, published = to_ours(state, img_size), state
        else:
            ours, published = state, to_published(state, img_size)
        arch = _architecture(layout, {**published, **ours}, img_size)
    except ValueError as error:
        raise ValueError(f'the checkpoint {source} cannot be converted. {error}') from error
    default_licence = RELEASED_LICENCE if layout.naming == 'published' else 'not stated'
    new_meta = dict(
        mm_ummae_version=__version__,
        source=source.name,
        source_sha256=file_hash(source),
        kind=layout.kind,
        backbone=layout.backbone,
        arch=arch,
        licence=licence or str(meta.get('licence') or default_licence),
    )
    converted = dict(state_dict=ours) if layout.naming == 'published' else dict(model=published)
    return write_checkpoint({'meta': new_meta, **converted}, target, hash_suffix)


def to_ours(state: Mapping[str, Tensor], img_size: ImageSize = None) -> State:
    """Convert a state dict from published naming to ours.

    Args:
        state (Mapping[str, Tensor]): A whole published model.
        img_size (int | tuple[int, int], optional): Image size (height, width) in pixels of UM-MAE or LoMaR
            pre-training, for which the fixed table is checked. Default: a square.
    Returns:
        dict[str, Tensor]: The same values under our names; 1x1 convolutions become linear layers. The fixed table is
        left out: our decoders compute it, and LoMaR does not use it.
    Raises:
        ValueError: If the model is not recognised, parameters are missing or unknown (they are named), or the fixed
            table is not the sine-cosine table.
    """
    layout = recognise(state)
    if layout.naming == 'ours':
        raise ValueError(f'this is {layout}, there is nothing to convert')
    ours, name = _renamed(state, layout), TABLES.get(layout.kind)
    if name:
        found, table = state[name], _fixed_table(layout, {**ours, name: state[name]}, img_size)
        if found.shape != table.shape:
            raise ValueError(
                f'{name} has shape {tuple(found.shape)}, but that of these images has {tuple(table.shape)} '
                f'(img_size is {img_size}; None takes a square)'
            )
        deviation = (found.float().cpu() - table).abs().max().item()
        if not deviation <= TABLE_TOLERANCE:  # NaN too
            raise ValueError(
                f'{name} differs by {deviation:.1e} from the fixed sine-cosine table, but it can be left out only if '
                f'the difference is rounding, at most {TABLE_TOLERANCE}'
            )
    return ours


def to_published(state: Mapping[str, Tensor], img_size: ImageSize = None) -> State:
    """Convert a state dict from our naming to the published one.

    Args:
        state (Mapping[str, Tensor]): A whole model of ours.
        img_size (int | tuple[int, int], optional): Image size (height, width) in pixels of UM-MAE or LoMaR
            pre-training, for the fixed table. Needed for Swin and LoMaR; the position embeddings of PVT and ViT give
            it for square images.
    Returns:
        dict[str, Tensor]: The same values under published names, and the fixed table.
    Raises:
        ValueError: If the model is not recognised, parameters are missing or unknown (they are named), or ``img_size``
            is needed or contradicts the position embedding.
    """
    layout = recognise(state)
    if layout.naming == 'published':
        raise ValueError(f'this is {layout}, there is nothing to convert')
    published = _renamed(state, layout)
    if layout.kind in TABLES:
        published[TABLES[layout.kind]] = _fixed_table(layout, state, img_size)
    return published


def _renamed(state: Mapping[str, Tensor], layout: Layout) -> State:
    """All parameters but the fixed table under the other naming."""
    from_published = layout.naming == 'published'
    expected = list(layout.names if from_published else layout.names.values())
    if from_published and layout.kind in TABLES:
        expected.append(TABLES[layout.kind])
    missing, unknown = [name for name in expected if name not in state], sorted(state.keys() - set(expected))
    if missing or unknown:
        problems = [f'{kind}: {some(x)}' for kind, x in (('missing', missing), ('unknown', unknown)) if x]
        raise ValueError(f'This is {layout}. {"; ".join(problems)}')
    renamed = {}
    for published, ours in layout.names.items():
        old, new = (published, ours) if from_published else (ours, published)
        value = state[old]
        if POINTWISE.fullmatch(published):  # (out, in, 1, 1) -> (out, in), and back
            if value.shape[2:] != ((1, 1) if from_published else ()):
                layer = '1x1 convolution, (out, in, 1, 1)' if from_published else 'linear layer, (out, in)'
                raise ValueError(f'{old} has shape {tuple(value.shape)}, but it must be the weight of a {layer}')
            value = value.flatten(1) if from_published else value[..., None, None]
        renamed[new] = value
    return renamed


def _fixed_table(layout: Layout, tensors: Mapping[str, Tensor], img_size: ImageSize) -> Tensor:
    """Fixed table of published files, (1, units, C), after a row of zeros for the class token if there is one.

    Here and below ``tensors`` are those of our naming and, where it is known, the published table.
    """
    unit, units = _units(layout, tensors)
    if img_size is None and units is None:
        raise ValueError(
            f'img_size is not given, but the published {TABLES[layout.kind]} depends on the image size of '
            'pre-training, which these parameters do not tell'
        )
    size = isqrt(units) * unit if img_size is None else img_size
    height, width = (size, size) if isinstance(size, int) else size
    if min(height, width) <= 0 or height % unit or width % unit:
        raise ValueError(f'img_size is {size}, but sides must be positive multiples of {unit}')
    rows, columns = height // unit, width // unit
    if units not in (None, rows * columns):
        raise ValueError(
            f'there are positions of {units} units of {unit} px, but an image of {height}x{width} px has '
            f'{rows * columns} (img_size is {img_size}; None takes a square)'
        )
    channels = _size(tensors, 'backbone.cls_token' if layout.kind == 'lomar' else 'neck.mask_token', -1)
    table = sincos_position(rows, columns, channels).flatten(0, 1)[None]
    return F.pad(table, (0, 0, int(layout.backbone in FLAT), 0))


def _units(layout: Layout, tensors: Mapping[str, Tensor]) -> tuple[int, int | None]:
    """Side of a masked unit in pixels, and units of an image if a position embedding or the fixed table gives them."""
    class_tokens = int(layout.backbone in FLAT)
    patch = _size(tensors, 'backbone.patch_embed.projection.weight', -1)
    unit = patch if class_tokens else UNIT
    for name, side in (('backbone.pos_embed', patch), (TABLES.get(layout.kind), unit)):
        if name in tensors:
            return unit, max(_size(tensors, name, 1) - class_tokens, 0) * side**2 // unit**2
    return unit, None


def _architecture(layout: Layout, tensors: State, img_size: ImageSize) -> dict:
    """Sizes of the model for ``meta``, as far as they apply, read from a few parameters."""
    stages = [f'backbone.stages.{stage}.blocks.0.' for stage in range(NUM_STAGES)]
    blocks = ['backbone.layers.0.'] if layout.backbone in FLAT else stages

    def sizes(name: str, axis: int = 0) -> list[int]:
        return [_size(tensors, block + name, axis) for block in blocks]

    widths, hidden = sizes('ffn.layers.1.bias'), sizes('ffn.layers.0.0.bias')
    arch = dict(depths=list(layout.depths), embed_dims=widths)
    arch['mlp_ratios'] = [inner / width for inner, width in zip(hidden, widths, strict=True)]
    unit, units = _units(layout, tensors)
    if layout.backbone == 'swin':
        arch['num_heads'] = sizes('attn.position_bias.fc2.bias')
        arch['position_dims'] = sizes('attn.position_bias.fc1.bias')[0]
    elif layout.backbone == 'lomar':
        arch.update(num_heads=[widths[0] // sizes('attn.position_table', 1)[0]], patch_size=unit)
    if img_size is not None and layout.kind in TABLES:
        arch['img_size'] = img_size
    elif units and isqrt(units) ** 2 == units:
        arch['img_size'] = isqrt(units) * unit
    names = dict(decoder_embed_dims='neck.mask_token', num_classes='head.fc.bias')
    names['out_channels'] = f'neck.{"0." if layout.kind == "detector" else ""}projections.0.bias'
    arch.update({key: _size(tensors, name, -1) for key, name in names.items() if name in tensors})
    return arch | dict(decoder_depth=layout.decoder_depth) if layout.decoder_depth else arch


def _size(state: Mapping[str, Tensor], name: str, axis: int) -> int:
    """Size of one axis of a parameter."""
    shape = tuple(state[name].shape)
    if not -len(shape) <= axis < len(shape):
        raise ValueError(f'{name} has shape {shape}, which has no axis {axis}')
    return shape[axis]
