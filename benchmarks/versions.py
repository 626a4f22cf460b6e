"""Compare step time and peak memory of two checkouts of this project in one run.

    python -m benchmarks.versions ../mm_ummae-0.5.0 --threads 2 --out benchmarks/results/versions.json

Each checkout trains UM-MAE and SimMIM (Swin-T, float32, CPU) on random images, with its own code and configs, in a
process of its own. The two processes of a method take steps in turn. Peak memory is the growth of the peak resident
memory of a process, after a step with one image. The loss of the first step shows whether both compute the same.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from mm_ummae.analysis import environment, markdown_table
from mm_ummae.analysis.measuring import at_least, round_ratio
from mm_ummae.analysis.report import commit, spread

from .entries import ROOT
from .results import add_run

CONFIGS = {
    'UM-MAE': 'configs/ummae/ummae_swin-tiny_8xb128x4-amp-coslr-200e_in1k-256px.py',
    'SimMIM': 'configs/simmim/simmim_swin-tiny_8xb64x8-amp-coslr-200e_in1k-256px.py',
}
# Runs in each checkout, so it uses only what every version has. It answers each line of its input with one line of JSON
CHILD = """
import ctypes, gc, json, re, sys, time, zlib
from pathlib import Path
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
import mm_ummae

config, size, batch, threads, overrides = sys.argv[1:]
size, batch = int(size), int(batch)
torch.set_num_threads(int(threads))
config = Config.fromfile(config)
config.merge_from_dict(json.loads(overrides))

def status(name):
    return 1024 * int(re.search(rf'^{name}:\\s+(\\d+) kB$', Path('/proc/self/status').read_text(), re.M)[1])

def make(batch):
    with DefaultScope.overwrite_default_scope(config.default_scope):
        model = MODELS.build(config.model)
    with torch.no_grad():  # by name, because versions may draw their initial weights in another order
        for name, weight in model.named_parameters():
            noise = torch.randn(weight.shape, generator=torch.Generator().manual_seed(zlib.crc32(name.encode())))
            weight.copy_(0.02 * noise + (weight.dim() == 1 and name.endswith('weight')))
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=1.5e-4, betas=(0.9, 0.95), weight_decay=0.05)
    images = torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)  # of the masks
    def step():
        loss = model(images, mode='loss')['loss']
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()
    return step

make(1)()
gc.collect()
ctypes.CDLL(None).malloc_trim(0)
Path('/proc/self/clear_refs').write_text('5')
before = status('VmRSS')
step = make(batch)
answers = sys.stdout
for line in sys.stdin:
    start = time.perf_counter()
    loss = step()
    seconds = time.perf_counter() - start
    answer = dict(seconds=seconds, loss=loss, memory=status('VmHWM') - before, package=mm_ummae.__file__)
    answers.write('ANSWER' + json.dumps(answer) + chr(10))
    answers.flush()
