"""Parameter names of the published implementation and ours: one table, read in both directions.

The published names are facts about files released with UM-MAE and LoMaR (arXiv 2205.10063, 2206.00790);
docs/checkpoints.md lists both sides.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import NamedTuple

from torch import Tensor

NAMINGS = ('ours', 'published')
# What is converted, and with which backbones it exists
KINDS = {
    'um-mae': ('swin', 'pvt', 'vit'),
    'simmim': ('swin', 'pvt'),
    'lomar': ('lomar',),
    'classifier': ('swin', 'pvt', 'vit'),
    'detector': ('swin', 'pvt'),
    'segmentor': ('swin', 'pvt'),
}
NUM_STAGES = 4  # of a pyramid
MAX_NAMED = 8  # names listed one by one in an error
# Fixed tables of published files that ours make: of UM-MAE's decoder, and of LoMaR, which does not use it
TABLES = {'um-mae': 'decoder_pos_embed', 'lomar': 'pos_embed'}

# The table of names: published module, our module, shape of its weight (the bias has the first size).
# Letters are sizes. Within a stage C is its width, B the width of the stage before, F the hidden width, H the heads;
# one value in the whole model have D (decoder width), G (its hidden width), P (position MLP), K (classes), O (width
# after the projections), L (positions), U (rows of the fixed table), E (width of a head), S (side of a patch), T (its
# 3 S S values). '*' is a 1x1 convolution, linear in ours.
MLP = (('mlp.fc1', 'ffn.layers.0.0', 'F C'), ('mlp.fc2', 'ffn.layers.1', 'C F'))
QKV = (('attn.qkv', 'attn.qkv', '3C C'), ('attn.proj', 'attn.proj', 'C C'))
BLOCKS = {
    'swin': (
        ('norm1', 'norm1', 'C'),
        *QKV,
        ('attn.posmlp.0', 'attn.position_bias.fc1', 'P 2 *'),
        ('attn.posmlp.2', 'attn.position_bias.fc2', 'H P *'),
        ('norm2', 'norm2', 'C'),
        *MLP,
    ),
    'pvt': (
        ('norm1', 'norm1', 'C'),
        ('attn.q', 'attn.q', 'C C'),
        ('attn.kv', 'attn.kv', '2C C'),
        ('attn.sr', 'attn.reduction', 'C C *'),
        ('attn.norm', 'attn.norm', 'C'),
        ('attn.proj', 'attn.proj', 'C C'),
        ('norm2', 'norm2', 'C'),
        *MLP,
    ),
    'vit': (('norm1', 'ln1', 'C'), *QKV, ('norm2', 'ln2', 'C'), *MLP),
}
BLOCKS['lomar'] = BLOCKS['vit']
# Parameters in a block that are no weight or bias of a module
BLOCK_TOKENS = {'lomar': (('attn.rpe_k.lookup_table_weight', 'attn.position_table', '1 E 50'),)}
DOWNSAMPLE = {
    'swin': (('downsample.norm', 'downsample.norm', 'B'), ('downsample.proj', 'downsample.projection', 'C B 2 2')),
    'pvt': (('downsample.proj', 'downsample.projection', 'C B 2 2'),),
}
STEM = {
    'swin': (('patch_embed.proj', 'patch_embed.projection', 'C 3 4 4'), ('patch_embed.norm', 'patch_embed.norm', 'C')),
    'pvt': (('patch_embed.proj', 'patch_embed.projection', 'C 3 4 4'),),
    'vit': (('patch_embed.proj', 'patch_embed.projection', 'C 3 16 16'),),
    'lomar': (('patch_embed.proj', 'patch_embed.projection', 'C 3 S S'),),
}
# Parameters that are no weight or bias of a module
STEM_TOKENS = {
    'swin': (),
    'pvt': (('pos_embed', 'pos_embed', '1 L C'),),
    'vit': (('cls_token', 'cls_token', '1 1 C'), ('pos_embed', 'pos_embed', '1 L C')),
    'lomar': (('cls_token', 'cls_token', '1 1 C'), ('mask_token', 'mask_token', '1 1 C')),
}
# Dense models: parts of the host that keep their names, but for the FPN behind our projections
HOST_PARTS = {
    'detector': (
        ('neck.', 'neck.1.'),
        ('rpn_head.', 'rpn_head.'),
        ('roi_head.', 'roi_head.'),
        ('bbox_head.', 'bbox_head.'),
        ('mask_head.', 'mask_head.'),
    ),
    'segmentor': (('decode_head.', 'decode_head.'), ('auxiliary_head.', 'auxiliary_head.')),
}
# Names by which weights of other networks are recognised, for the error
STOCK = {
    'relative_position_bias_table': 'the stock Swin of mmpretrain, mmdet or timm: UMSwin is another network',
    'patch_embed1.': 'the stock PVT: UMPVT is another network',
    'attn.attn.in_proj_weight': 'the stock PVT or ViT of mmdet or mmseg',
}

# Names by which a kind is recognised, (published, ours); the first that fits and exists for the backbone
KIND_MARKS = {
    'um-mae': (r'decoder_(embed|blocks|norm)\.', r'neck\.(expand|blocks|mask_token)'),
    'simmim': (r'decoder_pred\.', r'head\.pred\.'),
    'lomar': (r'encoder_pred\.', r'head\.pred\.'),
    'detector': (r'(backbone\.)?up\d\.', r'neck\.0\.'),
    'segmentor': (r'(backbone\.)?fpn\d\.', r'neck\.projections\.'),
    'classifier': (r'(fc_norm|head)\.', r'(neck\.norm|head\.fc)\.'),
}
BACKBONE_MARKS = {
    'swin': (r'(backbone\.)?blocks\.\d+\.attn\.posmlp\.', r'backbone\.stages\.\d+\.blocks\.\d+\.attn\.position_bias\.'),
    'pvt': (
        r'(backbone\.)?blocks\.\d+\.attn\.(kv|sr)\.',
        r'backbone\.stages\.\d+\.blocks\.\d+\.attn\.(kv|reduction)\.',
    ),
    'lomar': (r'blocks\.\d+\.attn\.rpe_k\.', r'backbone\.layers\.\d+\.attn\.position_table$'),
    'vit': (r'blocks\.\d+\.attn\.qkv\.', r'backbone\.layers\.\d+\.attn\.qkv\.'),
}
FLAT = ('vit', 'lomar')  # one stage, with a class token


class Pair(NamedTuple):
    """One parameter under both names.

    Args:
        published (str): Published name.
        ours (str): Our name, or '' for the fixed table that ours make.
        sizes (tuple[str, ...]): Its shape in the letters of the table, each with the stage it belongs to ('C0').
        pointwise (bool): A 1x1 convolution in the published model, a linear layer in ours.
    """

    published: str
    ours: str
    sizes: tuple[str, ...]
    pointwise: bool = False

    def name(self, naming: str) -> str:
        """The name under ``naming``."""
        return self.published if naming == 'published' else self.ours

    def shape(self, naming: str) -> tuple[str, ...]:
        """The sizes under ``naming``: published 1x1 convolutions have two more axes."""
        return (*self.sizes, '1', '1') if self.pointwise and naming == 'published' else self.sizes


@dataclass(frozen=True)
class Layout:
    """What a state dict holds, as far as its names tell.

    Args:
        naming (str): 'ours' or 'published'.
        kind (str): One of :data:`KINDS`.
        backbone (str): 'swin', 'pvt', 'vit' or 'lomar'.
        depths (tuple[int, ...]): Blocks of each stage; a ViT has one stage.
        decoder_depth (int): Blocks of the decoder; 0 without one.
        secondary (bool): Has the token of Secondary Masking.
        bare (bool): Published detectors and segmentors: the backbone with its projections alone, without ``backbone.``.
    """

    naming: str
    kind: str
    backbone: str
    depths: tuple[int, ...]
    decoder_depth: int = 0
    secondary: bool = False
    bare: bool = False

    def __str__(self) -> str:
        return f'{self.kind} with a {self.backbone} backbone in {_adjective(self.naming)} naming'

    def pairs(self) -> Iterator[Pair]:
        """Every parameter of the model but those of the host's parts."""
        dense = self.kind in HOST_PARTS
        prefixes = ('backbone.' if dense and not self.bare else '', 'backbone.')
        yield from _modules(STEM[self.backbone], prefixes, 0)
        yield from _tokens(STEM_TOKENS[self.backbone], prefixes, 0)
        number = 0  # published blocks are counted through all stages
        for stage, depth in enumerate(self.depths):
            if stage:
                inside = (f'{prefixes[0]}blocks.{number}.', f'{prefixes[1]}stages.{stage}.')
                yield from _modules(DOWNSAMPLE[self.backbone], inside, stage)
            for block in range(depth):
                place = f'layers.{block}.' if self.backbone in FLAT else f'stages.{stage}.blocks.{block}.'
                inside = (f'{prefixes[0]}blocks.{number}.', prefixes[1] + place)
                yield from _modules(BLOCKS[self.backbone], inside, stage)
                yield from _tokens(BLOCK_TOKENS.get(self.backbone, ()), inside, stage)
                number += 1
        yield from self._after_backbone(prefixes[0])

    def _after_backbone(self, prefix: str) -> Iterator[Pair]:
        last = len(self.depths) - 1
        if self.kind in ('um-mae', 'simmim', 'lomar'):
            yield from _modules(
                (('norm', 'backbone.ln1' if self.backbone in FLAT else 'backbone.norm', 'C'),), stage=last
            )
        if self.kind == 'um-mae':
            if self.secondary:
                yield from _tokens((('vis_mask_token', 'backbone.secondary_token', '1 1 C'),), stage=0)
            width = 'D C' if self.backbone == 'vit' else '4D C'
            yield from _modules((('decoder_embed', 'neck.expand', width),), stage=last)
            yield from _tokens((('mask_token', 'neck.mask_token', '1 1 D'), (TABLES['um-mae'], '', '1 U D')))
            blocks = [
                (theirs, ours, sizes.replace('C', 'D').replace('F', 'G')) for theirs, ours, sizes in BLOCKS['vit']
            ]
            for block in range(self.decoder_depth):
                yield from _modules(blocks, (f'decoder_blocks.{block}.', f'neck.blocks.{block}.'))
            yield from _modules((('decoder_norm', 'neck.norm', 'D'), ('decoder_pred', 'head.pred', '768 D')))
        elif self.kind == 'simmim':
            yield from _tokens((('mask_token', 'backbone.mask_token', '1 1 C'),), stage=0)
            yield from _modules((('decoder_pred', 'head.pred', '3072 C'),), stage=last)
        elif self.kind == 'lomar':
            yield from _tokens(((TABLES['lomar'], '', '1 U C'),), stage=0)
            yield from _modules((('encoder_pred', 'head.pred', 'T C'),), stage=0)
        elif self.kind == 'classifier':
            yield from _modules((('fc_norm', 'neck.norm', 'C'), ('head', 'head.fc', 'K C')), stage=last)
        elif self.kind == 'detector':
            for i in range(NUM_STAGES):
                projection = (
                    (f'up{i + 1}.0', f'neck.0.norms.{i}', 'C'),
                    (f'up{i + 1}.1', f'neck.0.projections.{i}', 'O C'),
                )
                yield from _modules(projection, (prefix, ''), i)
        elif self.kind == 'segmentor':
            for i in range(NUM_STAGES):
                yield from _modules(((f'fpn{i + 1}', f'neck.projections.{i}', 'O C *'),), (prefix, ''), i)

    def host_name(self, name: str) -> str:
        """The other naming's name of a parameter of the host's parts (FPN, heads), or '' if it is none."""
        for parts in HOST_PARTS.get(self.kind, ()):
            own, other = parts if self.naming == 'published' else parts[::-1]
            if name.startswith(own) and not self.bare:
                return other + name.removeprefix(own)
        return ''


