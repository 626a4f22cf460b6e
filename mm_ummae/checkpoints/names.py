"""Parameter names of the published implementation and of this package: one table, read in both directions.

The published names are facts about the files released with UM-MAE and LoMaR (arXiv 2205.10063, 2206.00790).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise
from typing import NamedTuple

from torch import Tensor

NAMINGS = ('published', 'ours')
FLAT = ('vit', 'lomar')  # backbones of one stage, with a class token
NUM_STAGES = 4  # of the other backbones
MAX_NAMED = 8  # names that an error lists before it counts the rest

# Kinds of models: backbones with which they were published, and names by which they are recognised in either naming.
# The first that fits is taken.
KINDS = {
    'um-mae': (('swin', 'pvt', 'vit'), r'decoder_(embed|blocks|norm)\.|neck\.(expand|blocks|mask_token)\b'),
    'simmim': (('swin', 'pvt'), r'decoder_pred\.|head\.pred\.'),
    'lomar': (('lomar',), r'encoder_pred\.|head\.pred\.'),
    'detector': (('swin', 'pvt'), r'(backbone\.)?up\d\.|neck\.0\.'),
    'segmentor': (('swin', 'pvt'), r'(backbone\.)?fpn\d\.|neck\.projections\.'),
    'classifier': (('swin', 'pvt', 'vit'), r'(fc_norm|neck\.norm|head|head\.fc)\.(weight|bias)'),
    'encoder': (('swin', 'pvt', 'vit', 'lomar'), r'(backbone\.)?patch_embed\.'),  # nothing but the backbone
}
# Parts of published models beside the backbone; `mask_token` is that of a decoder, of SimMIM or of LoMaR
OTHER_PARTS = re.compile(r'(decoder_|encoder_pred\.|fc_norm\.|head\.|(up|fpn)\d\.|mask_token)')
ATTENTION = r'(backbone\.)?(stages\.\d+\.)?(blocks|layers)\.\d+\.attn\.'
BACKBONES = {
    'swin': ATTENTION + r'(posmlp|position_bias)\.',
    'pvt': ATTENTION + r'(kv|sr|reduction)\.',
    'lomar': ATTENTION + r'(rpe_k|position_table)\b',
    'vit': ATTENTION + r'qkv\.',
}
# Names of other networks, whose weights are refused with a reason
STOCK = {
    'relative_position_bias_table': 'the stock Swin of mmpretrain, mmdet or timm: UMSwin is another network',
    'patch_embed1.': 'the stock PVT: UMPVT is another network',
    'attn.attn.in_proj_weight': 'the stock PVT or ViT of mmdet or mmseg',
}

# The table of names. A row is (published, ours, backbones or kinds that have it); `.*` is `.weight` and `.bias`.
Rows = Iterable[tuple[str, str, str]]
STEM: Rows = (
    ('patch_embed.proj.*', 'patch_embed.projection.*', 'swin pvt vit lomar'),
    ('patch_embed.norm.*', 'patch_embed.norm.*', 'swin'),
    ('pos_embed', 'pos_embed', 'pvt vit'),
    ('cls_token', 'cls_token', 'vit lomar'),
)
DOWNSAMPLING: Rows = (  # in the first block of a published stage, in the stage itself in ours
    ('downsample.norm.*', 'downsample.norm.*', 'swin'),
    ('downsample.proj.*', 'downsample.projection.*', 'swin pvt'),
)
BLOCK: Rows = (
    ('norm1.*', 'norm1.*', 'swin pvt'),
    ('norm1.*', 'ln1.*', 'vit lomar'),
    ('attn.qkv.*', 'attn.qkv.*', 'swin vit lomar'),
    ('attn.posmlp.0.*', 'attn.position_bias.fc1.*', 'swin'),
    ('attn.posmlp.2.*', 'attn.position_bias.fc2.*', 'swin'),
    ('attn.rpe_k.lookup_table_weight', 'attn.position_table', 'lomar'),
    ('attn.q.*', 'attn.q.*', 'pvt'),
    ('attn.kv.*', 'attn.kv.*', 'pvt'),
    ('attn.sr.*', 'attn.reduction.*', 'pvt'),
    ('attn.norm.*', 'attn.norm.*', 'pvt'),
    ('attn.proj.*', 'attn.proj.*', 'swin pvt vit lomar'),
    ('norm2.*', 'norm2.*', 'swin pvt'),
    ('norm2.*', 'ln2.*', 'vit lomar'),
    ('mlp.fc1.*', 'ffn.layers.0.0.*', 'swin pvt vit lomar'),
    ('mlp.fc2.*', 'ffn.layers.1.*', 'swin pvt vit lomar'),
)
FINAL_NORM: Rows = (('norm.*', 'norm.*', 'swin pvt'), ('norm.*', 'ln1.*', 'vit lomar'))  # in pre-training only
SECONDARY = ('vis_mask_token', 'backbone.secondary_token')  # of UM-MAE, with Secondary Masking only
PARTS: Rows = (
    ('mask_token', 'neck.mask_token', 'um-mae'),
    ('mask_token', 'backbone.mask_token', 'simmim lomar'),
    ('decoder_embed.*', 'neck.expand.*', 'um-mae'),
    ('decoder_norm.*', 'neck.norm.*', 'um-mae'),
    ('decoder_pred.*', 'head.pred.*', 'um-mae simmim'),
    ('encoder_pred.*', 'head.pred.*', 'lomar'),
    ('fc_norm.*', 'neck.norm.*', 'classifier'),
    ('head.*', 'head.fc.*', 'classifier'),
    *((f'up{stage + 1}.0.*', f'neck.0.norms.{stage}.*', 'detector') for stage in range(NUM_STAGES)),
    *((f'up{stage + 1}.1.*', f'neck.0.projections.{stage}.*', 'detector') for stage in range(NUM_STAGES)),
    *((f'fpn{stage + 1}.*', f'neck.projections.{stage}.*', 'segmentor') for stage in range(NUM_STAGES)),
)
HOST_PARTS: Rows = (  # everything under these names, as MMDetection and MMSegmentation have it
    ('neck.', 'neck.1.', 'detector'),  # the FPN follows our projections
    *((f'{part}_head.', f'{part}_head.', 'detector') for part in ('rpn', 'roi', 'bbox', 'mask')),
    *((f'{part}_head.', f'{part}_head.', 'segmentor') for part in ('decode', 'auxiliary')),
)
# Published weights of 1x1 convolutions, which are linear layers in ours
POINTWISE = re.compile(r'(backbone\.)?(blocks\.\d+\.attn\.(posmlp\.\d|sr)|fpn\d)\.weight')
# Fixed tables that only published files store: our UM-MAE decoder computes its own, and LoMaR does not use its table.
TABLES = {'um-mae': 'decoder_pos_embed', 'lomar': 'pos_embed'}


class Layout(NamedTuple):
    """Model in a state dict, as far as parameter names describe it.

    Args:
        naming (str): 'published' or 'ours'.
        kind (str): One of :data:`KINDS`.
        backbone (str): One of :data:`BACKBONES`.
        depths (tuple[int, ...]): Blocks per stage; a ViT has one stage.
        decoder_depth (int): Blocks of the decoder; 0 without one.
        names (dict[str, str]): Published name -> our name of all parameters that the model must have and of those of
            the host's parts, without the fixed table.
    """

    naming: str
    kind: str
    backbone: str
    depths: tuple[int, ...]
    decoder_depth: int
    names: dict[str, str]

    def __str__(self) -> str:
        naming = 'our' if self.naming == 'ours' else self.naming
        return f'{self.kind} with a {self.backbone} backbone in {naming} naming'


def naming_of(state: Iterable[str]) -> str:
    """Naming of a whole model, by the name of its patch embedding: 'published', 'ours', or '' for neither."""
    if any(re.match(r'(backbone\.)?patch_embed\.proj\.', name) for name in state):
        return 'published'
    return 'ours' if any(name.startswith('backbone.patch_embed.projection.') for name in state) else ''


def backbone_alone(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Parameters of the backbone in a published model whose other parts may be incomplete or of any kind."""
    if any(name.startswith('backbone.') for name in state):
        state = {name.removeprefix('backbone.'): x for name, x in state.items() if name.startswith('backbone.')}
    unused = TABLES['lomar'] if any(re.match(BACKBONES['lomar'], name) for name in state) else None
    return {name: x for name, x in state.items() if not OTHER_PARTS.match(name) and name != unused}


