"""Tables of measured numbers, from the JSON files of the measurements, each under a line that says what it is from."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from mmengine.config import Config

import mm_ummae.version
from benchmarks.hours import hours_table
from benchmarks.pretraining_cost import cost_table
from benchmarks.profile import profile_table
from benchmarks.targets import product_share, targets
from benchmarks.versions import versions_table
from demo import ablations, htcpp, networks, one_command, report, stock_swin
from mm_ummae.analysis import markdown_table
from mm_ummae.analysis.measuring import round_ratio
from mm_ummae.analysis.report import spread

PAIR = (report.TRAINED, report.SCRATCH)
DEMO, BENCHMARKS = 'demo/results', 'benchmarks/results'
Run = dict[str, Any]


class Source(NamedTuple):
    """A table and the file that it is made of.

    Args:
        file (str): JSON file, as seen from the root of the checkout.
        make (Callable[[dict], str]): The table of the file's content.
        run (Callable[[dict], dict]): The run in it whose environment stands above the table. Default: the file itself.
    """

    file: str
    make: Callable[[Run], str]
    run: Callable[[Run], Run] = lambda content: content

    def __call__(self, root: Path, folder: str) -> str:
        """The table with its origin, for a page in a folder of the checkout."""
        content = json.loads((root / self.file).read_text())
        link = Path(os.path.relpath(self.file, folder)).as_posix()
        return f'{origin(self.run(content), link, version(root))}\n\n{self.make(content)}'


def version(root: Path) -> str:
    """The version of a checkout; that of this one without its file."""
    file = root / 'mm_ummae' / 'version.py'
    found = re.search(r"__version__ = '(.+?)'", file.read_text()) if file.exists() else None
    return found[1] if found else mm_ummae.version.__version__


def origin(run: Run, link: str, current: str) -> str:
    """What a measurement was made with, in a line; a version other than the current one is said to be so.

    Args:
        run (dict): With ``environment``, and ``seeds`` if it has some.
        link (str): To the numbers.
        current (str): Version of this checkout; patches do not count.
    """
    environment = run['environment']
    measured = environment['versions']['mm_ummae']
    old = measured.split('.')[:2] != current.split('.')[:2]
    commit = environment.get('commit')
    words = [
        f'Version {measured}{f", older than this one ({current})" if old else ""}',
        f'commit {commit[:7]}{" with changes" if commit.endswith("-dirty") else ""}'
        if commit
        else 'commit not recorded',
        environment['date'][:10],
        f'{environment["cpu"]}, {environment["threads"]} of {environment["cores"]} cores'
        if environment['device'] == 'cpu'
        else environment['device'],
        f'PyTorch {environment["versions"]["torch"]}',
    ]
    if 'seeds' in run:
        words.append(f'{len(run["seeds"])} seeds' if len(run['seeds']) > 1 else 'one seed')
    return f'*{"; ".join(words)}; [numbers]({link})*'


# Demos


def demo_costs(content: Run) -> str:
    """Seconds and memory of each run."""
    return report.cost_table(content['seeds'])


def demo_results(content: Run) -> str:
    """Both starts of each task."""
    return report.results_table(content['seeds'])


def demo_claims(content: Run) -> str:
    """What holds over all seeds."""
    return report.claims_table(content['seeds'])


def htcpp_table(part: str) -> Callable[[Run], str]:
    """HTC++ against Mask R-CNN in a short or long training."""
    return lambda content: htcpp.detector_table(content[part]['seeds'])


def ablation_table(content: Run) -> str:
    """Every arm, and its differences."""
    return ablations.ablation_tables(list(content['seeds'].values()), content['epochs'])


def stock_swin_table(content: Run) -> str:
    """Starts of a stock Swin in the tasks of the demo."""
    return stock_swin.starts_table(list(content['seeds'].values()))


def continued_table(content: Run) -> str:
    """Continued pre-training."""
    return stock_swin.continued_table(list(content['seeds'].values()))


def settings_table(content: Run) -> str:
    """Settings that were tried, with the result of both starts."""
    rows = [[row['setting'], *(f'{row[start]:.1f}' for start in PAIR)] for row in content['rows']]
    return markdown_table(['setting', *PAIR], rows)


def pretraining_table(content: Run) -> str:
    """Settings of pre-training that were tried."""
    rows = [
        [str(row['epochs']), str(row['batch_size']), row['lr'], f'{row["loss"]:.3f}']
        + [f'{row[key]:.1f}' for key in ('linear', 'knn')]
        + [str(row['seconds'])]
        for row in content['pretraining']
    ]
    titles = ['epochs', 'images per iteration', 'learning rate', 'loss', 'linear probe, top-1 %']
    return markdown_table([*titles, '10 nearest neighbours, top-1 %', 'seconds'], rows)


def tuning_table(content: Run) -> str:
    """Settings of fine-tuning that were tried, with one seed or several."""
    rows = []
    for row in content['rows']:
        starts = [row[start] for start in PAIR]
        rows.append([row['task'], row['setting'], row['metric'], *(report.spread(values) for values in starts)])
        wins = f'{sum(a > b for a, b in zip(*starts, strict=True))} of {len(starts[0])}' if all(starts) else '–'
        rows[-1].append(wins)
    return markdown_table(['task', 'setting', 'metric', *PAIR, 'pre-trained wins'], rows)


def losses_table(content: Run) -> str:
    """Means of the losses of HTC++ over tenths of the training."""
    rows = [[name, *(f'{value:.3f}' for value in values)] for name, values in content['long']['losses'].items()]
    return markdown_table(['loss', 'first tenth', 'highest tenth', 'last tenth'], rows)


def weights_table(root: Path, folder: str) -> str:
    """The stored weights, with what they were made by; a version other than the current one is said to be so."""
    rows = []
    for file in sorted((root / DEMO / 'weights').glob('*_log.json')):
        name = file.stem.removesuffix('_log')
        run = json.loads(file.with_name(f'{name}.json').read_text())
        links = {
            key: Path(os.path.relpath(path, folder)).as_posix()
            for key, path in dict(
                config=run['recipe'], log=f'{DEMO}/weights/{file.name}', numbers=f'{DEMO}/weights/{name}.json'
            ).items()
        }
        row = [name, f'{run["parameters"] / 1e6:.2f}', f'{run["epochs"]}', f'{run["seconds"] / 3600:.1f}']
        first, last = run['curve'][0], run['curve'][-1]
        row += [f'{first[key]:.1f} → {last[key]:.1f}' for key in ('linear', 'knn')]
        made = origin(run, links['numbers'], version(root)).strip('*')
        rows.append([*row, f'seed {run["seed"]}, [config]({links["config"]}), [log]({links["log"]})', made])
    titles = ['name', 'parameters (M)', 'epochs', 'hours', 'linear probe, top-1 %', '10 nearest neighbours, top-1 %']
    return markdown_table([*titles, 'training', 'made by'], rows)


# Benchmarks


def runs_of(content: Run, measure: str, **arguments: Any) -> Run:
    """The newest run of a measurement, with these arguments."""
    fitting = [
        run
        for run in content['runs']
        if run.get('measure', measure) == measure
        and all(run['arguments'].get(key) == value for key, value in arguments.items())
    ]
    if not fitting:
        raise ValueError(f'no run of {measure} with {arguments}')
    return fitting[-1]


def newest(measure: str, **arguments: Any) -> Callable[[Run], Run]:
    """:func:`runs_of` a file that is not read yet."""
    return lambda content: runs_of(content, measure, **arguments)


def step_table(dtype: str) -> Callable[[Run], str]:
    """Steps of all pre-trainings, and their ratios to the first."""

    def make(content: Run) -> str:
        run = runs_of(content, 'step', dtype=dtype)
        first, rows = run['networks'][0], []
        for network in run['networks']:
            seconds, flops = network['seconds'], network['flops']['step'] / network['batch']
            row = [network['name'], f'{network["parameters"] / 1e6:.1f}', f'{flops / 1e9:.1f}', spread(seconds)]
            row += [f'{network["batch"] / median(seconds):.3g}', f'{round_ratio(seconds, first["seconds"]):.2f}']
            row += [f'{product_share(run, network):.2f}', f'{network["memory"] / 1e9:.2f}']
            rows.append([*row, f'{network["memory"] / first["memory"]:.2f}'])
        titles = [dtype, 'parameters (M)', 'GFLOPs per image', 'step time (s)', 'images/s', 'time ratio']
        return markdown_table([*titles, 'share of matrix products', 'peak memory (GB)', 'memory ratio'], rows)

    return make


def targets_table(content: Run) -> str:
    """The targets in both precisions."""
    found = [targets(runs_of(content, 'step', dtype=dtype)) for dtype in ('float32', 'bfloat16')]
    rows = [[full.name, *full.cells(), *half.cells()] for full, half in zip(*found, strict=True)]
    titles = ['target', 'float32: limit', 'measured', 'reached', 'bfloat16: limit', 'measured', 'reached']
    return markdown_table(titles, rows)


def step_profile(content: Run) -> str:
    """Operations of a step."""
    profiles = dict(runs_of(content, 'step', dtype='float32')['profiles'])
    profiles.pop('UM-MAE, plain formulation')  # computes everything in what the profile takes for the head
    return profile_table(profiles, smallest=0.01)


def detectors_table(content: Run) -> str:
    """Inference and step of the same detector on two backbones, and their ratios to MMDetection's, the last one."""
    inference, step = (runs_of(content, f'detector-{kind}') for kind in ('inference', 'step'))
    rows, (last, last_step) = [], (run['networks'][-1] for run in (inference, step))
    for network, trained in zip(inference['networks'], step['networks'], strict=True):
        counts = sum(network['multiply_adds'].values()) / 1e9
        row = [network['name'], f'{network["parameters"] / 1e6:.1f}', f'{counts:.1f}', spread(network['seconds'])]
        row += [f'{round_ratio(network["seconds"], last["seconds"]):.2f}', f'{trained["flops"]["step"] / 1e9:.1f}']
        row += [spread(trained['seconds']), f'{round_ratio(trained["seconds"], last_step["seconds"]):.2f}']
        rows.append([*row, f'{trained["memory"] / 1e9:.2f}'])
    shapes = ['x'.join(map(str, run['shape'])) for run in (inference, step)]
    titles = ['network', 'parameters (M)', f'inference {shapes[0]}: multiply-adds (G)', 'latency (s)', 'ratio']
    return markdown_table([*titles, f'step {shapes[1]}: GFLOPs', 'step time (s)', 'ratio', 'peak memory (GB)'], rows)


