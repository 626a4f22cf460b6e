#!/usr/bin/env python3
"""Runs that are killed at random points and resumed, against the same runs without a break.

    python scripts/kill_and_resume.py --kills 20 --out scripts/results/kill_and_resume.json

Trains UM-MAE, SimMIM, LoMaR and a classifier at a tiny size on a CPU: once without a break, and once killed in turn by
SIGKILL, SIGKILL inside a save, SIGTERM, SIGUSR1 and Ctrl-C, each time resumed with --resume, with two loader processes
and without any in turn. After each kill no final name may hold a half-written file, and the run must go on after its
last checkpoint. In the end weights, optimizer moments and the loss of each iteration must be equal bit for bit. Takes
about 20 s for each kill on two cores; the exit status is 1 if anything differs.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import torch
from mmengine.logging import MMLogger

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from demo.make_data import make_demo_data  # noqa: E402
from mm_ummae.analysis import environment  # noqa: E402
from mm_ummae.checkpoints import read_checkpoint  # noqa: E402

PART = '.*.pth.part'  # a checkpoint that is being written
LENGTH = 8  # iterations of an epoch, and between two checkpoints of the classifier
BATCH = 4
LOADER_PROCESSES = 2
PATIENCE = 120  # seconds until something is wrong
KINDS = {  # expected exit status
    'SIGKILL': -signal.SIGKILL,
    'SIGKILL in a save': -signal.SIGKILL,
    'SIGTERM': 75,
    'SIGUSR1': 75,
    'SIGINT': 130,
}


class Method(NamedTuple):
    """A training of the demo.

    Args:
        name (str): As it is printed.
        config (str): In configs/demo.
        by_epoch (bool): Whether the run counts epochs.
    """

    name: str
    config: str
    by_epoch: bool = True


METHODS = (
    Method('UM-MAE', 'ummae_swin-test_1xb16-coslr-20e_demo-128px.py'),
    Method('SimMIM', 'simmim_swin-test_1xb16-coslr-20e_demo-128px.py'),
    Method('LoMaR', 'lomar_vit-test_1xb32-coslr-10e_demo-128px.py'),
    Method('classification', 'um-swin-test_classification_1xb8-200it_demo-128px.py', by_epoch=False),
)


def make_data(folder: Path) -> Path:
    """Images for epochs of :data:`LENGTH` iterations."""
    images = LENGTH * BATCH
    counts = dict(num_coco_train=1, num_coco_val=1, num_ade_train=1, num_ade_val=1)
    return make_demo_data(
        folder, image_size=64, num_pretrain=images, num_labelled_train=40, num_labelled_val=10, **counts
    )


def options(method: Method, data: Path, epochs: int, workers: int) -> list[str]:
    """Config values of a short run: warm-up, cosine decay, and a checkpoint and a line of the log as often as possible.

    Args:
        method (Method): What to train.
        data (Path): Folder of :func:`make_data`.
        epochs (int): Length of the run, in :data:`LENGTH` iterations.
        workers (int): Loader processes.
    """
    scale = 1 if method.by_epoch else LENGTH
    loaders = ['train_dataloader'] if method.by_epoch else ['train_dataloader', 'val_dataloader']
    values = [f'{loader}.dataset.data_root={data / "imagenet"}' for loader in loaders]
    values += [f'{loader}.num_workers={workers}' for loader in loaders]
    values += [f'{loader}.persistent_workers={workers > 0}' for loader in loaders]
    values += [
        f'train_dataloader.batch_size={BATCH}',
        f'param_scheduler.0.end={scale}',
        f'param_scheduler.1.begin={scale}',
        f'param_scheduler.1.end={epochs * scale}',
        f'default_hooks.checkpoint.interval={scale}',
        'default_hooks.logger.interval=1',
        'model.backbone.drop_path_rate=0.2',
    ]
    if method.by_epoch:
        return [*values, f'train_cfg.max_epochs={epochs}']
    iterations = [f'train_cfg.max_iters={epochs * LENGTH}', f'train_cfg.val_interval={2 * LENGTH}']
    return [*values, *iterations, 'randomness.seed=0', 'model.backbone.init_cfg=None']


class Run:
    """A run of tools/train.py in processes of its own, with what it wrote.

    Args:
        method (Method): What to train.
        data (Path): Folder of :func:`make_data`.
        work_dir (Path): Folder of checkpoints and logs.
        epochs (int): Length of the run, in :data:`LENGTH` iterations.
    """

    def __init__(self, method: Method, data: Path, work_dir: Path, epochs: int) -> None:
        self.method, self.data, self.work_dir, self.epochs = method, data, work_dir, epochs
        self.total = epochs * LENGTH  # iterations
        self.work_dir.mkdir(parents=True)
        self.output = work_dir.with_suffix('.log')
        self.process: subprocess.Popen | None = None

    def arguments(self, workers: int = 0) -> list[str]:
        """Those of tools/train.py, with a number of loader processes."""
        config = ROOT / 'configs' / 'demo' / self.method.config
        given = options(self.method, self.data, self.epochs, workers)
        return [str(config), '--work-dir', str(self.work_dir), '--cfg-options', *given]

    def start(self, resume: bool = False, workers: int = 0) -> None:
        """Start or resume the run, in a process group of its own as a terminal does."""
        self.known = set(self.work_dir.iterdir())
        command = [sys.executable, str(ROOT / 'tools' / 'train.py'), *self.arguments(workers)]
        command += ['--resume'] if resume else []
        environment = dict(os.environ, OMP_NUM_THREADS='1', CUDA_VISIBLE_DEVICES='')
        with self.output.open('a') as output:
            self.process = subprocess.Popen(
                command, cwd=self.work_dir, env=environment, stdout=output, stderr=output, start_new_session=True
            )

    def steps(self) -> list[int]:
        """Iterations that were logged since the last start."""
        folders = [path for path in set(self.work_dir.iterdir()) - self.known if path.is_dir()]
        files = [path / 'vis_data' / 'scalars.json' for path in folders]
        lines = [line for file in files if file.exists() for line in file.read_text().splitlines(keepends=True)]
        # The last line may be half written. Lines of validation have no loss
        return [json.loads(line)['step'] for line in lines if line.endswith('\n') and '"loss"' in line]

    def wait_until(self, condition: Callable[[], Any], interval: float = 0.005) -> Any:
        """Wait for a condition while the run goes on; returns its value."""
        end = time.monotonic() + PATIENCE
        while not (value := condition()):
            if self.process.poll() is not None:
                raise RuntimeError(f'the run ended too early, with {self.process.returncode}:\n{self.tail()}')
            if time.monotonic() > end:
                self.close()
                raise RuntimeError(f'nothing happened for {PATIENCE} s:\n{self.tail()}')
            if interval:
                time.sleep(interval)
        return value

    def finish(self) -> int:
        """Wait for the end of the run and of its loader processes; returns the exit status."""
        try:
            status = self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            status = None
        end = time.monotonic() + 30  # loader processes notice within five seconds that their parent is gone
        while group_exists(self.process.pid) and status is not None:
            if time.monotonic() > end:
                status = None
            time.sleep(0.01)
        self.close()
        if status is None:
            raise RuntimeError(f'the run, or a loader process, did not end:\n{self.tail()}')
        return status

    def close(self) -> None:
        """End what is left of the run."""
        if self.process is not None:
            if group_exists(self.process.pid):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def kill(self, kind: str, step: int, rng: random.Random) -> dict[str, Any]:
        """Kill the run after an iteration, and look at what it left behind.

        Args:
            kind (str): Of :data:`KINDS`. Signals that ask go to all processes, as Slurm and terminals send them, and
                SIGKILL to the main process, as a kernel that is out of memory does.
            step (int): Iteration after which the run is killed, at a random time or inside the next save.
            rng (random.Random): Draws the time.
        Returns:
            dict[str, Any]: What is known of the kill, to be printed and stored.
        """
        self.wait_until(lambda: (steps := self.steps()) and steps[-1] >= step)
        if kind == 'SIGKILL in a save':
            self._wait_for_a_save(rng)
        else:
            time.sleep(rng.uniform(0, 0.1))
        number = getattr(signal, kind.split()[0])
        if number == signal.SIGKILL:
            os.kill(self.process.pid, number)
        else:
            os.killpg(self.process.pid, number)
        status = self.finish()
        return dict(
            kind=kind,
            step=(self.steps() or [0])[-1],
            status=status,
            part_bytes=max((path.stat().st_size for path in self.work_dir.glob(PART)), default=None),
            half_written=half_written(self.work_dir),
            saved=saved_iteration(self.work_dir),
        )

    def _wait_for_a_save(self, rng: random.Random) -> None:
        """Wait until a file is being written, which takes some 10 ms: without a pause, which may last longer."""
        self.wait_until(lambda: any(self.work_dir.glob(PART)), interval=0)
        end = time.monotonic() + rng.uniform(0, 0.01)
        while time.monotonic() < end:
            pass

    def tail(self) -> str:
        """The end of what the run printed."""
        return self.output.read_text()[-3000:]

    @property
    def last(self) -> Path:
        """The final checkpoint."""
        name = f'epoch_{self.epochs}.pth' if self.method.by_epoch else f'iter_{self.total}.pth'
        return self.work_dir / name


def group_exists(group: int) -> bool:
    """Whether a process group has a process."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def half_written(work_dir: Path) -> list[str]:
    """Names of the checkpoints that cannot be read."""
    names = []
    for path in sorted(work_dir.glob('*.pth')):
        try:
            read_checkpoint(path)
        except ValueError:
            names.append(path.name)
    return names


