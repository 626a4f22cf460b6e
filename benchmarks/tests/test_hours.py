"""Hours on paper: the arithmetic by hand, each limit where it applies, and counted FLOPs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.hours import (
    CONFIGS,
    Machine,
    Workload,
    hours_table,
    main,
    parse_args,
    pretraining_hours,
    read_workload,
    seconds_on_paper,
)
from mm_ummae.analysis import read_config

WORK = Workload('net', parameters=100_000_000, forward_flops=10, backward_flops=20, epochs=200, images=128)
MACHINE = Machine(loader=100.0, cores=10.0, inside=100e9, between=10e9)
LINKS = ['--loader', '100', '--cores', '10', '--inside', '450', '--between', '50']


def test_one_gpu_by_hand() -> None:
    """4096 images at 2 ms take 8.192 s; the loader, at 1000 images/s, 4.096; there is nothing to reduce."""
    row = pretraining_hours(WORK, MACHINE, 1, 0.002)
    assert (row['images'], row['iterations'], row['limit']) == (128, 32, 'compute')
    assert (row['all_reduce'], row['waiting']) == (0, 0)
    assert row['compute'] == row['step'] == pytest.approx(8.192)
    assert row['loader'] == pytest.approx(4.096)
    assert row['images_per_second'] == pytest.approx(500)
    assert row['hours'] == pytest.approx(200 * 1_281_167 / 500 / 3600)


@pytest.mark.parametrize(
    ('gpus', 'images', 'iterations', 'all_reduce'),
    # Of 0.4 GB: 2 x 7/8 at 100 GB/s in a node, 2 x 15/16 and 2 x 63/64 at 10 GB/s between nodes
    [(8, 128, 4, 0.007), (16, 128, 2, 0.075), (64, 64, 1, 0.07875)],
)
def test_all_reduce_by_hand(gpus: int, images: int, iterations: int, all_reduce: float) -> None:
    """Two thirds of the last iteration hide it: 128 or 64 images of 0.75 ms each."""
    row = pretraining_hours(WORK, MACHINE, gpus, 0.00075)
    assert (row['images'], row['iterations']) == (images, iterations)
    assert row['all_reduce'] == pytest.approx(all_reduce)
    waiting = max(0, all_reduce - 2 / 3 * images * 0.00075)
    assert row['waiting'] == pytest.approx(waiting)
    assert row['step'] == pytest.approx(max(4096 / gpus * 0.00075 + waiting, 4096 / gpus / 1000))


@pytest.mark.parametrize(
    ('changes', 'limit', 'part'),
    [
        (dict(between=100e9, cores=100.0), 'compute', 'compute'),
        (dict(between=100e9, cores=1.0), 'loader', 'loader'),
        (dict(between=1e9, cores=100.0), 'all-reduce', 'waiting'),
        (dict(between=1e9, cores=0.1), 'loader', 'loader'),
    ],
)
def test_each_part_can_be_the_limit(changes: dict[str, float], limit: str, part: str) -> None:
    """On 64 GPUs."""
    row = pretraining_hours(WORK, MACHINE._replace(**changes), 64, 0.002)
    assert row['limit'] == limit and row[part] > row['step'] / 2


def test_the_table_gives_shares_of_a_step() -> None:
    lines = hours_table([pretraining_hours(WORK, MACHINE, gpus, 0.002) for gpus in (1, 8)]).splitlines()
    assert lines[2:] == [
        '| net | 1 | 128 x 32 | 500 | 142.4 | compute | 100.0% | 0.0% | 0.0% | 50.0% |',
        '| net | 8 | 128 x 4 | 4,000 | 17.8 | compute | 100.0% | 0.0% | 0.7% | 50.0% |',
    ]


def test_a_recipe_is_read_and_counted() -> None:
    """Backward has two products for each of forward, but none for the gradient of the image."""
    work = read_workload('tiny', read_config(CONFIGS[0]))
    assert (work.name, work.epochs, work.images, work.parameters) == ('tiny', 200, 128, 35_774_346)
    assert 1.99 * work.forward_flops < work.backward_flops < 2 * work.forward_flops
    assert seconds_on_paper(work, peak=2e12, share=0.25) == (work.forward_flops + work.backward_flops) / 5e11


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        (dict(share=1.5), 'share is 1.5, but it must be at most 1'),
        (dict(gpus=0), 'gpus is 0, but it must be at least 1'),
        (dict(gpus=3), 'gpus is 3 with 128 images each, but GPUs x images x iterations must be 4096'),
        (dict(gpus=8192), 'gpus is 8192 with 0 images each'),
        (dict(seconds_per_image=0.0), 'seconds_per_image is 0, but it must be more than 0'),
        (dict(machine=MACHINE._replace(between=-1.0)), 'between is -1, but it must be more than 0'),
        (dict(machine=MACHINE._replace(node=0)), 'node is 0, but it must be at least 1'),
    ],
)
def test_illegal_numbers_are_named(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        seconds = seconds_on_paper(WORK, 10.0, changes.pop('share', 1.0))
        pretraining_hours(**dict(work=WORK, machine=MACHINE, gpus=8, seconds_per_image=seconds) | changes)


def test_the_command_line_writes_what_it_computed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / 'hours.json'
    config = 'mm_ummae::demo/ummae_swin-test_1xb16-coslr-20e_demo-128px.py'
    rows = main([config, '--peak', '500', '--share', '0.4', *LINKS, '--gpus', '8', '64', '--out', str(out)])
    report = json.loads(out.read_text())
    assert report['rows'] == rows and [row['gpus'] for row in rows] == [8, 64]
    assert (report['arguments']['share'], report['arguments']['between']) == (0.4, 50)
    work = report['workloads'][0]
    assert rows[0]['compute'] == pytest.approx(512 * (work['forward_flops'] + work['backward_flops']) / 200e12)
    assert rows[0]['all_reduce'] == pytest.approx(2 * 7 / 8 * 4 * work['parameters'] / 450e9)
    assert 'On paper, not measured.' in capsys.readouterr().out


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['--peak', '500'], '--seconds-per-image is needed, or else --peak and --share'),
        (['--seconds-per-image', '1', '--peak', '500', '--share', '1'], 'and not all of them'),
        (['--seconds-per-image', '1', '2'], '--seconds-per-image has 2 numbers, but there are 3 configs'),
    ],
)
def test_seconds_or_a_peak_are_needed(arguments: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_args([*LINKS, *arguments])