def loading_table(content: Run) -> str:
    """Images per second of the loaders at both qualities, and relative to the first."""
    loaders = runs_of(content, 'loading')['loaders']
    by_quality: dict[int, list[Run]] = {}
    for row in loaders:
        by_quality.setdefault(row['quality'], []).append(row)
    rows = []
    for same in zip(*by_quality.values(), strict=True):
        cells = [same[0]['name']]
        for row, first in zip(same, (group[0] for group in by_quality.values()), strict=True):
            ratio = f'{round_ratio(row["images_per_second"], first["images_per_second"]):.2f}'
            cells += [spread(row['images_per_second']), '' if row['name'].startswith('decoding') else ratio]
        rows.append(cells)
    titles = [
        title for quality in by_quality for title in (f'quality {quality}: images/s per core', 'relative to MMPretrain')
    ]
    return markdown_table(['loader', *titles], rows)


def versions_rows(content: Run) -> str:
    """Steps of two versions."""
    return versions_table(content['runs'][-1]['rows'])


def cost_of(arch: str) -> Callable[[Run], str]:
    """Pre-training cost by image size."""
    return lambda content: cost_table(runs_of(content, '', arch=arch))


def cost_profile(content: Run) -> str:
    """Operations of the methods at the profiled size."""
    rows = runs_of(content, '', arch='base')['rows']
    return profile_table({row['name']: row['profile'] for row in rows if row['profile']}, smallest=0.02)