def saved_iteration(work_dir: Path) -> int:
    """Iteration that the run resumes after: that of the file which ``last_checkpoint`` names, else of the newest."""
    pointer = work_dir / 'last_checkpoint'
    files = [Path(pointer.read_text())] if pointer.exists() else work_dir.glob('*.pth')
    return max((read_checkpoint(path)['meta']['iter'] for path in files), default=0)


def differences(one: Path, other: Path) -> list[str]:
    """Names of the weights, optimizer moments and logged values in which two checkpoints differ."""
    return sorted({name for name, _ in contents(one).items() ^ contents(other).items()})


def contents(path: Path) -> dict[str, bytes]:
    """Weights, optimizer state and the history of all logged values except times, as bytes."""
    content = read_checkpoint(path)
    tensors = {f'state_dict.{name}': value for name, value in content['state_dict'].items()}
    for index, state in content['optimizer']['state'].items():
        tensors |= {f'optimizer.{index}.{name}': torch.as_tensor(value) for name, value in state.items()}
    for name, arrays in content['run']['history'].items():
        if 'time' not in name and 'seconds' not in name:
            tensors[f'history.{name}'] = arrays[0]
    return {name: value.numpy().tobytes() for name, value in tensors.items()}


def kill_and_resume(
    method: Method, whole: Run, folder: Path, kinds: list[str], rng: random.Random, first_workers: int = 0
) -> dict[str, Any]:
    """Kill a run several times, resume it until its end, and compare it with the run without a break.

    Args:
        method (Method): What to train.
        whole (Run): The finished run without a break; has an epoch more than there are kills.
        folder (Path): New folder for the run.
        kinds (list[str]): Of the kills, one in each epoch.
        rng (random.Random): Draws their times.
        first_workers (int): Loader processes of the first start; they alternate with none. Default 0.
    Returns:
        dict[str, Any]: The row of the table, with all kills and problems.
    """
    run = Run(method, whole.data, folder, whole.epochs)
    kills, problems, saved = [], [], 0
    with closing(run):
        for index in range(len(kinds) + 1):
            workers = first_workers if index % 2 == 0 else LOADER_PROCESSES - first_workers
            run.start(resume=index > 0, workers=workers)
            if index < len(kinds):
                kill = run.kill(kinds[index], index * LENGTH + rng.randrange(1, LENGTH), rng) | dict(workers=workers)
                kills.append(kill)
                expected = KINDS[kill['kind']]
                if kill['status'] != expected:
                    problems.append(f'{kill["kind"]}: exit status {kill["status"]}, not {expected}\n{run.tail()}')
                if expected > 0 and kill['saved'] != kill['step']:
                    problems.append(f'{kill["kind"]} after iteration {kill["step"]}: saved at {kill["saved"]}')
                problems += [f'{kill["kind"]}: {name} is half written' for name in kill['half_written']]
            elif status := run.finish():
                problems.append(f'exit status {status} of the finished run:\n{run.tail()}')
            steps = run.steps()
            if steps != list(range(saved + 1, saved + 1 + len(steps))) or (not steps and saved < run.total):
                problems.append(f'resumed after iteration {saved}, but the log has {steps}')
            saved = kills[-1]['saved']
    different = differences(whole.last, run.last) if run.last.exists() else ['no final checkpoint']
    problems += [f'differs: {", ".join(different[:5])}'] * bool(different)
    problems += [f'{path.name} was left behind' for path in run.work_dir.glob('.*.part')]
    return dict(
        method=method.name,
        iterations=whole.total,
        kinds=dict(Counter(kill['kind'] for kill in kills)),
        parts=[
            kill['part_bytes'] for kill in kills if kill['status'] == -signal.SIGKILL and kill['part_bytes'] is not None
        ],
        checkpoint_bytes=whole.last.stat().st_size,
        resumed=len(kills),
        half_written=sum(len(kill['half_written']) for kill in kills),
        equal=not different,
        kills=kills,
        problems=problems,
    )


