"""Cost of pre-training: FLOPs counted by hand, profiles, rows and plots."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any
from weakref import WeakSet

import pytest
import torch

from benchmarks import pretraining_cost as module
from benchmarks.plots import cost_figure
from benchmarks.pretraining_cost import (
    DEFAULT_METHODS,
    METHODS,
    cost_table,
    count_step,
    main,
    make_step,
    method_config,
    num_windows,
    pretraining_cost,
)
from benchmarks.profile import OTHERS, operations, profile_table
from mm_ummae.analysis import PeakMemory, Settings
from mm_ummae.analysis.step import TrainingStep

pytestmark = pytest.mark.slow

# Of the encoder `test`, and of 128 px: 8 x 8 patches
DIMS, LAYERS, HIDDEN, PIXELS = 96, 4, 384, 16 * 16 * 3
ONE_ROUND = Settings(rounds=1, warmup=0)


def made(method: str, batch: int = 1) -> TrainingStep:
    return make_step(method, 128, 'test', batch, ONE_ROUND)


# Methods


@pytest.mark.parametrize(('size', 'windows'), [(224, 4), (384, 6), (448, 9), (672, 20), (128, 1)])
def test_windows_are_the_published_ones_and_follow_the_area_beyond(size: int, windows: int) -> None:
    assert num_windows(size) == windows


@pytest.mark.parametrize(
    ('method', 'second'),
    [
        ('mae', 'neck.num_patches'),
        ('lomar', 'num_windows'),
        ('um-mae', 'neck.img_size'),
        ('um-mae-swin', 'neck.img_size'),
    ],
)
def test_only_sizes_change_in_a_config(method: str, second: str) -> None:
    first, other = (method_config(method, size).model.to_dict() for size in (224, 672))
    differing = {
        f'{key}.{name}' if isinstance(first[key], dict) else key
        for key in first
        for name in (first[key] if isinstance(first[key], dict) else [None])
        if (first[key] if name is None else first[key][name]) != (other[key] if name is None else other[key][name])
    }
    assert differing == {'backbone.img_size', second}


def test_explicit_attention_computes_the_same_and_holds_the_scores() -> None:
    losses, kept = {}, {}
    for method in ('mae', 'mae-2022'):
        step = made(method, 2)
        torch.manual_seed(0)
        with PeakMemory() as memory:
            loss = step.loss()
        losses[method], kept[method] = loss, memory.live
    assert losses['mae'].item() == pytest.approx(losses['mae-2022'].item(), rel=1e-5)
    scores = 4 * 2 * (16 * 65**2 * 8 + 4 * 17**2 * LAYERS)  # float32; decoder and encoder
    fused = 4 * 2 * (16 * 65 * 8 + 4 * 17 * LAYERS)  # what it keeps of a row of scores
    assert kept['mae-2022'] - kept['mae'] == pytest.approx(scores, abs=4 * fused)


def block(tokens: int, dims: int, hidden: int, products: int = 2) -> int:
    """Linear layers, and as many attention products of (tokens, tokens, dims)."""
    return tokens * dims * (4 * dims + 2 * hidden) + products * tokens**2 * dims


def expected_counts(method: str) -> dict[str, int]:
    """At 128 px: 64 patches. MAE and UM-MAE keep 16, LoMaR has one window of 49, of which 10 are visible."""
    if method == 'lomar':  # the third product is that of relative positions
        encoder = 10 * PIXELS * DIMS + LAYERS * block(50, DIMS, HIDDEN, 3)
        return dict(encoder=encoder, decoder=39 * DIMS * PIXELS, attention=LAYERS * 3 * 50**2 * DIMS)
    depth = 8 if method.startswith('mae') else 2
    embedded = 64 if method.startswith('mae') else 16  # MAE embeds all patches
    predicted = 65 if method.startswith('mae') else 48
    encoder = embedded * PIXELS * DIMS + LAYERS * block(17, DIMS, HIDDEN)
    decoder = 17 * DIMS * 512 + depth * block(65, 512, 2048) + predicted * 512 * PIXELS
    return dict(encoder=encoder, decoder=decoder, attention=2 * (LAYERS * 17**2 * DIMS + depth * 65**2 * 512))


@pytest.mark.parametrize('method', DEFAULT_METHODS)
def test_multiply_adds_of_an_image_are_those_counted_by_hand(method: str) -> None:
    assert count_step(made(method, 2)) == expected_counts(method)


# Profile


def test_operations_belong_to_their_part_and_kind() -> None:
    """Each product of forward has two in backward; no hook stays behind."""
    step = made('mae-2022')
    step()
    counts = Counter((part, kind) for part, kind, _ in operations(step))
    assert counts['encoder', 'attention products'] == 3 * 2 * LAYERS
    assert counts['decoder', 'attention products'] == 3 * 2 * 8
    assert counts['encoder', 'linear layers'] == 3 * 4 * LAYERS
    assert counts['decoder', 'linear layers'] == 3 * (4 * 8 + 2)
    assert counts['head', 'linear layers'] == 0
    for part, norms, layers in (('encoder', 2 * LAYERS + 1, LAYERS), ('decoder', 2 * 8 + 1, 8)):
        assert counts[part, 'norms'] == 2 * norms
        assert counts[part, 'GELU'] == 2 * layers
        assert counts[part, 'softmax'] == 2 * layers
    assert {kind for part, kind in counts if part in ('head', 'optimizer')} == {OTHERS}
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in step.model.modules())


def test_the_table_of_profiles_leaves_out_what_takes_no_time() -> None:
    profile = dict(encoder={'linear layers': 1.0, 'GELU': 1e-5}, optimizer={OTHERS: 0.25})
    lines = profile_table({'LoMaR': profile}).splitlines()
    assert lines[0] == '| seconds per image | LoMaR |'
    assert lines[2:] == ['| encoder: linear layers | 1.000 |', f'| optimizer: {OTHERS} | 0.250 |', '| all | 1.250 |']


# Results


def test_runs_are_measured_printed_stored_and_drawn(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Runs of a kind share their panels."""
    out, plot = tmp_path / 'new' / 'runs.json', tmp_path / 'plot.png'
    words = f'--arch test --rounds 2 --warmup 0 --batch 1 --device cpu --threads 1 --out {out}'.split()
    run = main([*words, '--methods', *('mae', 'lomar'), '--sizes', '128', '192', '--profile', '128'])
    printed = capsys.readouterr().out
    assert cost_table(run) in printed and 'LoMaR, 128 px' in printed
    assert [(row['size'], row['method']) for row in run['rows']] == [
        (s, m) for s in (128, 192) for m in ('mae', 'lomar')
    ]
    for row in run['rows']:
        assert len(row['seconds']) == len(row['cpu_seconds']) == 2 and min(row['seconds'] + row['cpu_seconds']) > 0
        assert row['memory'] > row['resident'] > 12 * row['parameters'] * 0.9
        assert (row['windows'] is None) == (row['method'] != 'lomar')
        assert (row['profile'] is None) == (row['size'] != 128)
        assert row['error'] is None
    main([*words, '--methods', 'lomar', '--sizes', '160', '--plot', str(plot)])
    runs = json.loads(out.read_text())['runs']
    assert runs[0] == json.loads(json.dumps(run)) and plot.read_bytes()[1:4] == b'PNG'
    assert str(Path.home()) not in out.read_text()
    lines = {line.get_label(): list(line.get_xdata()) for line in cost_figure(runs).axes[0].lines}
    assert lines == {'MAE': [128, 192], 'LoMaR': [128, 160, 192]}


