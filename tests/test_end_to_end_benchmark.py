"""The benchmark of pre-training from files: what each run trains on, and what a report says."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from mmengine.dataset import default_collate
from torch import Tensor

from mm_ummae.analysis import end_to_end
from mm_ummae.analysis.end_to_end import benchmark_end_to_end, end_to_end_table
from mm_ummae.analysis.networks import Entry
from mm_ummae.analysis.training import TrainingStep

from .leaves import leaf
from .test_training_benchmark import STOCK, UMMAE

SMALL = dict(image_size=128, batch=2, workers=0, steps=3, pictures=4, rounds=1, warmup=0)
REPEATED = Entry('repeated', UMMAE.config, {'train_dataloader.dataset.repeats': 2})


class Record:
    """What the steps of a benchmark do, in the order in which they do it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.batches: list[Tensor] = []
        self.events: list[str] = []
        take, update = TrainingStep.take, TrainingStep.update

        def take_and_tell(step: TrainingStep, data: dict) -> None:
            take(step, data)
            self.batches.append(step.inputs)
            self.events.append('take')

        def update_and_tell(step: TrainingStep) -> None:
            update(step)
            self.events.append('step')

        monkeypatch.setattr(TrainingStep, 'take', take_and_tell)
        monkeypatch.setattr(TrainingStep, 'update', update_and_tell)


@pytest.fixture
def record(monkeypatch: pytest.MonkeyPatch) -> Record:
    return Record(monkeypatch)


@pytest.mark.parametrize('workers', [0, 1])
def test_a_run_is_so_many_steps_with_a_new_batch_each(workers: int, record: Record) -> None:
    """And beside it as many on the batch that lies there; with loader processes, too."""
    report = benchmark_end_to_end([UMMAE], **(SMALL | dict(workers=workers, rounds=2)))
    assert record.events == 2 * (3 * ['take', 'step'] + 3 * ['step'])
    assert len({round(float(batch.sum()), 3) for batch in record.batches}) == 6
    for batch in record.batches:
        assert batch.shape == (2, 3, 128, 128) and batch.dtype == torch.float32
        assert abs(batch.mean()) < 1.5 and 0.2 < batch.std() < 2  # normalised
    assert json.loads(json.dumps(report)) == report
    (network,) = report['networks']
    assert (network['name'], network['config'], network['changes']) == ('ours', UMMAE.config, {})
    for rates in (network['images_per_second'], network['compute_images_per_second']):
        assert len(rates) == 2 and min(rates) > 0
    assert report['arguments'] == dict(SMALL, workers=workers, rounds=2, quality=90) | dict(
        device='cpu', dtype='float32', compiled=False
    )
    assert report['environment']['device'] == 'cpu'


def test_files_come_in_the_same_order_of_a_seed_each_epoch_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four files in epochs of six: all of them, then two again."""
    orders = []
    original = end_to_end.build_training_set

    def tell(*args) -> Any:
        dataset = original(*args)
        prepare, order = dataset.prepare_data, []
        orders.append(order)
        dataset.prepare_data = lambda index: order.append(index) or prepare(index)
        return dataset

    monkeypatch.setattr(end_to_end, 'build_training_set', tell)
    monkeypatch.setattr(TrainingStep, '__call__', lambda step: None)
    for _ in range(2):
        benchmark_end_to_end([UMMAE], **(SMALL | dict(rounds=2)))
    first, second = orders
    assert first == second and len(first) == 12
    assert sorted(first[:4]) == sorted(first[6:10]) == [0, 1, 2, 3] and first[:6] != first[6:]


def test_networks_take_turns_each_with_its_own_pipeline(record: Record, monkeypatch: pytest.MonkeyPatch) -> None:
    """MMPretrain's SimMIM gets masks from its pipeline."""
    masks, interleaved = [], end_to_end.time_interleaved
    collate = default_collate

    def collate_and_tell(samples: list[dict]) -> dict:
        masks.append(['mask' in sample['data_samples'] for sample in samples])
        return collate(samples)

    def with_a_fixed_time(runs: dict[tuple, Callable], *args) -> dict[tuple, list[float]]:
        assert list(runs) == [(name, kind) for name in ('ours', 'stock SimMIM') for kind in ('fed', 'alone')]
        fixed = {'fed': 0.5, 'alone': 0.25}
        return {key: [fixed[key[1]]] * len(times) for key, times in interleaved(runs, *args).items()}

    monkeypatch.setattr(end_to_end, 'default_collate', collate_and_tell)
    monkeypatch.setattr(end_to_end, 'time_interleaved', with_a_fixed_time)
    report = benchmark_end_to_end([UMMAE, STOCK], **(SMALL | dict(steps=1, rounds=2, warmup=1)))
    assert record.events == 6 * ['take', 'step', 'step']
    assert masks == 3 * [[False, False], [True, True]]
    assert [network['images_per_second'] for network in report['networks']] == [[4.0, 4.0]] * 2
    assert [network['compute_images_per_second'] for network in report['networks']] == [[8.0, 8.0]] * 2


