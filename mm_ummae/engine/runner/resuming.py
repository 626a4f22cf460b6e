"""Place and schedule of a resumed run: what the checkpoint decides, and what the config decides.

Weights, moments and the place come from the checkpoint. Hyperparameters and schedules come from the config: where they
differ from those of the checkpoint, the schedule is computed anew up to the place of the run, as if the run had had it
from the start. What cannot be carried over exactly is refused.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from mmengine.optim import OptimWrapper, _ParamScheduler

# What a scheduler counts; all else are its settings
COUNTERS = ('last_step', '_global_step', '_last_value', 'verbose', 'optimizer')


class Place(NamedTuple):
    """Place in a run.

    Args:
        epoch (int): Finished epochs.
        iteration (int): Finished iterations.
        images (int): Images that all processes together have taken from the dataset.
    """

    epoch: int
    iteration: int
    images: int


def place_in_epochs(meta: Mapping, old: Mapping, new: Mapping) -> tuple[Place, list[str]]:
    """Place of a run that counts epochs.

    Args:
        meta (Mapping): ``epoch`` and ``iter`` of the checkpoint.
        old (Mapping): Settings of the run that wrote it, as far as they are known.
        new (Mapping): Settings of this run.
    Returns:
        tuple[Place, list[str]]: The place, and notes for the log.
    Raises:
        ValueError: If the run was stopped inside an epoch, and its place there is none in the new settings.
    """
    epoch, iteration = meta['epoch'], meta['iter']
    length = old.get('iterations_per_epoch') or (iteration // epoch if epoch and not iteration % epoch else None)
    if length is None:  # in the first epoch of a file that does not tell
        length = new['iterations_per_epoch']
    done, notes = iteration - epoch * length, []
    same_data = old.get('images', new['images']) == new['images']
    total, old_total = _batch(new), _batch(old) or _batch(new)
    if done == length:  # stopped after the last iteration of an epoch, before its end
        done = new['iterations_per_epoch']
    elif done and (not same_data or (total and done * old_total % total)):
        raise ValueError(
            f'the checkpoint was written inside an epoch, after {done} iterations of {_described(old)}, which is no '
            f'whole number of iterations of {_described(new)}: resume with the former settings, or from the '
            'checkpoint of a whole epoch (--resume epoch_N.pth)'
        )
    elif done and total:
        done = done * old_total // total
    place = Place(epoch, epoch * new['iterations_per_epoch'] + done, 0)
    if place.iteration != iteration:
        notes.append(
            f'an epoch has {new["iterations_per_epoch"]} iterations and had {length}: iteration {iteration} of the '
            f'checkpoint is iteration {place.iteration} now'
        )
    return place, notes


def place_in_iterations(meta: Mapping, old: Mapping, new: Mapping) -> tuple[Place, list[str]]:
    """Place of a run that counts iterations: the iteration is kept, whatever its batch; see :func:`place_in_epochs`."""
    images = old.get('images_seen')
    if images is None:
        images = meta['iter'] * _batch(new)
    return Place(meta['epoch'], meta['iter'], images), []


def changed_settings(old: Mapping, new: Mapping) -> list[str]:
    """Changes of the batch and of the training set, for the log.

    Raises:
        ValueError: If the optimizer is another one.
    """
    kind, old_kind = new['optimizer'], old.get('optimizer') or new['optimizer']
    if kind != old_kind:
        raise ValueError(
            f'optim_wrapper.optimizer is {kind}, but the checkpoint holds the state of {old_kind}: resume with '
            f'{old_kind}, or start from its weights with load_from in place of --resume'
        )
    notes = []
    if any(old.get(name, new[name]) != new[name] for name in ('processes', 'batch_size', 'accumulative_counts')):
        notes.append(f'{_described(new)}, before {_described(old)}; the learning rate is that of the config')
    if old.get('images', new['images']) != new['images']:
        notes.append(f'the training set has {new["images"]} images, and had {old["images"]}')
    return notes


def check_accumulation(iteration: int, place: Place, old: Mapping, new: Mapping) -> None:
    """Refuse other settings of a checkpoint whose gradients wait for an update, where they would change that update.

    Args:
        iteration (int): Finished iterations of the checkpoint.
        place (Place): Place of the run in the new settings.
        old (Mapping): Settings of the run that wrote it.
        new (Mapping): Settings of this run.
    Raises:
        ValueError: If the gradients were divided by another number of iterations, or belong to another place.
    """
    counts, old_counts = new['accumulative_counts'], old['accumulative_counts']
    if counts == old_counts and place.iteration % counts == iteration % counts:
        return
    raise ValueError(
        f'the checkpoint was written between accumulated iterations, after {iteration % old_counts} of '
        f'optim_wrapper.accumulative_counts={old_counts}: their gradients do not fit {_described(new)} at iteration '
        f'{place.iteration}. Resume with {_described(old)}, or from a checkpoint after a multiple of {old_counts} '
        'iterations'
    )


def own_groups(optimizer: OptimWrapper) -> list[dict]:
    """Hyperparameters of the parameter groups, that of ``base_lr`` included, to be compared after loading."""
    return [{key: value for key, value in group.items() if key != 'params'} for group in optimizer.param_groups]


def changed_groups(own: Sequence[dict], optimizer: OptimWrapper, scheduled: set[str]) -> list[str]:
    """Hyperparameters in which the config and the checkpoint differ, ``name: value, before value``.

    Args:
        own (Sequence[dict]): Those of the config, from :func:`own_groups`.
        optimizer (OptimWrapper): With the state of the checkpoint.
        scheduled (set[str]): Names that schedulers set; their initial values are compared instead.
    """
    changes: dict[str, None] = {}
    for mine, group in zip(own, optimizer.param_groups, strict=True):
        for key, value in mine.items():
            if key not in scheduled and key in group and group[key] != value:
                changes[f'{key} {value}, before {group[key]}'] = None
    return list(changes)


def changed_schedulers(schedulers: Sequence[_ParamScheduler], states: Sequence[Mapping]) -> list[str]:
    """Settings in which schedulers and their saved states differ, ``scheduler.name: value, before value``."""
    if len(schedulers) != len(states):
        return [f'{len(schedulers)} schedulers, before {len(states)}']
    changes = []
    for scheduler, state in zip(schedulers, states, strict=True):
        for key, value in scheduler.state_dict().items():
            if key in COUNTERS or key not in state or callable(value):
                continue
            if state[key] != value:
                # Of the values of all parameter groups the largest one speaks for itself
                now, before = (max(value), max(state[key])) if key == 'base_values' else (value, state[key])
                changes.append(f'{type(scheduler).__name__}.{key} {now}, before {before}')
    return changes


def advance(schedulers: Sequence[_ParamScheduler], place: Place, iterations_per_epoch: int) -> None:
    """Step fresh schedulers to a place of the run, in the order of MMEngine's ParamSchedulerHook.

    Args:
        schedulers (Sequence[_ParamScheduler]): Schedulers that were not stepped.
        place (Place): Where the run is.
        iterations_per_epoch (int): Iterations of an epoch; 0 if the run counts iterations.
    """
    by_iteration = [scheduler for scheduler in schedulers if not scheduler.by_epoch]
    by_epoch = [scheduler for scheduler in schedulers if scheduler.by_epoch]
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # that the optimizer took no step before: those steps were taken before
        for iteration in range(1, place.iteration + 1):
            for scheduler in by_iteration:
                scheduler.step()
            if (
                iterations_per_epoch
                and iteration % iterations_per_epoch == 0
                and iteration // iterations_per_epoch <= place.epoch
            ):
                for scheduler in by_epoch:
                    scheduler.step()


def _batch(settings: Mapping[str, Any]) -> int:
    """Images that all processes together take in an iteration; 0 if that is not known."""
    return (settings.get('processes') or 0) * (settings.get('batch_size') or 0)


def _described(settings: Mapping[str, Any]) -> str:
    return (
        f'{settings.get("processes", "?")} processes x {settings.get("batch_size", "?")} images x '
        f'{settings.get("accumulative_counts", "?")} accumulated iterations'
    )
