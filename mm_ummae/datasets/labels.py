"""Check of the labels of a data set before its first sample is loaded, in one place for the data of all hosts.

Annotation files are checked before the data set is built from them, because hosts fail there with errors that name
neither file nor annotation; the number of classes and the label maps after that.
"""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from mmengine import fileio
from mmengine.dist import broadcast_object_list, is_main_process
from mmengine.logging import print_log
from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.registry import DATASETS as MMENGINE_DATASETS
from torch import nn

from mm_ummae.models.class_counts import class_counts, find_mismatch, ignored_value, semantic_classes

from .coco_annotations import Use, check_coco
from .damaged import DataError, name_some
from .label_maps import Values, check_maps, map_loaders, watch
from .sampling import evenly_spaced

NUM_MAPS = 200  # label maps that are loaded at the start: two seconds, and enough for what concerns a whole set
NUM_RECORDS = 100_000  # records of classification whose labels are compared
# Where the methods of a data set that reads COCO's format by the rules of MMDetection are defined
COCO_METHODS = dict(
    load_data_list=('mmdet.datasets.coco', 'mm_ummae.detection.coco_stuff'),
    parse_data_info=('mmdet.datasets.coco',),
    filter_data=('mmdet.datasets.coco',),
)
OPT_OUT = 'check_labels=False in the config or the options leaves this check out'


def check_annotation_files(dataset: Any) -> None:
    """Check the annotation files of detection data before they are built.

    The main process reads the files and all processes raise together, so every process has to call this.

    Args:
        dataset (Any): Data set of any host or its config, also inside wrappers.
    Raises:
        DataError: On all processes; see :func:`~mm_ummae.datasets.coco_annotations.check_coco`.
    """
    _together(lambda: [_check_file(leaf) for leaf in _leaves(dataset)])


def check_labels(dataset: Any, model: nn.Module, num_maps: int = NUM_MAPS) -> None:
    """Check the classes of a data set against the heads of the model, and its label maps.

    All label maps are looked up, ``num_maps`` of them are loaded, and the others are checked by a transform behind
    ``LoadAnnotations`` when they are. The main process reads, and all processes raise together.

    Args:
        dataset (Any): Data set of any host, also inside wrappers.
        model (nn.Module): Model that is trained or tested, also inside wrappers.
        num_maps (int): Label maps to load, spread evenly over the data set. Default 200.
    Raises:
        DataError: On all processes.
    """
    while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
        model = model.module
    leaves = list(_leaves(dataset))
    _together(lambda: [_check_leaf(leaf, model, num_maps) for leaf in leaves])
    for leaf in leaves:
        values = _values(leaf, model)
        if values is not None:
            watch(leaf.pipeline, values)


def _leaves(dataset: Any, scope: str | None = None) -> Iterator[Any]:
    """Data sets inside wrappers, which all hosts call ``dataset`` or ``datasets``; of configs those of COCO files."""
    if isinstance(dataset, dict):
        scope = dataset.get('_scope_', scope)
        inner = [dataset['dataset']] if 'dataset' in dataset else dataset.get('datasets')
    else:
        inner = [dataset.dataset] if hasattr(dataset, 'dataset') else getattr(dataset, 'datasets', None)
    if inner is not None:
        for each in inner:
            yield from _leaves(each, scope)
        return
    leaf = _without_data(dataset, scope) if isinstance(dataset, dict) else dataset
    if leaf is not None:
        yield leaf


def _without_data(config: dict, scope: str | None) -> Any:
    """A data set of COCO's format that has read nothing: its paths and classes as the host understands them."""
    try:
        with MMENGINE_DATASETS.switch_scope_and_registry(scope) as registry:
            kind = config['type']
            kind = registry.get(kind) if isinstance(kind, str) else kind
            return registry.build(copy.deepcopy(dict(config, lazy_init=True))) if _is_coco(kind) else None
    except Exception:  # what is wrong with the config is said where the data set is built
        return None


def _is_coco(kind: type) -> bool:
    return all(getattr(getattr(kind, name, None), '__module__', '') in places for name, places in COCO_METHODS.items())


def _check_file(leaf: Any) -> None:
    if not _is_coco(type(leaf)) or not fileio.exists(leaf.ann_file, backend_args=leaf.backend_args):
        return  # a missing file is an error of the host that names it
    filters = leaf.filter_cfg or {}
    use = Use(
        classes=tuple(leaf.metainfo['classes']),
        training=not leaf.test_mode,
        masks=any(_loads_masks(step) for step in leaf.pipeline.transforms),
        filter_empty=filters.get('filter_empty_gt', False),
        min_size=filters.get('min_size', 0),
    )
    report = check_coco(leaf.ann_file, _read_json(leaf), use)
    _log(f'{leaf.ann_file}: {report}')
    for warning in report.warnings:
        _log(warning, logging.WARNING)