def recognise(state: Iterable[str]) -> Layout:
    """Recognise a whole model by its parameter names.

    Args:
        state (Iterable[str]): Names, or a state dict; whether they are complete is not checked.
    Returns:
        Layout: The model.
    Raises:
        ValueError: If the naming, kind or backbone is not recognised, or the weights are those of a stock network.
    """
    state = list(state)
    for part, network in STOCK.items():
        if any(part in name for name in state):
            raise ValueError(f'the names contain {part!r}: these are weights of {network}, and cannot be converted')
    naming = naming_of(state)
    if not naming:
        raise ValueError(
            'there is neither patch_embed.proj (published naming) nor backbone.patch_embed.projection (our naming); '
            f'the names are {some(sorted(state))}'
        )
    kinds = [kind for kind, (_, mark) in KINDS.items() if any(re.match(mark, name) for name in state)]
    backbone = next((key for key, mark in BACKBONES.items() if any(re.match(mark, name) for name in state)), 'unknown')
    kind = next((kind for kind in kinds if backbone in KINDS[kind][0]), '')
    if kind == 'encoder' and len(kinds) > 1:  # parts of a model that was not published with this backbone
        kind = ''
    if not kind:
        known = ', '.join(f'{kind} ({", ".join(backbones)})' for kind, (backbones, _) in KINDS.items())
        raise ValueError(
            f'the names are those of kind {kinds[0] if kinds else "unknown"} with backbone {backbone}, but a file must '
            f'hold a whole model of a kind (with one of its backbones): {known}; the names are {some(sorted(state))}'
        )
    depths = _depths(state, naming, backbone)
    decoder_depth = _count(state, r'(?:decoder_|neck\.)blocks\.(\d+)\.') if kind == 'um-mae' else 0
    names = dict(_names(state, naming, kind, backbone, depths, decoder_depth))
    return Layout(naming, kind, backbone, depths, decoder_depth, names)


