"""The benchmark of loading: what it runs, on what, and what it makes of the times."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmpretrain.datasets import CustomDataset
from PIL import Image

from mm_ummae.analysis import loading, read_config
from mm_ummae.analysis.loading import MMPRETRAIN_MAE, PICTURE_SIZE, benchmark_loading, build_training_set, loading_table, write_images
from mm_ummae.datasets import PretrainImages

from .leaves import leaf

OURS = str(leaf('ummae_swin-tiny_8xb128x4-amp-coslr-200e_in1k-256px'))


@pytest.fixture(scope='module')
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp('pictures')
    write_images(folder, 3, 90)
    return folder


# Images


def test_pictures_are_the_same_again_and_like_photographs(folder: Path, tmp_path: Path) -> None:
    paths = write_images(tmp_path / 'again', 3, 90)
    before = sorted(folder.rglob('*.JPEG'))
    assert [path.read_bytes() for path in paths] == [path.read_bytes() for path in before]
    assert len({path.read_bytes() for path in paths}) == 3
    for path in paths:
        with Image.open(path) as picture:
            assert (picture.size, picture.mode) == (PICTURE_SIZE, 'RGB')
            assert [tuple(layer[1:3]) for layer in picture.layer] == [(2, 2), (1, 1), (1, 1)], 'not 4:2:0'
            pixels = np.asarray(picture, dtype=float)
        # More than half of the contrast is in what is larger than 20 px, but not all
        means = cv2.resize(pixels, (25, 19), interpolation=cv2.INTER_AREA)
        assert 25 < pixels.std() < 100 and 0.5 < means.std() / pixels.std() < 0.98
        assert 30_000 < path.stat().st_size < 150_000


def test_a_better_quality_needs_more_bytes(folder: Path, tmp_path: Path) -> None:
    low = write_images(tmp_path / 'low', 3, 75)
    high = sorted(folder.rglob('*.JPEG'))
    for first, second in zip(low, high, strict=True):
        assert 1.3 * first.stat().st_size < second.stat().st_size


# Data sets


def test_our_config_keeps_its_data_set_and_mmpretrain_gets_one_without_labels(folder: Path) -> None:
    ours = build_training_set(read_config(OURS), folder, 96)
    theirs = build_training_set(read_config(MMPRETRAIN_MAE), folder, 96)
    assert type(ours) is PretrainImages and type(theirs) is CustomDataset
    for dataset, steps in (
        (ours, ['LoadCompleteImage', 'TorchRandomResizedCrop', 'PackInputs']),
        (theirs, ['LoadImageFromFile', 'RandomResizedCrop', 'RandomFlip', 'PackInputs']),
    ):
        assert [type(step).__name__ for step in dataset.pipeline.transforms] == steps
        assert len(dataset) == 3 and dataset[0]['inputs'].shape == (3, 96, 96)
    np.random.seed(0)
    expected = theirs[1]['inputs']
    np.random.seed(0)
    assert (ours[1]['inputs'].float() - expected.float()).abs().mean() < 0.1, 'pipelines must cut the same boxes'


def test_the_config_is_not_changed(folder: Path) -> None:
    config = read_config(OURS)
    before = config.pretty_text
    build_training_set(config, folder, 96)
    assert config.pretty_text == before


def test_a_config_without_training_data_is_refused(folder: Path) -> None:
    config = read_config(OURS)
    config.pop('train_dataloader')
    with pytest.raises(ValueError, match=r'the config .*px\.py has no train_dataloader, but its pipeline is what'):
        build_training_set(config, folder, 96)


def test_a_pipeline_whose_size_is_unknown_is_refused(folder: Path) -> None:
    config = read_config(OURS)
    config.train_dataloader.dataset.pipeline = [dict(type='LoadImageFromFile'), dict(type='CenterCrop', crop_size=96)]
    message = r"the pipeline of .*px\.py is \['LoadImageFromFile', 'CenterCrop'\], but it must have a RandomResizedCrop"
    with pytest.raises(ValueError, match=message):
        build_training_set(config, folder, 96)


# Measuring


@pytest.fixture(scope='module')
def report() -> dict:
    return benchmark_loading(
        [MMPRETRAIN_MAE, OURS], image_sizes=[64], qualities=[75, 90], pictures=4, batch_size=3, rounds=2, warmup=0
    )


def test_every_pipeline_and_decoder_is_measured_in_every_round(report: dict) -> None:
    assert json.loads(json.dumps(report)) == report
    assert [each['quality'] for each in report['files']] == [75, 90]
    assert report['files'][0]['bytes'] < report['files'][1]['bytes']
    kinds = [(each['config'] or each['name'], each['image_size'], each['quality']) for each in report['loaders']]
    assert kinds == [
        (name, size, quality)
        for quality in (75, 90)
        for name, size in (
            (MMPRETRAIN_MAE, 64), (OURS, 64), ('decoding by OpenCV', None), ('decoding by Pillow', None)
        )
    ]  # fmt: skip
    for each in report['loaders']:
        assert len(each['images_per_second']) == 2 and min(each['images_per_second']) > 0
    assert report['arguments']['rounds'] == 2 and report['environment']['device'] == 'cpu'


def test_a_run_loads_every_file_on_one_core_and_leaves_no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes, threads, interleaved = [], set(), loading.time_interleaved
    collate = loading.default_collate

    def record(samples: list) -> dict:
        sizes.append(len(samples))
        threads.add((torch.get_num_threads(), cv2.getNumThreads()))
        return collate(samples)

    def with_a_fixed_time(runs: dict, rounds: int, warmup: int) -> dict:
        return {key: [0.5] * len(times) for key, times in interleaved(runs, rounds, warmup).items()}

    monkeypatch.setattr(loading, 'default_collate', record)
    monkeypatch.setattr(loading, 'time_interleaved', with_a_fixed_time)
    before, state = (torch.get_num_threads(), cv2.getNumThreads()), np.random.get_state()[1].tolist()
    report = benchmark_loading([OURS], [64], qualities=[75], pictures=5, batch_size=2, rounds=3, warmup=1)
    assert sizes == [2, 2, 1] * 4 and threads == {(1, 1)}
    assert (torch.get_num_threads(), cv2.getNumThreads()) == before
    assert np.random.get_state()[1].tolist() == state
    assert [each['images_per_second'] for each in report['loaders']] == [[10.0] * 3] * 3


def test_samples_of_repeated_augmentation_count(monkeypatch: pytest.MonkeyPatch) -> None:
    config = read_config(OURS)
    config.train_dataloader.dataset.repeats = 4
    monkeypatch.setattr(loading, 'read_config', lambda name: config)
    monkeypatch.setattr(loading, 'time_interleaved', lambda runs, *args: {key: [1.0] for key in runs})
    report = benchmark_loading([OURS], [64], qualities=[75], pictures=2, rounds=1)
    assert [each['images_per_second'] for each in report['loaders']] == [[8.0], [2.0], [2.0]]


def test_pipelines_draw_alike_in_every_round(monkeypatch: pytest.MonkeyPatch) -> None:
    batches, collate = [], loading.default_collate

    def record(samples: list) -> dict:
        batches.append(collate(samples)['inputs'].float())
        return collate(samples)

    monkeypatch.setattr(loading, 'default_collate', record)
    benchmark_loading([MMPRETRAIN_MAE, OURS], [64], qualities=[90], pictures=3, batch_size=3, rounds=2, warmup=0)
    assert len(batches) == 4
    assert torch.equal(batches[0], batches[2]) and torch.equal(batches[1], batches[3])
    assert (batches[0] - batches[1]).abs().mean() < 0.1


# Table


def test_the_table_has_medians_and_ratios_of_rounds() -> None:
    def loader(name: str, rates: list[float], config: str | None = None) -> dict:
        return dict(
            name=name, config=config, image_size=None if config is None else 224, quality=75, images_per_second=rates
        )

    report = dict(
        arguments=dict(configs=['host::a/slow.py', 'b/fast.py']),
        loaders=[
            loader('host::slow', [100.0, 50.0, 10.0], 'host::a/slow.py'),
            loader('fast', [200.0, 150.0, 80.0], 'b/fast.py'),
            loader('decoding by OpenCV', [400.0, 300.0, 200.0]),
            loader('decoding by Pillow', [200.0, 150.0, 100.0]),
        ],
    )
    title, _, *rows = loading_table(report).splitlines()
    assert title.split(' | ')[-2:] == ['times host::slow', 'of decoding alone |']
    assert rows == [
        '| host::slow | 75 | 224 | 50 (10 to 100) | 1.00 | 17 % |',
        '| fast | 75 | 224 | 150 (80 to 200) | 3.00 | 50 % |',
        '| decoding by OpenCV | 75 | – | 300 (200 to 400) | – | 100 % |',
        '| decoding by Pillow | 75 | – | 150 (100 to 200) | – | 50 % |',
    ]


def test_the_table_of_a_real_report_has_a_row_for_each_loader(report: dict) -> None:
    lines = loading_table(report).splitlines()
    assert len(lines) == 2 + len(report['loaders']) and len({line.count('|') for line in lines}) == 1
    assert Counter(line.split(' | ')[1] for line in lines[2:]) == {'75': 4, '90': 4}


# Arguments


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (dict(configs=[]), r'configs is \[\], but there must be at least one and none of them twice'),
        (dict(configs=[OURS, OURS]), 'configs is .* none of them twice'),
        (dict(image_sizes=[64, 64]), r'image_sizes is \[64, 64\], but'),
        (dict(qualities=[]), r'qualities is \[\], but'),
        (dict(rounds=0), 'rounds is 0, but it must be at least 1'),
        (dict(pictures=0), 'images is 0, but it must be at least 1'),
        (dict(batch_size=0), 'batch_size is 0, but it must be at least 1'),
        (dict(pictures=1, warmup=-1), 'warmup is -1, but it must be at least 0'),
    ],
)
def test_illegal_arguments_are_named(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        benchmark_loading(**{'configs': [OURS], 'image_sizes': [64], **arguments})
