"""Convert checkpoints between the published naming and ours (see checkpoint_names.py for the table).

A conversion is complete: every tensor of the source is used once, and a missing, unknown or misshapen one is an error
that names it.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from math import isqrt
from pathlib import Path

import torch.nn.functional as F
from torch import Tensor

from mm_ummae.checkpoints.files import file_hash, find_state, read_checkpoint, write_checkpoint
from mm_ummae.checkpoints.names import FLAT, NAMINGS, NUM_STAGES, TABLES, Layout, recognise, some, split_size
from mm_ummae.masking import UNIT, sincos_position
from mm_ummae.version import __version__

State = dict[str, Tensor]
RELEASED_LICENCE = 'CC BY-NC 4.0 for the released weights'
TABLE_TOLERANCE = 1e-5
PATCH = {'swin': 4, 'pvt': 4, 'vit': UNIT}  # side in pixels; LoMaR's differ and are read from the file


def convert_checkpoint(
    source: str | Path,
    target: str | Path,
    to: str | None = None,
    img_size: int | tuple[int, int] | None = None,
    licence: str | None = None,
    hash_suffix: bool = False,
) -> Path:
    """Convert a file and write a publishable one: plain tensors and a ``meta`` that says where they come from.

    Args:
        source (str | Path): Released file, or a checkpoint of ours.
        target (str | Path): File to write, at once and whole. An existing one is replaced.
        to (str, optional): 'ours' or 'published'. Default: the naming the source does not have.
        img_size (int | tuple[int, int], optional): Image size of UM-MAE or LoMaR pre-training, see :func:`to_ours` and
            :func:`to_published`. Default: as the source's meta says.
        licence (str, optional): Of the weights. Default: as the source's meta says; without one that of the released
            weights for published files, and 'not stated' for ours.
        hash_suffix (bool): Put the first 8 digits of the file's SHA-256 into its name (``-xxxxxxxx.pth``), as
            OpenMMLab does. Default False.
    Returns:
        Path: What was written. ``state_dict`` holds our naming, ``model`` the published one.
    Raises:
        FileNotFoundError: If there is no such source.
        ValueError: If an argument is illegal, or the source cannot be read or converted.
    """
    source, target = Path(source).expanduser(), Path(target).expanduser()
    if to is not None and to not in NAMINGS:
        raise ValueError(f'to is {to!r}, but it must be one of {", ".join(NAMINGS)}')
    if target.is_dir() or not target.parent.is_dir():
        raise ValueError(f'target is {target}, but it must be a file in a folder that exists')
    content = read_checkpoint(source)
    if target.exists() and target.samefile(source):
        raise ValueError(f'target is {target}, but that is the source, which must stay')
    state = find_state(content, source)
    meta = content.get('meta') if isinstance(content.get('meta'), dict) else {}
    try:
        layout = recognise(state)
        if to == layout.naming:
            raise ValueError(f'to is {to!r}, but that is its naming already')
        known = meta.get('arch') if isinstance(meta.get('arch'), dict) else {}
        img_size = img_size or known.get('img_size')
        if layout.naming == 'published':
            key, converted, default_licence = 'state_dict', to_ours(state, img_size), RELEASED_LICENCE
        else:
            key, converted, default_licence = 'model', to_published(state, img_size), 'not stated'
        arch = architecture(state, layout)
        if layout.kind in TABLES:
            arch['img_size'] = img_size or arch['img_size']
    except ValueError as error:
        raise ValueError(f'the checkpoint {source} cannot be converted. {error}') from error
    new_meta = dict(
        mm_ummae_version=__version__,
        source=source.name,
        source_sha256=file_hash(source),
        kind=layout.kind,
        backbone=layout.backbone,
        arch=arch,
        licence=licence or str(meta.get('licence') or default_licence),
    )
    return write_checkpoint({'meta': new_meta, key: converted}, target, hash_suffix)


def to_ours(state: Mapping[str, Tensor], img_size: int | tuple[int, int] | None = None) -> State:
    """Published naming -> ours.

    Args:
        state (Mapping[str, Tensor]): A whole published model.
        img_size (int | tuple[int, int], optional): Image size (height, width) of UM-MAE or LoMaR pre-training, by
            which their fixed table is checked. Default: a square.
    Returns:
        dict[str, Tensor]: The same values under our names. 1x1 convolutions become linear layers, and the fixed table
        is left out: our decoders make it, and LoMaR does not use it.
    Raises:
        ValueError: If it is not recognised, or parameters are missing, unknown or misshapen; they are named.
    """
    layout = recognise(state)
    if layout.naming == 'ours':
        raise ValueError(f'this is {layout}, there is nothing to convert')
    sizes = check(state, layout)
    if layout.kind in TABLES:
        _check_table(TABLES[layout.kind], state[TABLES[layout.kind]], _table(layout, sizes, img_size))
    return _renamed(state, layout)


def to_published(state: Mapping[str, Tensor], img_size: int | tuple[int, int] | None = None) -> State:
    """Our naming -> published.

    Args:
        state (Mapping[str, Tensor]): A whole model of ours.
        img_size (int | tuple[int, int], optional): Image size (height, width) of UM-MAE or LoMaR pre-training, for the
            fixed table. Needed for Swin and LoMaR; PVT and ViT have a position embedding that tells it, of square
            images.
    Returns:
        dict[str, Tensor]: The same values under published names, and the fixed table.
    Raises:
        ValueError: If it is not recognised, or parameters are missing, unknown or misshapen; they are named. Or if
            ``img_size`` is needed, or contradicts the position embedding.
    """
    layout = recognise(state)
    if layout.naming == 'published':
        raise ValueError(f'this is {layout}, there is nothing to convert')
    sizes = check(state, layout)
    published = _renamed(state, layout)
    if layout.kind in TABLES:
        published[TABLES[layout.kind]] = _table(layout, sizes, img_size)
    return published


def check(state: Mapping[str, Tensor], layout: Layout) -> dict[str, int]:
    """Compare names and shapes with those of the table.

    Args:
        state (Mapping[str, Tensor]): A whole model.
        layout (Layout): What it was recognised as.
    Returns:
        dict[str, int]: The sizes behind the table's letters, such as ``C0`` for the width of stage 0.
    Raises:
        ValueError: If parameters are missing, unknown or misshapen; they are named.
    """
    expected = {pair.name(layout.naming): pair.shape(layout.naming) for pair in layout.pairs()}
    expected.pop('', None)
    sizes = _measure(state, expected)
    shapes = {name: tuple(_value(size, sizes) for size in shape) for name, shape in expected.items()}
    kinds = {
        'missing': [name for name in expected if name not in state],
        'unknown': sorted(name for name in state if name not in expected and not layout.host_name(name)),
        'other shape': [
            f'{name} {tuple(state[name].shape)} instead of {shape}'.replace("'", '')
            for name, shape in shapes.items()
            if name in state and tuple(state[name].shape) != shape
        ],
    }
    problems = '; '.join(f'{kind}: {some(names)}' for kind, names in kinds.items() if names)
    widths = [sizes.get(f'C{i}', 0) for i in range(len(layout.depths))]
    if not problems and layout.backbone == 'swin' and widths != [widths[0] * 2**i for i in range(NUM_STAGES)]:
        problems = f'the widths of the stages are {widths}, but each must be twice that of the stage before'
    if not problems and layout.kind == 'lomar':
        if sizes['T'] != 3 * sizes['S'] ** 2:
            problems = f'{sizes["T"]} pixels are predicted, but a patch of {sizes["S"]} px has 3 x {sizes["S"]}²'
        elif sizes['C0'] % sizes['E']:
            problems = f'the tables are for heads of {sizes["E"]} channels, which do not divide the width {sizes["C0"]}'
    if problems:
        raise ValueError(f'This is {layout}. {problems}')
    return sizes


def architecture(state: Mapping[str, Tensor], layout: Layout) -> dict:
    """Sizes that can be read from a model.

    Args:
        state (Mapping[str, Tensor]): A whole model.
        layout (Layout): What it was recognised as.
    Returns:
        dict: ``depths`` and ``embed_dims`` of the backbone and, as far as they apply, ``num_heads``, ``position_dims``,
        ``mlp_ratios``, ``patch_size``, ``img_size``, ``decoder_embed_dims``, ``decoder_depth``, ``num_classes``,
        ``out_channels``.
    Raises:
        ValueError: See :func:`check`.
    """
    sizes = check(state, layout)
    stages = range(len(layout.depths))
    arch = dict(depths=list(layout.depths), embed_dims=[sizes[f'C{i}'] for i in stages])
    if layout.backbone == 'swin':
        arch.update(num_heads=[sizes[f'H{i}'] for i in stages], position_dims=sizes['P'])
    arch.update(mlp_ratios=[sizes[f'F{i}'] / sizes[f'C{i}'] for i in stages])
    if layout.backbone == 'lomar':
        arch.update(num_heads=[sizes['C0'] // sizes['E']], patch_size=sizes['S'])
    unit, token = _unit_and_patch(layout, sizes)
    for letter, pixels in (('L', token), ('U', unit)):
        if letter in sizes and 'img_size' not in arch:
            positions = sizes[letter] - (layout.backbone in FLAT)
            side = isqrt(positions)
            arch['img_size'] = side * pixels if side**2 == positions else None  # not a square
    names = dict(D='decoder_embed_dims', K='num_classes', O='out_channels')
    arch.update({names[letter]: sizes[letter] for letter in names if letter in sizes})
    return arch | dict(decoder_depth=layout.decoder_depth) if layout.decoder_depth else arch


def _renamed(state: Mapping[str, Tensor], layout: Layout) -> State:
    other = NAMINGS[1 - NAMINGS.index(layout.naming)]
    renamed = {}
    for pair in layout.pairs():
        if not pair.ours:
            continue
        value = state[pair.name(layout.naming)]
        if pair.pointwise:  # (out, in, 1, 1) <-> (out, in)
            value = value.flatten(1) if other == 'ours' else value[..., None, None]
        renamed[pair.name(other)] = value
    return renamed | {layout.host_name(name): value for name, value in state.items() if layout.host_name(name)}


def _measure(state: Mapping[str, Tensor], shapes: Mapping[str, tuple[str, ...]]) -> dict[str, int]:
    """The value of each letter that most tensors agree on, so that an error names the odd one."""
    votes = defaultdict(Counter)
    for name, shape in shapes.items():
        found = tuple(state[name].shape) if name in state else ()
        for size, value in zip(shape, found, strict=False) if len(found) == len(shape) else ():
            factor, letter = split_size(size)
            if letter and value % factor == 0:
                votes[letter][value // factor] += 1
    return {letter: counter.most_common(1)[0][0] for letter, counter in votes.items()}


def _value(size: str, sizes: Mapping[str, int]) -> int | str:
    factor, letter = split_size(size)
    return factor if not letter else factor * sizes[letter] if letter in sizes else size


def _unit_and_patch(layout: Layout, sizes: Mapping[str, int]) -> tuple[int, int]:
    """Sides in pixels of what is masked and of what is a token."""
    return (sizes['S'], sizes['S']) if layout.backbone == 'lomar' else (UNIT, PATCH[layout.backbone])


def _units(layout: Layout, sizes: Mapping[str, int], img_size: int | tuple[int, int] | None) -> tuple[int, int]:
    """Rows and columns of units of pre-training images: of ``img_size`` or a square, checked against what there is."""
    class_token = int(layout.backbone in FLAT)
    unit, patch = _unit_and_patch(layout, sizes)
    tokens = (unit // patch) ** 2  # in a unit
    if img_size is not None:
        height, width = (img_size, img_size) if isinstance(img_size, int) else img_size
        if min(height, width) <= 0 or height % unit or width % unit:
            raise ValueError(f'img_size is {img_size}, but sides must be positive multiples of {unit}')
        rows, columns = height // unit, width // unit
    elif 'L' in sizes or 'U' in sizes:
        units = (sizes['L'] - class_token) // tokens if 'L' in sizes else sizes['U'] - class_token
        rows = columns = isqrt(max(units, 0))
    else:
        raise ValueError(
            f'img_size is not given, but the published {TABLES[layout.kind]} depends on the image size of '
            'pre-training, which these parameters do not tell'
        )
    expected = (
        ('L', 'pos_embed', rows * columns * tokens + class_token),
        ('U', TABLES[layout.kind], rows * columns + class_token),
    )
    for letter, name, number in expected:
        if sizes.get(letter, number) != number:
            raise ValueError(
                f'{name} has {sizes[letter]} positions, but an image of {rows * unit}x{columns * unit} px has {number} '
                f'(img_size is {img_size}; None takes a square)'
            )
    return rows, columns


def _table(layout: Layout, sizes: Mapping[str, int], img_size: int | tuple[int, int] | None) -> Tensor:
    """The published fixed table: (1, units, D), with a row of zeros for the class token before if there is one."""
    width = sizes['C0' if layout.backbone == 'lomar' else 'D']
    table = sincos_position(*_units(layout, sizes, img_size), width).flatten(0, 1)[None]
    return F.pad(table, (0, 0, 1, 0)) if layout.backbone in FLAT else table


def _check_table(name: str, table: Tensor, ours: Tensor) -> None:
    deviation = (table.float().cpu() - ours).abs().max().item()
    if not deviation <= TABLE_TOLERANCE:  # NaN too
        raise ValueError(
            f'{name} differs by {deviation:.1e} from the fixed sine-cosine table, but at most {TABLE_TOLERANCE} is '
            'rounding: it cannot be left out'
        )