def _modules(
    table: Iterable[tuple[str, str, str]], prefixes: tuple[str, str] = ('', ''), stage: int = 0
) -> Iterator[Pair]:
    for theirs, ours, sizes in table:
        pointwise = sizes.endswith(' *')
        shape = _sizes(sizes.removesuffix(' *'), stage)
        yield Pair(f'{prefixes[0]}{theirs}.weight', f'{prefixes[1]}{ours}.weight', shape, pointwise)
        yield Pair(f'{prefixes[0]}{theirs}.bias', f'{prefixes[1]}{ours}.bias', shape[:1])


def _tokens(
    table: Iterable[tuple[str, str, str]], prefixes: tuple[str, str] = ('', ''), stage: int = 0
) -> Iterator[Pair]:
    for theirs, ours, sizes in table:
        yield Pair(prefixes[0] + theirs, ours and prefixes[1] + ours, _sizes(sizes, stage))


def _sizes(text: str, stage: int) -> tuple[str, ...]:
    """'3C B 2' in stage 1 -> ('3C1', 'C0', '2')."""
    return tuple(re.sub('[CFH]$', rf'\g<0>{stage}', re.sub('B$', f'C{stage - 1}', size)) for size in text.split())


def naming_of(state: Mapping[str, Tensor]) -> str:
    """Which of both namings a state dict has, by its patch embedding.

    Args:
        state (Mapping[str, Tensor]): Any state dict.
    Returns:
        str: 'published', 'ours', or '' if it is neither a whole published nor a whole model of ours.
    """
    if any(re.match(r'(backbone\.)?patch_embed\.proj\.', name) for name in state):
        return 'published'
    return 'ours' if any(name.startswith('backbone.patch_embed.projection.') for name in state) else ''