def print_table(rows: list[dict[str, Any]]) -> None:
    """Print a row for each method, and all problems."""
    print(f'| method | {" | ".join(KINDS)} | left a part of a save | resumed | half-written files | equal |')
    print('|---' * (len(KINDS) + 5) + '|')
    for row in rows:
        counts = ' | '.join(str(row['kinds'].get(kind, 0)) for kind in KINDS)
        print(
            f'| {row["method"]} | {counts} | {len(row["parts"])} | {row["resumed"]} | {row["half_written"]} | '
            f'{"yes" if row["equal"] else "no"} |'
        )
    for row in rows:
        for problem in row['problems']:
            print(f'{row["method"]}: {problem}')


def main(arguments: list[str] | None = None) -> int:
    """Run all methods; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--kills', type=int, default=20, help='kills of all methods together (default: 20)')
    parser.add_argument('--seed', type=int, default=0, help='of the times of the kills (default: 0)')
    parser.add_argument('--out', type=Path, help='JSON file to write')
    args = parser.parse_args(arguments)
    if args.kills < len(METHODS):
        parser.error(f'--kills is {args.kills}, but each of {len(METHODS)} methods needs one')
    MMLogger.get_current_instance().setLevel('ERROR')  # what is read of each file
    rng, began, rows = random.Random(args.seed), time.monotonic(), []
    with tempfile.TemporaryDirectory() as name:
        data = make_data(Path(name) / 'data')
        for index, method in enumerate(METHODS):
            numbers = range(index * args.kills // len(METHODS), (index + 1) * args.kills // len(METHODS))
            kinds = [list(KINDS)[number % len(KINDS)] for number in numbers]
            rng.shuffle(kinds)
            with closing(Run(method, data, Path(name) / f'{index}-whole', len(kinds) + 1)) as whole:
                whole.start()
                if whole.finish():
                    raise RuntimeError(whole.tail())
            workers = LOADER_PROCESSES * (index % 2)
            rows.append(kill_and_resume(method, whole, Path(name) / f'{index}-parts', kinds, rng, workers))
            print(f'{method.name}: {", ".join(kinds)}', file=sys.stderr)
    print_table(rows)
    failed = any(row['problems'] for row in rows)
    if args.out:
        seconds = round(time.monotonic() - began)
        report = dict(environment=environment('cpu'), seed=args.seed, seconds=seconds, failed=failed, methods=rows)
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(report, indent=1) + '\n')
    return int(failed)


if __name__ == '__main__':
    sys.exit(main())