def made_row(method: str, seconds: list[float], **changes: Any) -> dict[str, Any]:
    counts = dict(encoder=2 * 10**9, decoder=10**9, attention=5 * 10**8)
    row = dict(method=method, name=METHODS[method].name, size=224, windows=None, parameters=10**6)
    row |= dict(seconds=seconds, cpu_seconds=[value / 2 for value in seconds])
    return row | dict(multiply_adds=counts, memory=2 * 10**9, error=None) | changes


def test_the_table_compares_with_mae_round_by_round() -> None:
    """By CPU time if a single thread does all the work."""
    rows = made_row('mae', [2.0, 6.0, 4.0]), made_row('lomar', [1.0, 2.0, 4.0], windows=4)
    lines = cost_table(dict(environment=dict(device='cpu', threads=2), rows=rows)).splitlines()
    assert lines[2] == '| 224 | MAE | 1.0 | 3.0 | 2.0 | 1.0 | 0.5 | 4 (2 to 6) | 1.00 | 2.00 |'
    assert lines[3] == '| 224 | LoMaR, 4 windows | 1.0 | 3.0 | 2.0 | 1.0 | 0.5 | 2 (1 to 4) | 2.00 | 2.00 |'
    (alone,) = cost_table(dict(environment=dict(device='cpu', threads=1), rows=rows[1:])).splitlines()[2:]
    assert alone.endswith('| 1 (0.5 to 2) | – | 2.00 |')


