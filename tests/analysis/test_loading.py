"""Throughput of data pipelines, and of training that a data loader feeds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from torch import Tensor

from mm_ummae.analysis import Settings, loading, measure_loading, measure_training
from mm_ummae.analysis.loading import build_loader
from mm_ummae.analysis.step import TrainingStep
from mm_ummae.datasets import PretrainImages
from tests.configs.leaves import config, leaf

LEAVES = dict(
    ummae='ummae_swin-test_1xb16-coslr-20e_demo-128px',
    classifier='um-swin-test_classification_1xb8-200it_demo-128px',
    detector='mask-rcnn_um-swin-test_1xb4-400it_demo-128px',
)
ONE_ROUND = Settings(rounds=1, warmup=0)


@pytest.fixture
def read(demo_data: Path) -> Any:
    """Reads a demo config with the data of the tests in place of data/demo."""

    def read(kind: str, **options: Any) -> Config:
        cfg = config(leaf(LEAVES[kind]))
        dataset = cfg.train_dataloader.dataset
        dataset.data_root = dataset.data_root.replace('data/demo', str(demo_data))
        dataset.update(options)
        return cfg

    return read


def test_a_loader_uses_dataset_pipeline_and_collate_function_of_the_config(read: Any) -> None:
    cfg = read('ummae')
    before = cfg.pretty_text
    loader = build_loader(cfg, batch=3, batches=7)
    assert cfg.pretty_text == before
    assert type(loader.dataset) is PretrainImages
    shapes = [tuple(data['inputs'].shape) for data in loader]
    assert shapes == [(3, 3, 128, 128)] * 7, 'more batches than files'
    detector = build_loader(read('detector'), batch=2, batches=1)
    (data,) = detector
    assert isinstance(data['inputs'], list) and len(data['data_samples'][0].gt_instances) > 0


def test_a_config_without_training_data_is_refused() -> None:
    cfg = config(leaf(LEAVES['ummae']))
    cfg.pop('train_dataloader')
    with pytest.raises(ValueError, match=r'the config .*px\.py has no train_dataloader, but its pipeline is what'):
        build_loader(cfg, 1, 1)


class Recorder:
    """Batches of collate functions, with the threads and the order in which they came."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.inputs: list[Tensor] = []
        self.threads: set[tuple[int, int]] = set()
        original = loading.FUNCTIONS.get

        def get(name: str) -> Any:
            collate = original(name)

            def record(samples: list) -> dict:
                data = collate(samples)
                self.inputs.append(data['inputs'])
                self.threads.add((torch.get_num_threads(), cv2.getNumThreads()))
                return data

            return record

        monkeypatch.setattr(loading.FUNCTIONS, 'get', get)


def test_every_run_loads_the_same_images_on_one_thread_and_leaves_no_trace(
    read: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = Recorder(monkeypatch)
    before, state = (torch.get_num_threads(), cv2.getNumThreads()), np.random.get_state()[1].tolist()
    (row,) = measure_loading(dict(a=read('ummae')), 4, 2, Settings(rounds=2, warmup=1))
    assert recorder.threads == {(1, 1)} and len(recorder.inputs) == 3 * 2
    assert torch.equal(recorder.inputs[0], recorder.inputs[2]) and torch.equal(recorder.inputs[1], recorder.inputs[3])
    assert not torch.equal(recorder.inputs[0], recorder.inputs[1])
    assert (torch.get_num_threads(), cv2.getNumThreads()) == before
    assert np.random.get_state()[1].tolist() == state
    assert row['pipeline'] == ['LoadCompleteImage', 'TorchRandomResizedCrop', 'PackInputs']
    assert len(row['images_per_second']) == 2 and min(row['images_per_second']) > 0


def test_every_sample_of_a_file_counts(read: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Settings, 'time', lambda settings, runs: {name: [0.5] for name in runs})
    configs = dict(once=read('ummae'), four=read('ummae', repeats=4))
    rows = measure_loading(configs, 4, 2, beside=dict(decoding=int))
    assert {row['name']: row['images_per_second'] for row in rows} == dict(once=[16.0], four=[64.0], decoding=[16.0])
    assert json.loads(json.dumps(rows)) == rows


# Training


@pytest.mark.parametrize(('kind', 'workers'), [('ummae', 0), ('ummae', 1), ('classifier', 0), ('detector', 0)])
def test_a_run_has_new_batches_with_a_loader_and_one_without(
    kind: str, workers: int, read: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In turn, with the loader's labels or boxes; in worker processes too."""
    events: list[str] = []
    take, update = TrainingStep.take, TrainingStep.update
    monkeypatch.setattr(TrainingStep, 'take', lambda step, data: events.append('take') or take(step, data))
    monkeypatch.setattr(TrainingStep, 'update', lambda step: events.append('step') or update(step))
    (row,) = measure_training({kind: read(kind)}, 2, ONE_ROUND, workers=workers, steps=2)
    assert events == ['take', *2 * ['take', 'step'], *2 * ['step']]
    for key in ('images_per_second', 'images_per_second_without_loader'):
        assert len(row[key]) == 1 and min(row[key]) > 0


def test_throughput_of_training_counts_samples(read: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = dict(loader=[0.5], none=[0.25])
    monkeypatch.setattr(Settings, 'time', lambda settings, runs: {(name, kind): seconds[kind] for name, kind in runs})
    (row,) = measure_training(dict(a=read('ummae', repeats=2)), 2, workers=0, steps=3)
    assert row == dict(name='a', images_per_second=[24.0], images_per_second_without_loader=[48.0])


@pytest.mark.parametrize(
    ('measure', 'options', 'message'),
    [
        (measure_loading, dict(configs={}), 'configs is 0, but it must be at least 1'),
        (measure_loading, dict(batches=0), 'batches is 0, but it must be at least 1'),
        (measure_training, dict(batch=0), 'batch is 0, but it must be at least 1'),
        (measure_training, dict(steps=0), 'steps is 0, but it must be at least 1'),
        (measure_training, dict(workers=-1), 'workers is -1, but it must be at least 0'),
    ],
)
def test_illegal_arguments_are_named(measure: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        measure(**(dict(configs=dict(a=None)) | options))