def _loads_masks(step: Any) -> bool:
    """Whether a transform, or one inside it, loads masks."""
    inner = [each for routine in getattr(step, 'subroutines', ()) for each in routine.transforms]
    return bool(getattr(step, 'with_mask', False)) or any(_loads_masks(each) for each in inner)


def _read_json(leaf: Any) -> Any:
    with fileio.get_local_path(leaf.ann_file, backend_args=leaf.backend_args) as path:
        try:
            with open(path, encoding='utf-8') as file:
                return json.load(file)
        except ValueError as error:  # of characters, too
            raise DataError(
                f'the annotation file {leaf.ann_file} is no JSON ({error}): copy or write it again'
            ) from error


def _check_leaf(leaf: Any, model: nn.Module, num_maps: int) -> None:
    name, classes = f'{type(leaf).__name__} of {_source(leaf)}', _classes(leaf)
    # Data sets for models that read the names of classes have no labels to count
    if classes and not getattr(leaf, 'return_classes', False):
        problem = find_mismatch(model, classes)
        if problem:
            raise DataError(f'{name} has {len(classes)} classes ({name_some(classes)}), but {problem}')
        if class_counts(model):
            _log(f'{name}: {len(leaf)} images of {len(classes)} classes, as the heads have')
    if not classes or getattr(leaf, 'ann_file', ''):
        _check_indices(leaf, model, name)
    values = _values(leaf, model)
    if values is not None:
        steps, place = next(map_loaders(leaf.pipeline))
        line, warnings = check_maps(leaf, steps[place], values, num_maps)
        _log(f'{name}: {line}')
        for warning in warnings:
            _log(f'{name}: {warning}', logging.WARNING)


def _classes(leaf: Any) -> tuple[str, ...]:
    """Classes with an output of a head each: all, or the things of panoptic data. Empty if they are not known."""
    metainfo = getattr(leaf, 'metainfo', None) or {}
    return tuple(metainfo.get('thing_classes') or metainfo.get('classes') or ())


def _source(leaf: Any) -> str:
    """The file or folder that the labels of a data set come from."""
    if getattr(leaf, 'ann_file', ''):
        return leaf.ann_file
    folders = getattr(leaf, 'data_prefix', None) or {}
    return next((str(folders[key]) for key in ('seg_map_path', 'img_path', 'img') if folders.get(key)), 'its folder')


def _check_indices(leaf: Any, model: nn.Module, name: str) -> None:
    """Compare the labels of classification, which a list of files may give without the names of classes."""
    counts = class_counts(model)
    if not counts or not hasattr(leaf, 'get_data_info') or not len(leaf) or 'gt_label' not in leaf.get_data_info(0):
        return
    highest, bad = min(counts.values()) - 1, []
    for index in evenly_spaced(range(len(leaf)), NUM_RECORDS):
        record = leaf.get_data_info(index)
        labels = np.atleast_1d(record['gt_label'])
        if labels.size and (labels.min() < 0 or labels.max() > highest):
            bad.append(f'{record.get("img_path", index)} ({labels.min() if labels.min() < 0 else labels.max()})')
    if bad:
        part = min(counts, key=counts.get)
        raise DataError(
            f'{name}: {len(bad)} labels are below 0 or above {highest}, the last output of '
            f'model.{part}.num_classes={highest + 1}: {name_some(bad)}. Number the classes from 0, or raise '
            + ' '.join(f'model.{part}.num_classes' for part in counts)
        )


def _values(leaf: Any, model: nn.Module) -> Values | None:
    """Values that the label maps of a data set may have; None if it loads none, or no head learns from them."""
    if not hasattr(leaf, 'get_data_info') or next(map_loaders(getattr(leaf, 'pipeline', None)), None) is None:
        return None
    semantic = semantic_classes(model)
    if semantic is not None:
        return Values(*semantic)
    name = next((name for name in class_counts(model) if name.startswith('decode_head')), None)
    if name is None:
        return None
    head = model.get_submodule(name)
    return Values(len(_classes(leaf)) or head.num_classes, ignored_value(head))


def _together(check: Callable[[], Any]) -> None:
    """Check on the main process, and raise on all: the others would wait for it forever."""
    answer: list[str | None] = [None]
    cause = None
    if is_main_process():
        try:
            check()
        except DataError as error:
            answer[0], cause = f'{error}. {OPT_OUT}', error
        except Exception as error:  # of storage, and of data sets that differ from those of the hosts
            answer[0], cause = f'the labels cannot be checked ({type(error).__name__}: {error}). {OPT_OUT}', error
    broadcast_object_list(answer)
    if answer[0] is not None:
        raise DataError(answer[0]) from cause


def _log(message: str, level: int = logging.INFO) -> None:
    print_log(message, logger='current', level=level)