def test_samples_of_a_file_count_as_images(record: Record) -> None:
    """With two of each file a batch of four has two files."""
    benchmark_end_to_end([REPEATED], **(SMALL | dict(batch=4, steps=1)))
    assert [len(batch) for batch in record.batches] == [4]


def test_the_loader_is_the_one_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    loaders = []
    monkeypatch.setattr(end_to_end, '_run_epoch', lambda step, loader: loaders.append(loader))
    monkeypatch.setattr(end_to_end, '_run_alone', lambda *args: None)
    for workers in (0, 2):
        benchmark_end_to_end([UMMAE], **(SMALL | dict(workers=workers)))
    assert [(each.num_workers, each.persistent_workers, len(each)) for each in loaders] == [(0, False, 3), (2, True, 3)]
    assert not any(each.pin_memory for each in loaders)


def test_the_table_has_medians_and_ratios_of_rounds() -> None:
    networks = [
        dict(name='a', images_per_second=[10.0, 30.0, 20.0], compute_images_per_second=[20.0, 40.0, 80.0]),
        dict(name='b', images_per_second=[20.0, 3.0, 10.0], compute_images_per_second=[20.0, 4.0, 20.0]),
    ]
    title, _, *rows = end_to_end_table(dict(networks=networks)).splitlines()
    assert title.split(' | ')[-2:] == ['of steps alone', 'times a |']
    assert rows == [
        '| a | 20 (10 to 30) | 40 (20 to 80) | 50 % | 1.00 |',
        '| b | 10 (3 to 20) | 20 (4 to 20) | 75 % | 0.50 |',
    ]


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (dict(entries=[]), r'entries are \[\], but there must be at least one and no name twice'),
        (dict(entries=[UMMAE, UMMAE]), 'entries are .* no name twice'),
        (dict(image_size=0), 'image_size is 0, but it must be at least 1'),
        (dict(batch=0), 'batch is 0, but it must be at least 1'),
        (dict(workers=-1), 'workers is -1, but it must be at least 0'),
        (dict(steps=0), 'steps is 0, but it must be at least 1'),
        (dict(pictures=0), 'images is 0, but it must be at least 1'),
        (dict(quality=96), 'quality is 96, but it must be from 1 to 95'),
        (dict(quality=0), 'quality is 0, but'),
        (dict(device='tpu'), "device is 'tpu', but it must be cpu or cuda"),
        (dict(dtype='int8'), "dtype is 'int8', but it must be one of float32, float16, bfloat16"),
        (dict(rounds=0), 'rounds is 0, but it must be at least 1'),
        (dict(warmup=-1), 'warmup is -1, but it must be at least 0'),
    ],
)
def test_illegal_arguments_are_named_before_anything_is_built(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        benchmark_end_to_end(**(dict(entries=[Entry('none', 'no/such/config.py')]) | arguments))


def test_a_network_that_needs_labels_is_refused() -> None:
    entry = Entry('classifier', str(leaf('um-swin-test_classification_1xb16-100it_demo-128px')))
    message = 'the model of classifier is ImageClassifier, but it must be one of pre-training: the images have no lab'
    with pytest.raises(ValueError, match=message):
        benchmark_end_to_end([entry], **SMALL)


def test_a_batch_that_is_no_whole_number_of_files_is_refused() -> None:
    message = 'batch is 3, but it must be a multiple of repeats, the 2 samples of each file'
    with pytest.raises(ValueError, match=message):
        benchmark_end_to_end([REPEATED], **(SMALL | dict(batch=3)))
