"""Layouts of stock networks: names of the same weights in OpenMMLab, official code, timm, torchvision, Transformers.

Each family of networks has one table. A row is a parameter, and its columns are its names in the layouts, or None where
a layout has no such parameter:

* ``{s}`` is a stage, ``{t}`` the next, ``{f}`` and ``{g}`` 2s + 1 and 2s + 2, ``{b}`` a block, ``{l}`` the last stage;
* ``*`` is ``weight`` and ``bias``;
* ``@q``, ``@k``, ``@v`` mark a third of a fused tensor;
* ``^`` marks channels of 2x2 merged tokens in the order of MMCV's ``Unfold`` instead of concatenation, ``:`` a vector
  with two axes of length 1 behind;
* a row that begins with ``?`` is optional.

Both directions use the same rows: from a layout to the values of the rows, and on to another layout.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from math import isqrt
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .names import some

State = dict[str, Tensor]
LAYOUTS = ('openmmlab', 'official', 'timm', 'torchvision', 'transformers')
Row = tuple[str | None, ...]

ATTENTION = 'stages.{s}.blocks.{b}.attn.w_msa'
HF_ATTENTION = 'encoder.layers.{s}.blocks.{b}.attention.self'
SWIN_STEM: tuple[Row, ...] = (
    ('patch_embed.projection.*', 'patch_embed.proj.*', 'patch_embed.proj.*', 'features.0.0.*',
     'embeddings.patch_embeddings.projection.*'),
    ('?patch_embed.norm.*', 'patch_embed.norm.*', 'patch_embed.norm.*', 'features.0.2.*', 'embeddings.norm.*'),
    ('?absolute_pos_embed', 'absolute_pos_embed', None, None, None),
)  # fmt: skip
SWIN_BLOCK: tuple[Row, ...] = (
    *(
        (f'stages.{{s}}.blocks.{{b}}.{ours}.*', f'layers.{{s}}.blocks.{{b}}.{theirs}.*',
         f'layers.{{s}}.blocks.{{b}}.{theirs}.*', f'features.{{f}}.{{b}}.{vision}.*',
         f'encoder.layers.{{s}}.blocks.{{b}}.{hf}.*')
        for ours, theirs, vision, hf in (
            ('norm1', 'norm1', 'norm1', 'layernorm_before'),
            ('attn.w_msa.proj', 'attn.proj', 'attn.proj', 'attention.output.dense'),
            ('norm2', 'norm2', 'norm2', 'layernorm_after'),
            ('ffn.layers.0.0', 'mlp.fc1', 'mlp.0', 'intermediate.dense'),
            ('ffn.layers.1', 'mlp.fc2', 'mlp.3', 'output.dense'),
        )
    ),
    *(
        (f'{ATTENTION}.qkv.weight@{part[0]}', f'layers.{{s}}.blocks.{{b}}.attn.qkv.weight@{part[0]}',
         f'layers.{{s}}.blocks.{{b}}.attn.qkv.weight@{part[0]}', f'features.{{f}}.{{b}}.attn.qkv.weight@{part[0]}',
         f'{HF_ATTENTION}.{part}.weight')
        for part in ('query', 'key', 'value')
    ),
)  # fmt: skip
SWIN_END: tuple[Row, ...] = (
    ('?norm{l}.*', 'norm.*', 'norm.*', 'norm.*', 'layernorm.*'),
    ('?head.fc.*', 'head.*', 'head.fc.*', 'head.*', 'classifier.*'),
)


def _merging(openmmlab: str, part: str, unfold: str) -> Row:
    """A parameter of the patch merging between stages s and s + 1."""
    return (
        f'stages.{{{openmmlab}}}.downsample.{part}{unfold}',
        f'layers.{{s}}.downsample.{part}',
        f'layers.{{t}}.downsample.{part}',
        f'features.{{g}}.{part}',
        f'encoder.layers.{{s}}.downsample.{part}',
    )


class Family(NamedTuple):
    """Networks with one table of names.

    Attributes:
        name (str): For messages.
        rows (tuple): See the docstring of this module.
        table (bool): Whether blocks have a table of relative positions, whose index some layouts store.
    """

    name: str
    rows: tuple[Row, ...]
    table: bool = False


FAMILIES = (
    Family(
        'Swin',
        (
            *SWIN_STEM,
            *SWIN_BLOCK,
            *(
                (f'?{ATTENTION}.qkv.bias@{part[0]}', f'layers.{{s}}.blocks.{{b}}.attn.qkv.bias@{part[0]}',
                 f'layers.{{s}}.blocks.{{b}}.attn.qkv.bias@{part[0]}',
                 f'features.{{f}}.{{b}}.attn.qkv.bias@{part[0]}', f'{HF_ATTENTION}.{part}.bias')
                for part in ('query', 'key', 'value')
            ),
            *(
                (f'{ATTENTION}.{name}', f'layers.{{s}}.blocks.{{b}}.attn.{name}',
                 f'layers.{{s}}.blocks.{{b}}.attn.{name}', f'features.{{f}}.{{b}}.attn.{name}',
                 f'{HF_ATTENTION}.{name}')
                for name in ('relative_position_bias_table',)
            ),
            _merging('s', 'norm.*', '^'),
            _merging('s', 'reduction.weight', '^'),
            *SWIN_END,
        ),
        table=True,
    ),
    Family(
        'Swin V2',
        (
            *SWIN_STEM,
            *SWIN_BLOCK,
            (f'?{ATTENTION}.q_bias', 'layers.{s}.blocks.{b}.attn.q_bias', 'layers.{s}.blocks.{b}.attn.q_bias',
             'features.{f}.{b}.attn.qkv.bias@q', f'{HF_ATTENTION}.query.bias'),
            # Keys have no bias; torchvision stores zeros
            (None, None, None, 'features.{f}.{b}.attn.qkv.bias@k', None),
            (f'?{ATTENTION}.v_bias', 'layers.{s}.blocks.{b}.attn.v_bias', 'layers.{s}.blocks.{b}.attn.v_bias',
             'features.{f}.{b}.attn.qkv.bias@v', f'{HF_ATTENTION}.value.bias'),
            *(
                (f'{ATTENTION}.{name}', f'layers.{{s}}.blocks.{{b}}.attn.{name}',
                 f'layers.{{s}}.blocks.{{b}}.attn.{name}', f'features.{{f}}.{{b}}.attn.{name}',
                 f'{HF_ATTENTION}.{name.replace("cpb_mlp", "continuous_position_bias_mlp")}')
                for name in ('logit_scale', 'cpb_mlp.0.*', 'cpb_mlp.2.weight')
            ),
            ('?stages.{s}.blocks.{b}.norm3.*', 'layers.{s}.blocks.{b}.norm3.*', None, None, None),
            _merging('t', 'norm.*', ''),
            _merging('t', 'reduction.weight', '^'),
            *SWIN_END,
        ),
    ),
    Family(
        'ViT',
        (
            ('patch_embed.projection.*', 'patch_embed.proj.*', 'patch_embed.proj.*', 'conv_proj.*',
             'embeddings.patch_embeddings.projection.*'),
            ('?cls_token', 'cls_token', 'cls_token', 'class_token', 'embeddings.cls_token'),
            ('pos_embed', 'pos_embed', 'pos_embed', 'encoder.pos_embedding', 'embeddings.position_embeddings'),
            *(
                (f'layers.{{b}}.{ours}.*', f'blocks.{{b}}.{theirs}.*', f'blocks.{{b}}.{theirs}.*',
                 f'encoder.layers.encoder_layer_{{b}}.{vision}.*', f'encoder.layer.{{b}}.{hf}.*')
                for ours, theirs, vision, hf in (
                    ('ln1', 'norm1', 'ln_1', 'layernorm_before'),
                    ('attn.proj', 'attn.proj', 'self_attention.out_proj', 'attention.output.dense'),
                    ('ln2', 'norm2', 'ln_2', 'layernorm_after'),
                    ('ffn.layers.0.0', 'mlp.fc1', 'mlp.0', 'intermediate.dense'),
                    ('ffn.layers.1', 'mlp.fc2', 'mlp.3', 'output.dense'),
                )
            ),
            *(
                (f'layers.{{b}}.attn.qkv.{end}@{part[0]}', f'blocks.{{b}}.attn.qkv.{end}@{part[0]}',
                 f'blocks.{{b}}.attn.qkv.{end}@{part[0]}',
                 f'encoder.layers.encoder_layer_{{b}}.self_attention.in_proj_{end}@{part[0]}',
                 f'encoder.layer.{{b}}.attention.attention.{part}.{end}')
                for end in ('weight', 'bias')
                for part in ('query', 'key', 'value')
            ),
            ('?ln1.*', 'norm.*', 'norm.*', 'encoder.ln.*', 'layernorm.*'),
            ('?head.layers.head.*', 'head.*', 'head.*', 'heads.head.*', 'classifier.*'),
        ),
    ),
    Family(
        'ConvNeXt',
        (
            ('downsample_layers.0.0.*', 'downsample_layers.0.0.*', 'stem.0.*', 'features.0.0.*',
             'embeddings.patch_embeddings.*'),
            ('downsample_layers.0.1.*', 'downsample_layers.0.1.*', 'stem.1.*', 'features.0.1.*',
             'embeddings.layernorm.*'),
            *(
                (f'downsample_layers.{{t}}.{i}.*', f'downsample_layers.{{t}}.{i}.*', f'stages.{{t}}.downsample.{i}.*',
                 f'features.{{g}}.{i}.*', f'encoder.stages.{{t}}.downsampling_layer.{i}.*')
                for i in range(2)
            ),
            *(
                (f'stages.{{s}}.{{b}}.{ours}.*', f'stages.{{s}}.{{b}}.{official}.*',
                 f'stages.{{s}}.blocks.{{b}}.{timm}.*', f'features.{{f}}.{{b}}.block.{vision}.*',
                 f'encoder.stages.{{s}}.layers.{{b}}.{hf}.*')
                for ours, official, timm, vision, hf in (
                    ('depthwise_conv', 'dwconv', 'conv_dw', '0', 'dwconv'),
                    ('norm', 'norm', 'norm', '2', 'layernorm'),
                    ('pointwise_conv1', 'pwconv1', 'mlp.fc1', '3', 'pwconv1'),
                    ('pointwise_conv2', 'pwconv2', 'mlp.fc2', '5', 'pwconv2'),
                )
            ),
            ('?stages.{s}.{b}.gamma', 'stages.{s}.{b}.gamma', 'stages.{s}.blocks.{b}.gamma',
             'features.{f}.{b}.layer_scale:', 'encoder.stages.{s}.layers.{b}.layer_scale_parameter'),
            ('?norm{l}.*', 'norm.*', 'head.norm.*', 'classifier.0.*', 'layernorm.*'),
            ('?head.fc.*', 'head.*', 'head.fc.*', 'classifier.2.*', 'classifier.*'),
        ),
    ),
)  # fmt: skip
# Buffers of attention in windows, which are computed where a target stores them
CONSTANT = re.compile(r'\.(relative_position_index|relative_coords_table|attn_mask)$')
# These, and parts that no backbone has
LEFT_OUT = re.compile(rf'(.*\.)?(mask_token|secondary_token)|.*{CONSTANT.pattern}|pooler\..*')
WRAPPERS = ('swin.', 'swinv2.', 'vit.', 'convnext.')  # of models of Transformers with a head
OUTPUT_NORM = re.compile(r'norm\d\.(weight|bias)')  # of the outputs of a host's network
INDEX = 'relative_position_index'
THIRDS = {'q': 0, 'k': 1, 'v': 2}


# ResNet has the same names everywhere but in Transformers
RESNET = Family('ResNet', ())
RESNET_NAMES = re.compile(r'(conv1|bn1|layer[1-4]\.\d+\.(conv\d|bn\d|downsample\.[01])|(head\.)?fc)\.\w+')


class Layout(NamedTuple):
    """What the names of a state dict say.

    Attributes:
        family (Family): The table.
        name (str): One of :data:`LAYOUTS`.
        depths (tuple[int, ...]): Blocks of each stage; a ViT has one stage.
    """

    family: Family
    name: str
    depths: tuple[int, ...]

    def __str__(self) -> str:
        return f'{self.family.name} in the layout of {self.name}'


def recognise_layout(names: Iterable[str]) -> Layout:
    """Recognise a stock network by all of its names.

    Args:
        names (Iterable[str]): As :func:`unwrap` leaves them.
    Returns:
        Layout: Family, layout and depths.
    Raises:
        ValueError: If there is no layout without missing and unexpected names; those of the closest one are listed.
    """
    names = {name for name in names if not LEFT_OUT.fullmatch(name)}
    if 'layer1.0.conv1.weight' in names and all(map(RESNET_NAMES.fullmatch, names)):
        return Layout(RESNET, 'torchvision' if 'fc.weight' in names else 'openmmlab', ())
    best: tuple[int, Layout, list[str], list[str]] | None = None
    for family in FAMILIES:
        for column, layout in enumerate(LAYOUTS):
            if not (depths := _depths(names, family, column)):
                continue
            rows = list(_expand(family, column, depths))
            known = {_plain(name) for _, name, _ in rows}
            if layout == 'openmmlab':
                known |= {name for name in names if OUTPUT_NORM.fullmatch(name)}
            missing = sorted({_plain(name) for _, name, optional in rows if not optional} - names)
            unexpected = sorted(names - known)
            if best is None or len(missing) + len(unexpected) < best[0]:
                best = len(missing) + len(unexpected), Layout(family, layout, depths), missing, unexpected
    if best is None or best[0] >= len(names) / 2:
        families = ', '.join(family.name for family in FAMILIES)
        raise ValueError(
            f'the names are those of none of {families} in the layouts {", ".join(LAYOUTS)}: {some(sorted(names))}'
        )
    _, found, missing, unexpected = best
    if missing or unexpected:
        problems = [f'{kind}: {some(x)}' for kind, x in (('missing', missing), ('unexpected', unexpected)) if x]
        raise ValueError(f'the names are those of {found}, but some differ. {"; ".join(problems)}')
    return found


def unwrap(state: Mapping[str, Tensor]) -> tuple[State, list[str]]:
    """Take the network out of a model: of ours and the hosts, SimMIM's, or a model of Transformers with a head.

    Args:
        state (Mapping[str, Tensor]): By name.
    Returns:
        tuple[dict[str, Tensor], list[str]]: The network, with a classification head if there is one, and the names of
        what is left out, sorted.
    """
    if any(name.startswith('backbone.') for name in state):
        prefix, heads = 'backbone.', ('head.fc.', 'head.layers.head.')
    elif 'encoder.patch_embed.proj.weight' in state:
        prefix, heads = 'encoder.', ()
    else:
        prefix = next((wrapper for wrapper in WRAPPERS if any(name.startswith(wrapper) for name in state)), '')
        heads = ('classifier.',)
    taken = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith((prefix, *heads))}
    left_out = {name for name in state if not name.startswith((prefix, *heads))}
    for name in [name for name in taken if LEFT_OUT.fullmatch(name) and not CONSTANT.search(name)]:
        del taken[name]
        left_out.add(f'{prefix}{name}')
    return taken, sorted(left_out)


def convert_layout(state: Mapping[str, Tensor], target: str, window_size: int | None = None) -> tuple[State, list[str]]:
    """Convert the weights of a stock network to the names and values of another layout.

    Args:
        state (Mapping[str, Tensor]): As :func:`unwrap` leaves it, in any layout.
        target (str): One of :data:`LAYOUTS`.
        window_size (int, optional): Side of a window in tokens, for constants that a target stores. Default: as the
            tables or constants of the source tell.
    Returns:
        tuple[dict[str, Tensor], list[str]]: The weights, and the names of what the target has no place for, sorted.
    Raises:
        ValueError: If the source is not recognised, a shape is impossible, or the target needs ``window_size``.
    """
    source = recognise_layout(state)
    family, depths = source.family, source.depths
    if family is RESNET:
        if target == 'transformers':
            raise ValueError(f'{family.name} cannot be converted to the layout of {target}')
        head = 'head.fc.' if target == 'openmmlab' else 'fc.'
        return {re.sub(r'^(head\.)?fc\.', head, name): value for name, value in state.items()}, []
    column, goal = LAYOUTS.index(source.name), LAYOUTS.index(target)
    values: dict[tuple, Tensor] = {}
    for key, name, _ in _expand(family, column, depths):
        if _plain(name) in state:
            values[key] = _read(state[_plain(name)], name)
    converted: dict[str, dict[int, Tensor] | Tensor] = {}
    for key, name, _ in _expand(family, goal, depths):
        if key in values:
            _write(converted, name, values.pop(key))
    left_out = [_plain(name) for key, name, _ in _expand(family, column, depths) if key in values]
    result = {name: value if isinstance(value, Tensor) else _fuse(value) for name, value in converted.items()}
    if source.name == target:
        result |= {name: value for name, value in state.items() if OUTPUT_NORM.fullmatch(name)}
    elif source.name == 'openmmlab':
        left_out += [name for name in state if OUTPUT_NORM.fullmatch(name) and int(name[4]) != len(depths) - 1]
    if target != 'timm':  # which computes its constants
        result |= _constants(result, state, family, target, window_size)
    # An empty third is a bias of the keys that is zero
    dropped = [name for name in left_out if not (name.endswith('qkv.bias') and name in state)]
    return result, sorted(set(dropped))


def resize_table(table: Tensor, length: int) -> Tensor:
    """Resize a table of relative positions bicubically, as a square image: (L, heads) -> (length, heads), in float32.

    Raises:
        ValueError: If one of them is no square of an odd side.
    """
    sides = isqrt(len(table)), isqrt(length)
    if sides[0] ** 2 != len(table) or sides[1] ** 2 != length:
        raise ValueError(
            f'a table of {len(table)} relative positions cannot be resized to {length}: both must be squares'
        )
    image = table.float().T.view(1, -1, sides[0], sides[0])
    return F.interpolate(image, (sides[1], sides[1]), mode='bicubic').view(-1, length).T.to(table.dtype)


def window_index(window: int) -> Tensor:
    """Row of the table of relative positions for each pair of tokens: (window ** 2, window ** 2) int64."""
    place = torch.cartesian_prod(torch.arange(window), torch.arange(window))
    difference = place[:, None] - place + window - 1  # query minus key
    return difference[..., 0] * (2 * window - 1) + difference[..., 1]


# Tables of names


@cache
def _pattern(template: str) -> re.Pattern:
    """Names of a template, with groups ``s``, ``t``, ``f``, ``g`` and ``b``."""
    text = re.escape(_plain(template)).replace(r'\*', r'(?:weight|bias)')
    return re.compile(re.sub(r'\\\{(\w)\\\}', r'(?P<\1>\\d+)', text))


def _depths(names: set[str], family: Family, column: int) -> tuple[int, ...]:
    """Blocks of each stage, as the names of blocks say; empty if there is no block."""
    blocks: dict[int, int] = {}
    for row in family.rows:
        template = row[column]
        if template is None or '{b}' not in template:
            continue
        pattern = _pattern(template.lstrip('?'))
        for name in names:
            if found := pattern.fullmatch(name):
                groups = {key: int(value) for key, value in found.groupdict().items()}
                stage = groups.get('s', (groups.get('f', 1) - 1) // 2)
                blocks[stage] = max(blocks.get(stage, 0), groups['b'] + 1)
    return tuple(blocks.get(stage, 0) for stage in range(max(blocks) + 1)) if blocks and max(blocks) < 9 else ()


def _expand(family: Family, column: int, depths: tuple[int, ...]) -> Iterator[tuple[tuple, str, bool]]:
    """Key of each parameter, its name with marks, and whether it is optional."""
    for number, row in enumerate(family.rows):
        template = row[column]
        if template is None:
            continue
        optional = row[0] is None or row[0].startswith('?')
        template = template.lstrip('?')
        if '{b}' in template:
            places = [(stage, block) for stage, depth in enumerate(depths) for block in range(depth)]
        elif re.search(r'\{[stfg]\}', template):
            places = [(stage, 0) for stage in range(len(depths) - 1)]
        else:
            places = [(0, 0)]
        for s, b in places:
            name = template.format(s=s, t=s + 1, f=2 * s + 1, g=2 * s + 2, b=b, l=len(depths) - 1)
            for end in ('weight', 'bias') if '*' in name else ('',):
                yield (number, s, b, end), name.replace('*', end), optional


def _plain(name: str) -> str:
    """A name without marks."""
    return re.sub(r'@[qkv]|[\^:]', '', name)


# Values


def _read(value: Tensor, name: str) -> Tensor:
    """Value of a row from the tensor of a layout."""
    if third := re.search(r'@([qkv])', name):
        if value.shape[0] % 3:
            raise ValueError(f'{_plain(name)} has shape {tuple(value.shape)}, but must hold queries, keys and values')
        value = value.chunk(3)[THIRDS[third[1]]]
    if name.endswith('^'):
        # Channels (C, 2 rows, 2 columns) -> (2 columns, 2 rows, C), as the others concatenate them
        _check_merged(value, name)
        value = value.unflatten(-1, (-1, 2, 2)).movedim((-1, -2), (-3, -2)).flatten(-3)
    return value.flatten() if name.endswith(':') else value


def _write(converted: dict, name: str, value: Tensor) -> None:
    """The opposite of :func:`_read`; thirds of a fused tensor are collected."""
    if name.endswith('^'):
        _check_merged(value, name)
        value = value.unflatten(-1, (2, 2, -1)).movedim((-3, -2), (-1, -2)).flatten(-3)
    elif name.endswith(':'):
        value = value[:, None, None]
    if third := re.search(r'@([qkv])', name):
        converted.setdefault(_plain(name), {})[THIRDS[third[1]]] = value
    else:
        converted[_plain(name)] = value


def _check_merged(value: Tensor, name: str) -> None:
    if value.shape[-1] % 4:
        raise ValueError(f'{_plain(name)} has shape {tuple(value.shape)}, but must have channels of 2x2 tokens')


def _fuse(thirds: dict[int, Tensor]) -> Tensor:
    """Queries, keys and values; a bias of the keys that is not there is zero."""
    return torch.cat([thirds.get(i, torch.zeros_like(thirds[0])) for i in range(3)])


def _constants(
    result: State, state: Mapping[str, Tensor], family: Family, target: str, window_size: int | None
) -> State:
    """Constants of window attention that the target's class stores."""
    if family.table:
        tables = [name for name in result if name.endswith('relative_position_bias_table')]
        found = {}
        for name in tables:
            index = window_index((isqrt(len(result[name])) + 1) // 2)
            place = name.removesuffix('relative_position_bias_table') + INDEX
            found[place] = index.flatten() if target == 'torchvision' else index
        return found
    if family.name != 'Swin V2' or target != 'torchvision':  # the others compute them, or drop what a file has
        return {}
    index = next((value for name, value in state.items() if name.endswith(INDEX)), None)
    window = window_size or (isqrt(isqrt(index.numel())) if index is not None else None)
    if window is None:
        raise ValueError(
            'window_size is not given, but torchvision stores constants of Swin V2 that depend on it, and these '
            'weights do not tell it'
        )
    axis = torch.arange(1 - window, window) / (window - 1) * 8
    coordinates = torch.cartesian_prod(axis, axis).view(1, 2 * window - 1, 2 * window - 1, 2)
    coordinates = coordinates.sign() * (coordinates.abs() + 1).log2() / 3
    places = [name.removesuffix('logit_scale') for name in result if name.endswith('logit_scale')]
    found = {f'{place}{INDEX}': window_index(window).flatten() for place in places}
    return found | {f'{place}relative_coords_table': coordinates.clone() for place in places}