def hours_rows(content: Run) -> str:
    """Hours on paper; recipes by their network."""
    names = {row['name']: re.search(r'swin-\w+?(?=_)', row['name'])[0] for row in content['rows']}
    return hours_table([row | dict(name=names[row['name']]) for row in content['rows']])


# HTC++

PARTS = {
    r'htcpp-giou-4conv1fc_': 'HTC++ with GIoU and 4conv1fc',
    r'htcpp-without-semantic_': 'HTC++ without semantic branch',
    r'htcpp_': 'HTC++',
    r'mask-rcnn_swin': "MMDetection's Mask R-CNN",
    r'mask-rcnn_': 'Mask R-CNN',
    r'gfl_': 'GFL',
}


def detector_name(config: str) -> str:
    """Detector and backbone of a config."""
    name = Path(config.rpartition('::')[2]).stem
    detector = next(title for pattern, title in PARTS.items() if re.match(pattern, name))
    network, size = re.search(r'(swin|pvt)-(\w+?)[-_]', name).groups()
    prefix = 'UM' if f'um-{network}' in name else ''
    return f'{detector}, {prefix}{dict(swin="Swin", pvt="PVT")[network]}-{size[0].upper()}'


def inference_table(content: Run) -> str:
    """Parameters, multiply-adds and images per second of whole detectors."""
    rows = []
    for row in content['results']:
        total = sum(row['multiply_adds'].values())
        share = f'{row["multiply_adds"]["backbone"] / total:.0%}'.replace('%', ' %')
        rate = f'{1 / median(row["seconds"]):.3f}'
        rows.append([detector_name(row['name']), f'{row["parameters"] / 1e6:.1f}', f'{total / 1e9:.1f}', share, rate])
    titles = ['detector', 'parameters, M', 'multiply-adds, G', 'in the backbone', 'images per second']
    return markdown_table(titles, rows)