def _names(
    state: list[str], naming: str, kind: str, backbone: str, depths: tuple[int, ...], decoder_depth: int
) -> Iterator[tuple[str, str]]:
    """The pairs (published, ours) of :attr:`Layout.names`."""
    pairs = [*_pairs(STEM, backbone, ours='backbone.')]
    number = 0  # published blocks are counted through all stages
    for stage, depth in enumerate(depths):
        for block in range(depth):
            place = f'layers.{block}.' if backbone in FLAT else f'stages.{stage}.blocks.{block}.'
            if stage and not block:
                pairs += _pairs(DOWNSAMPLING, backbone, f'blocks.{number}.', f'backbone.stages.{stage}.')
            pairs += _pairs(BLOCK, backbone, f'blocks.{number}.', f'backbone.{place}')
            number += 1
    norm = list(_pairs(FINAL_NORM, backbone, ours='backbone.'))
    if kind in ('um-mae', 'simmim', 'lomar') or (kind == 'encoder' and any(set(pair) & set(state) for pair in norm)):
        pairs += norm
    if kind in ('um-mae', 'encoder') and any(name in SECONDARY for name in state):
        pairs.append(SECONDARY)
    pairs += _pairs(PARTS, kind)
    for block in range(decoder_depth):
        pairs += _pairs(BLOCK, 'vit', f'decoder_blocks.{block}.', f'neck.blocks.{block}.')

    # Detectors and segmentors have parts of the host and `backbone.`, or are published as a backbone alone.
    parts = [row[:2] for row in HOST_PARTS if kind == row[2]]
    side = NAMINGS.index(naming)
    marks = ('backbone.patch_embed.',) if naming == 'published' else tuple(part[side] for part in parts)
    hosted = bool(parts) and any(name.startswith(marks) for name in state)
    yield from ((f'backbone.{theirs}' if hosted else theirs, ours) for theirs, ours in pairs)
    for name in state:
        for part in parts:
            if hosted and name.startswith(part[side]):
                theirs, ours = (start + name.removeprefix(part[side]) for start in part)
                yield theirs, ours


def _pairs(rows: Rows, owner: str, theirs: str = '', ours: str = '') -> Iterator[tuple[str, str]]:
    """Pairs (published, ours) of the rows that ``owner`` has, under two prefixes."""
    for published, own, owners in rows:
        if owner in owners.split():
            for end in ('weight', 'bias') if published.endswith('.*') else ('',):
                yield theirs + published.replace('*', end), ours + own.replace('*', end)


def _count(state: list[str], pattern: str) -> int:
    """One more than the largest number that ``pattern`` captures; 1 if it matches nothing."""
    count = max((int(found[1]) + 1 for name in state if (found := re.match(pattern, name))), default=1)
    if count > len(state):
        raise ValueError(f'there is a block {count - 1} ({pattern}), but there are {len(state)} parameters in all')
    return count


def _depths(state: list[str], naming: str, backbone: str) -> tuple[int, ...]:
    blocks = r'(?:backbone\.)?(?:blocks|layers)\.(\d+)\.'
    if backbone in FLAT:
        return (_count(state, blocks),)
    if naming == 'ours':
        stages = range(_count(state, r'backbone\.stages\.(\d+)\.'))
        depths = [_count(state, rf'backbone\.stages\.{stage}\.blocks\.(\d+)\.') for stage in stages]
    else:  # the first block of a stage holds its downsampling
        starts = {int(found[1]) for name in state if (found := re.match(rf'{blocks}downsample\.', name))}
        depths = [end - start for start, end in pairwise([0, *sorted(starts), _count(state, blocks)])]
    if len(depths) != NUM_STAGES or 0 in depths:
        raise ValueError(f'the stages have {depths} blocks, but a pyramid has {NUM_STAGES} stages with blocks in each')
    return tuple(depths)


def some(names: list[str]) -> str:
    """The first few names, and the number of further ones."""
    rest = f' and {len(names) - MAX_NAMED} more' if len(names) > MAX_NAMED else ''
    return ', '.join(names[:MAX_NAMED]) + rest