def recognise(state: Mapping[str, Tensor]) -> Layout:
    """Tell from its names what a state dict holds.

    Args:
        state (Mapping[str, Tensor]): A whole model; names are not checked here.
    Returns:
        Layout: Naming, kind, backbone and numbers of blocks.
    Raises:
        ValueError: If the naming, kind or backbone is not recognised; weights of stock networks are named.
    """
    for part, network in STOCK.items():
        if any(part in name for name in state):
            raise ValueError(f'the names hold {part!r}: these are weights of {network}, and cannot be converted')
    naming = naming_of(state)
    if not naming:
        raise ValueError(
            'there is neither patch_embed.proj (published naming) nor backbone.patch_embed.projection (ours); '
            f'the names are {some(sorted(state))}'
        )
    backbone = next(iter(_marked(BACKBONE_MARKS, naming, state)), '')
    kinds = _marked(KIND_MARKS, naming, state)
    kind = next((kind for kind in kinds if backbone in KINDS[kind]), next(iter(kinds), ''))
    if not kind or not backbone:
        found = f'the {kind or backbone} part' if kind or backbone else 'nothing'
        raise ValueError(
            f'of {_adjective(naming)} naming {found} is recognised, but a file must hold a whole model: '
            f'{", ".join(KINDS)} with a {", ".join(BLOCKS)} backbone; the names are {some(sorted(state))}'
        )
    if backbone not in KINDS[kind]:
        raise ValueError(
            f'kind {kind} with a {backbone} backbone was found, but it exists for {", ".join(KINDS[kind])}'
        )
    layout = Layout(
        naming,
        kind,
        backbone,
        _depths(state, naming, backbone),
        _count(state, r'decoder_blocks\.(\d+)\.' if naming == 'published' else r'neck\.blocks\.(\d+)\.')
        if kind == 'um-mae'
        else 0,
        secondary='vis_mask_token' in state or 'backbone.secondary_token' in state,
    )
    if kind not in HOST_PARTS:
        return layout
    inside = naming == 'ours' or any(name.startswith('backbone.patch_embed.') for name in state)
    hosted = inside and (naming == 'published' or any(layout.host_name(name) for name in state))
    return replace(layout, bare=not hosted)