def memory_table(content: Run) -> str:
    """Estimated memory of training with and without recomputation, and which of both a config has."""
    totals: dict[str, dict[bool, str]] = {}
    for run in content['runs']:
        options = run['arguments']['cfg_options'] or {}
        for config, estimate in run['estimates'].items():
            recomputes = options.get('model.backbone.with_cp')
            note = ''
            if recomputes is None:
                recomputes, note = _recomputes(config), ' (as configured)'
            totals.setdefault(detector_name(config), {})[recomputes] = f'{estimate["total"] / 1e9:.1f}{note}'
    rows = [[name, *(total.get(recomputes, '–') for recomputes in (False, True))] for name, total in totals.items()]
    return markdown_table(['total in GB', 'without recomputation', '`with_cp=True` in backbone and extra layer'], rows)


def _recomputes(config: str) -> bool:
    return bool(Config.fromfile(Path(__file__).parents[1] / config).model.backbone.get('with_cp'))


# Runs that were killed


def kills_table(content: Run) -> str:
    """Kills of a run of scripts/kill_and_resume.py."""
    methods = content['methods']
    kinds = sorted({kind for method in methods for kind in method['kinds']})
    counts = [str(sum(method['kinds'].get(kind, 0) for method in methods)) for kind in kinds]
    kills = sum(len(method['kills']) for method in methods)
    row = [', '.join(method['method'] for method in methods), str(kills), *counts]
    row += [str(sum(method['resumed'] for method in methods)), str(sum(method['half_written'] for method in methods))]
    row.append(f'{sum(method["equal"] for method in methods)} of {len(methods)} runs')
    return markdown_table(['methods', 'kills', *kinds, 'resumed', 'half-written files', 'equal'], [row])


PERFORMANCE, COST = f'{BENCHMARKS}/performance.json', f'{BENCHMARKS}/pretraining_cost.json'
TABLES: dict[str, Callable[[Path, str], str]] = {
    'demo': Source(f'{DEMO}/ummae.json', demo_results),
    'demo, claims': Source(f'{DEMO}/ummae.json', demo_claims),
    'demo, cost': Source(f'{DEMO}/ummae.json', demo_costs),
    'lomar': Source(f'{DEMO}/lomar.json', demo_results),
    'htcpp, short': Source(f'{DEMO}/htcpp.json', htcpp_table('short'), lambda content: content | content['short']),
    'htcpp, long': Source(f'{DEMO}/htcpp.json', htcpp_table('long'), lambda content: content | content['long']),
    'htcpp, losses': Source(f'{DEMO}/htcpp.json', losses_table, lambda content: content | content['long']),
    'weights': weights_table,
    'settings': Source(f'{DEMO}/settings.json', settings_table),
    'tuning': Source(f'{DEMO}/tuning.json', tuning_table),
    'trials': Source(f'{DEMO}/trials.json', tuning_table),
    'search': Source(f'{DEMO}/search.json', tuning_table),
    'search, pre-training': Source(f'{DEMO}/search.json', pretraining_table),
    'networks': Source(f'{DEMO}/networks.json', networks.networks_table),
    'stock swin': Source(f'{DEMO}/stock_swin.json', stock_swin_table),
    'continued': Source(f'{DEMO}/stock_swin.json', continued_table),
    'one command': Source(f'{DEMO}/one_command.json', one_command.table),
    'ablations': Source(f'{DEMO}/ablations.json', ablation_table),
    'steps, float32': Source(PERFORMANCE, step_table('float32'), newest('step', dtype='float32')),
    'steps, bfloat16': Source(PERFORMANCE, step_table('bfloat16'), newest('step', dtype='bfloat16')),
    'targets': Source(PERFORMANCE, targets_table, newest('step', dtype='float32')),
    'profile': Source(PERFORMANCE, step_profile, newest('step', dtype='float32')),
    'detectors': Source(PERFORMANCE, detectors_table, newest('detector-step')),
    'loading': Source(PERFORMANCE, loading_table, newest('loading')),
    'versions': Source(f'{BENCHMARKS}/versions.json', versions_rows, lambda content: content['runs'][-1]),
    'cost, base': Source(COST, cost_of('base'), newest('', arch='base')),
    'cost, small': Source(COST, cost_of('small'), newest('', arch='small')),
    'cost, profile': Source(COST, cost_profile, newest('', arch='base')),
    'hours': Source(f'{BENCHMARKS}/hours.json', hours_rows),
    'htcpp, inference': Source(f'{BENCHMARKS}/htcpp_benchmark.json', inference_table),
    'htcpp, memory': Source(f'{BENCHMARKS}/htcpp_memory.json', memory_table, lambda content: content['runs'][-1]),
    'kills': Source('scripts/results/kill_and_resume.json', kills_table),
    'kills, original packages': Source('scripts/results/kill_and_resume_openmmlab.json', kills_table),
}