"""


class Trainer:
    """A process that trains with the code of a checkout.

    Args:
        root (Path): The checkout.
        config (str): Config file, relative to it.
        arguments (Sequence[str]): Image size, batch, threads, and overrides of the config as JSON.

    Raises:
        RuntimeError: If the process ends, or imports another package than that of the checkout.
    """

    def __init__(self, root: Path, config: str, arguments: Sequence[str]) -> None:
        self.root = root
        paths = [str(root), *os.environ.get('PYTHONPATH', '').split(os.pathsep)]
        self._process = subprocess.Popen(
            [sys.executable, '-c', CHILD, str(root / config), *arguments],
            cwd=root,
            env=os.environ | dict(PYTHONPATH=os.pathsep.join(filter(None, paths))),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def step(self) -> dict[str, Any]:
        """Make a step: its ``seconds`` and ``loss``, and the ``memory`` so far."""
        try:
            self._process.stdin.write('\n')
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # the loop below tells what happened
        for line in self._process.stdout:  # the host libraries write there, too
            if line.startswith('ANSWER'):
                answer = json.loads(line.removeprefix('ANSWER'))
                if not Path(answer['package']).is_relative_to(self.root):
                    raise RuntimeError(f'{self.root} should be measured, but its process imported {answer["package"]}')
                return answer
        raise RuntimeError(f'the process of {self.root} ended with code {self._process.wait()}')

    def close(self) -> None:
        """End the process."""
        self._process.stdin.close()
        self._process.wait()


def compare_versions(
    other: Path, size: int = 256, batch: int = 16, rounds: int = 5, threads: int = 1, options: dict | None = None
) -> list[dict[str, Any]]:
    """Measure both methods in another checkout and in this one.

    Args:
        other (Path): The other checkout.
        size (int): Image size in pixels. Default 256.
        batch (int): Images of a step. Default 16.
        rounds (int): Timed rounds, after one for warming up. Default 5.
        threads (int): Of the CPU. Default 1.
        options (dict, optional): Overrides of both configs, by dotted keys.
    Returns:
        list[dict[str, Any]]: For JSON. Of each method and checkout ``method``, ``commit``, ``loss`` of the first step,
        ``seconds``, one value a round, and ``memory`` in bytes; the other checkout first.
    """
    at_least(1, size=size, batch=batch, rounds=rounds, threads=threads)
    arguments = [str(size), str(batch), str(threads), json.dumps(options or {})]
    rows = []
    for method, config in CONFIGS.items():
        trainers = [Trainer(root, config, arguments) for root in (other.resolve(), ROOT)]
        try:
            answers = [[trainer.step() for trainer in trainers] for _ in range(rounds + 1)]
        finally:
            for trainer in trainers:
                trainer.close()
        for trainer, (first, *timed) in zip(trainers, zip(*answers, strict=True), strict=True):
            row = dict(method=method, commit=commit(trainer.root), loss=first['loss'], memory=timed[-1]['memory'])
            rows.append(row | dict(seconds=[answer['seconds'] for answer in timed]))
    return rows


def versions_table(rows: Sequence[dict[str, Any]]) -> str:
    """Results of :func:`compare_versions` as a Markdown table; ratios are to the other checkout.

    Time is the median, with the smallest and the largest value behind it; its ratio is the median of the ratios of each
    round.
    """
    titles = ['method', 'checkout', 'loss', 'step time (s)', 'time ratio', 'peak memory (GB)', 'memory ratio']
    lines = []
    for i, row in enumerate(rows):
        base = rows[i - i % 2]
        line = [row['method'], (row['commit'] or '–')[:7], f'{row["loss"]:.6f}', spread(row['seconds'])]
        line += [f'{round_ratio(row["seconds"], base["seconds"]):.3f}', f'{row["memory"] / 1e9:.2f}']
        lines.append([*line, f'{row["memory"] / base["memory"]:.3f}'])
    return markdown_table(titles, lines)


def main(arguments: list[str] | None = None) -> list[dict[str, Any]]:
    """Measure, print a table and JSON, and write the file; returns the results."""
    parser = argparse.ArgumentParser(
        'python -m benchmarks.versions', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('other', type=Path, help='checkout to compare with, such as a git worktree of an older tag')
    parser.add_argument('--size', type=int, default=256, help='image size in pixels (default: %(default)s)')
    parser.add_argument('--batch', type=int, default=16, help='images of a step (default: %(default)s)')
    parser.add_argument('--rounds', type=int, default=5, help='timed rounds (default: %(default)s)')
    parser.add_argument('--threads', type=int, default=torch.get_num_threads(), help='default: %(default)s')
    parser.add_argument('--out', type=Path, help='JSON file to append the run to')
    args = parser.parse_args(arguments)
    rows = compare_versions(args.other, args.size, args.batch, args.rounds, args.threads)
    print(versions_table(rows))
    used = {key: value for key, value in vars(args).items() if key not in ('other', 'out')}
    run = dict(environment=environment('cpu'), arguments=used, rows=rows)
    print(json.dumps(run))
    if args.out:
        add_run(args.out, run)
    return rows


if __name__ == '__main__':
    main()