def _marked(marks: Mapping[str, tuple[str, str]], naming: str, state: Mapping[str, Tensor]) -> list[str]:
    """The keys whose mark fits a name."""
    column = NAMINGS[::-1].index(naming)
    return [key for key, mark in marks.items() if any(re.match(mark[column], name) for name in state)]


def _count(state: Mapping[str, Tensor], pattern: str) -> int:
    """One more than the largest number in names that start with ``pattern``."""
    count = max((int(found[1]) + 1 for name in state if (found := re.match(pattern, name))), default=1)
    if count > len(state):
        raise ValueError(f'block {count - 1} is named ({pattern}), but there are {len(state)} parameters in all')
    return count


def _depths(state: Mapping[str, Tensor], naming: str, backbone: str) -> tuple[int, ...]:
    if backbone in FLAT:
        return (_count(state, r'blocks\.(\d+)\.' if naming == 'published' else r'backbone\.layers\.(\d+)\.'),)
    if naming == 'ours':
        stages = _count(state, r'backbone\.stages\.(\d+)\.')
        depths = [_count(state, rf'backbone\.stages\.{stage}\.blocks\.(\d+)\.') for stage in range(stages)]
    else:
        # The first block of a stage holds its downsampling
        starts = {int(m[2]) for name in state if (m := re.match(r'(backbone\.)?blocks\.(\d+)\.downsample\.', name))}
        borders = [0, *sorted(starts), _count(state, r'(?:backbone\.)?blocks\.(\d+)\.')]
        depths = [end - start for start, end in pairwise(borders)]
    if len(depths) != NUM_STAGES or 0 in depths:
        raise ValueError(f'the stages have {depths} blocks, but a pyramid has {NUM_STAGES} stages with blocks in each')
    return tuple(depths)


def some(names: list[str]) -> str:
    """The first few names, and how many more there are."""
    rest = f' and {len(names) - MAX_NAMED} more' if len(names) > MAX_NAMED else ''
    return ', '.join(names[:MAX_NAMED]) + rest


def _adjective(naming: str) -> str:
    return 'our' if naming == 'ours' else naming


def split_size(size: str) -> tuple[int, str]:
    """A size of the table as factor and letter: '3C1' -> (3, 'C1'), 'P' -> (1, 'P'), '768' -> (768, '')."""
    factor, letter = re.fullmatch(r'(\d*)([A-Z]?\d*)', size).groups()
    return int(factor or 1), letter