@pytest.mark.parametrize(
    ('fails_in', 'error'),
    [
        ('__call__', torch.cuda.OutOfMemoryError('CUDA out of memory')),
        ('resident', RuntimeError("DefaultCPUAllocator: can't allocate memory")),
    ],
)
def test_lack_of_memory_is_noted_in_the_row(
    fails_in: str, error: RuntimeError, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the first step, or later with the other networks in memory. Networks are freed before the next size."""
    original, build = getattr(TrainingStep, fails_in), module.make_step
    alive: WeakSet[torch.nn.Module] = WeakSet()
    before = []

    def fail(step: TrainingStep) -> Any:
        if type(step.model).__name__ == 'UMMAE':
            raise type(error)(str(error))
        return original(step)

    def watched(*args: Any, **kwargs: Any) -> TrainingStep:
        before.append(len(alive))
        step = build(*args, **kwargs)
        alive.add(step.model)
        return step

    monkeypatch.setattr(TrainingStep, fails_in, fail)
    monkeypatch.setattr(module, 'make_step', watched)
    rows = pretraining_cost(['lomar', 'um-mae'], [128, 160], arch='test', batch=1, settings=ONE_ROUND)
    assert before == [0, 1, 0, 1]
    assert rows[0]['error'] is None and rows[0]['seconds']
    assert rows[1]['error'] == 'out of memory' and rows[1]['seconds'] is rows[1]['memory'] is None
    run = dict(environment=dict(device='cpu', threads=2), rows=rows)
    assert '| 128 | UM-MAE | – | – | – | – | – | out of memory | – | – |' in cost_table(run)
    run['arguments'] = dict(arch='test', batch=1, device='cpu', dtype='float32')
    assert [list(line.get_xdata()) for line in cost_figure([run]).axes[0].lines] == [[128, 160], []]


def test_other_errors_are_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(step: TrainingStep) -> None:
        raise RuntimeError('shapes differ')

    monkeypatch.setattr(TrainingStep, '__call__', fail)
    with pytest.raises(RuntimeError, match='shapes differ'):
        pretraining_cost(['lomar'], [128], arch='test', batch=1, settings=ONE_ROUND)


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (dict(methods=[]), r'methods is \[\], but it must be some of mae, mae-2022'),
        (dict(methods=['mae', 'mae']), 'none of them twice'),
        (dict(sizes=[224, 100]), r'sizes is \[224, 100\], but each must be a multiple of 32 pixels, at least 128'),
        (dict(arch='huge'), "arch is 'huge', but it must be one of test, small, base"),
        (dict(batch=0), 'batch is 0, but it must be at least 1'),
        (dict(profile=256), r'profile is 256, but it must be one of the sizes \(224, 384, 448, 672\)'),
    ],
    ids=str,
)
def test_illegal_arguments_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pretraining_cost(**arguments)
