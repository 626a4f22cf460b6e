"""Check of ``num_classes`` of all heads of a classifier, detector or segmentor against the classes of its data."""

from __future__ import annotations

import re
from collections.abc import Collection

from torch import nn

# Heads whose outputs are the classes of the data, by their names in models of MMPretrain, MMDetection and
# MMSegmentation; there may be a list of them, and a detector may be a part of the model (teacher and student). Of RPNs,
# ``num_classes`` counts objects as such; that of semantic heads belongs to label maps.
HEADS = re.compile(r'(.*\.)?(bbox|mask|mask_iou|point|segm|decode|auxiliary)_head(\.\d+)*|head')
SEMANTIC = re.compile(r'(.*\.)?semantic_head')
OTHER_TARGETS = ('STDCHead',)  # classes that learn something else: edges


def class_counts(model: nn.Module) -> dict[str, int]:
    """``num_classes`` of the heads of a model, and of the data preprocessor of a classifier, where they are set.

    Args:
        model (nn.Module): A model of a host.
    Returns:
        dict[str, int]: By the names of the parts, such as ``roi_head.bbox_head.0``.
    """
    counts = {}
    for name, part in model.named_modules():
        preprocessor = name == 'data_preprocessor'
        if preprocessor or (HEADS.fullmatch(name) and type(part).__name__ not in OTHER_TARGETS):
            number = getattr(part, 'num_classes', None)
            # A mask for all classes needs none; no number is set where the loss does not need it
            if isinstance(number, int) and number > 0 and not getattr(part, 'class_agnostic', False):
                counts[name] = number
    return counts


def find_mismatch(model: nn.Module, classes: Collection[str]) -> str | None:
    """Compare the heads, which need an output for each class and no others, with the classes of a data set.

    Args:
        model (nn.Module): A model of a host.
        classes (Collection[str]): Classes of the data set.
    Returns:
        str | None: The heads, both numbers and the options to set; None if they fit.
    """
    number = len(classes)
    wrong = {name: count for name, count in class_counts(model).items() if count != number}
    if not wrong:
        return None
    found = ', '.join(f'model.{name}.num_classes={count}' for name, count in wrong.items())
    options = ' '.join(f'model.{name}.num_classes={number}' for name in wrong)
    consequence = 'labels have no output' if min(wrong.values()) < number else 'outputs have no label'
    return f'{found}: some {consequence}. Set {options}, or correct the classes of the data set (metainfo)'


def semantic_classes(model: nn.Module) -> tuple[int, int] | None:
    """Number of classes and the ignored value of the head that learns from a detector's label maps; None without."""
    for name, part in model.named_modules():
        if SEMANTIC.fullmatch(name) and isinstance(getattr(part, 'num_classes', None), int):
            return part.num_classes, ignored_value(part)
    return None


def ignored_value(head: nn.Module) -> int:
    """Value of the pixels that a head of label maps ignores."""
    for owner in (head, getattr(head, 'criterion', None), getattr(head, 'loss_seg', None)):
        value = getattr(owner, 'ignore_index', None)
        if isinstance(value, int):
            return value
    return 255
