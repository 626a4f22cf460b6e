"""tools/train.py: options, resumption after a kill, training through mim, and the launchers."""

from __future__ import annotations

import math
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import mmpretrain
import pytest
import torch
from mmengine.config import Config

from tests.runs import CLASSIFY, ITERATIONS, PRETRAIN, ROOT, logged, pretrain_options

TOOLS = ROOT / 'tools'
EPOCHS = 3  # of the interrupted run
PURE_PYTHON = """
from mmengine.config import read_base
from torch.optim import AdamW
optim_wrapper = dict(optimizer=dict(type=AdamW, lr=1e-3))
"""


# Options


def test_defaults(config_of: Callable[..., Config]) -> None:
    cfg = config_of('train', PRETRAIN)
    assert cfg.work_dir == f'work_dirs/{PRETRAIN.stem}' and cfg.launcher == 'none' and cfg.runner_class == 'Runner'
    assert cfg.load_from is None and cfg.resume is False and cfg.optim_wrapper.type == 'OptimWrapper'


def test_options(config_of: Callable[..., Config], tmp_path: Path) -> None:
    cfg = config_of('train', PRETRAIN, '--work-dir', tmp_path, '--amp', '--resume', '--launcher', 'pytorch')
    assert (cfg.work_dir, cfg.launcher, cfg.resume, cfg.load_from) == (str(tmp_path), 'pytorch', True, None)
    assert (cfg.optim_wrapper.type, cfg.optim_wrapper.loss_scale) == ('AmpOptimWrapper', 'dynamic')
    cfg = config_of('train', PRETRAIN, '--resume', 'epoch_3.pth')
    assert cfg.resume is True and cfg.load_from == 'epoch_3.pth'
    cfg = config_of('train', CLASSIFY, '--cfg-options', 'model.backbone.init_cfg=None')
    assert cfg.model.backbone.init_cfg is None
    # As torch.distributed.launch calls it, which mim uses
    assert config_of('train', PRETRAIN, '--launcher', 'pytorch', '--local-rank=1').launcher == 'pytorch'


def test_auto_scale_lr(config_of: Callable[..., Config], tool: Callable[[str], ModuleType]) -> None:
    full = ROOT / 'configs' / 'ummae' / 'ummae_swin-tiny_8xb128x4-amp-coslr-200e_in1k-256px.py'
    assert config_of('train', full, '--auto-scale-lr').auto_scale_lr == dict(base_batch_size=1024, enable=True)
    with pytest.raises(ValueError, match=rf'--auto-scale-lr needs auto_scale_lr\.base_batch_size.*{PRETRAIN.stem}'):
        tool('train').main([str(PRETRAIN), '--auto-scale-lr'])


def test_runner_type_selects_the_runner(config_of: Callable[..., Config]) -> None:
    cfg = config_of('train', PRETRAIN, '--cfg-options', 'runner_type=mm_ummae.ShardedRunner')
    assert cfg.runner_class == 'ShardedRunner'


def test_zero_sets_optimizer_and_runner(config_of: Callable[..., Config], tmp_path: Path) -> None:
    """In pure-Python configs, too, where the type of the optimizer is a class."""
    (tmp_path / 'pure.py').write_text(PURE_PYTHON)
    for path in (PRETRAIN, tmp_path / 'pure.py'):
        cfg = config_of('train', path, '--zero', '--launcher', 'pytorch')
        optimizer = cfg.optim_wrapper.optimizer
        assert (optimizer.type, optimizer.optimizer_type) == ('ZeroRedundancyOptimizer', 'AdamW')
        assert cfg.runner_class == 'ShardedRunner'


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ((), r'--launcher is none, but --zero needs several processes: use tools/dist_train\.sh'),
        (
            ('--launcher', 'pytorch', '--cfg-options', 'runner_type=Other'),
            r"runner_type is 'Other', but --zero needs 'mm_ummae\.ShardedRunner'",
        ),
    ],
)
def test_zero_refuses_what_does_not_fit(options: tuple, message: str, tool: Callable[[str], ModuleType]) -> None:
    with pytest.raises(ValueError, match=message):
        tool('train').main([str(PRETRAIN), '--zero', *options])


# Runs


@pytest.mark.integration
def test_a_killed_run_resumes_after_its_last_checkpoint(demo_data: Path, tmp_path: Path) -> None:
    """Epoch, iteration and learning rate continue, and the run finishes."""
    command = [sys.executable, str(TOOLS / 'train.py'), str(PRETRAIN), '--work-dir', str(tmp_path)]
    options = ['--cfg-options', *pretrain_options(demo_data, EPOCHS, EPOCHS)]
    with (tmp_path / 'output.txt').open('w') as output:
        process = subprocess.Popen([*command, *options], stdout=output, stderr=subprocess.STDOUT)
        try:
            while not (tmp_path / 'last_checkpoint').exists():
                assert process.poll() is None, (tmp_path / 'output.txt').read_text()
                time.sleep(0.02)
        finally:
            process.kill()
            process.wait()
    assert not (tmp_path / f'epoch_{EPOCHS}.pth').exists(), 'finished before it was killed'
    done = subprocess.run([*command, '--resume', *options], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr

    killed, second = sorted(path for path in tmp_path.iterdir() if path.is_dir())
    records = logged(second)
    first = records[0]['epoch']
    assert logged(killed)[0]['step'] == 1 and 1 < first <= EPOCHS
    assert [each['step'] for each in records] == list(range((first - 1) * ITERATIONS + 1, EPOCHS * ITERATIONS + 1))
    assert [each['epoch'] for each in records] == [e for e in range(first, EPOCHS + 1) for _ in range(ITERATIONS)]
    total = (EPOCHS - 1) * ITERATIONS
    for each in records:
        decay = 0.5 * (1 + math.cos(math.pi * (each['step'] - 1 - ITERATIONS) / total))
        assert each['lr'] == pytest.approx(1.5e-3 * decay, rel=1e-3)
    log = next(second.glob('*.log')).read_text()
    assert re.search(rf'resumed epoch: {first - 1}, iter: {(first - 1) * ITERATIONS}', log)
    checkpoint = torch.load(tmp_path / f'epoch_{EPOCHS}.pth', weights_only=False)
    assert checkpoint['meta']['iter'] == EPOCHS * ITERATIONS
    assert all(value.isfinite().all() for value in checkpoint['state_dict'].values())


@pytest.mark.integration
def test_mim_trains_by_the_script_of_the_host(demo_data: Path, tmp_path: Path) -> None:
    """MMPretrain's tools/train.py with our config, from another folder."""
    command = [sys.executable, '-m', 'mim', 'train', 'mmpretrain', str(PRETRAIN), '--work-dir', 'run']
    command += ['--cfg-options', *pretrain_options(demo_data, 1)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f'{Path(mmpretrain.__file__).parent / ".mim" / "tools" / "train.py"} {PRETRAIN}' in done.stdout
    assert (tmp_path / 'run' / 'epoch_1.pth').is_file()
    (run,) = (path for path in (tmp_path / 'run').iterdir() if path.is_dir())
    assert [each['step'] for each in logged(run)] == list(range(1, ITERATIONS + 1))


# Launchers

MACHINES = dict(NNODES='8', NODE_RANK='3', MASTER_ADDR='10.0.0.1', PORT='29400')
TORCHRUN = '-m torch.distributed.run --nnodes=8 --node_rank=3 --master_addr=10.0.0.1 --master_port=29400'
CLUSTER = dict(GPUS='16', GPUS_PER_NODE='8', CPUS_PER_TASK='4', SRUN_ARGS='--time=1:00 --exclusive', PYTHON='python3')
SRUN = '--cpus-per-task=4 --kill-on-bad-exit=1 --time=1:00 --exclusive python3 -u'


@pytest.mark.parametrize(
    ('script', 'arguments', 'settings', 'expected'),
    [
        (
            'dist_train',
            'CONFIG 8 --zero',
            MACHINES,
            f'{TORCHRUN} --nproc_per_node=8 {TOOLS}/train.py CONFIG --launcher pytorch --zero',
        ),
        (
            'dist_test',
            'CONFIG FILE 8 --tta',
            MACHINES,
            f'{TORCHRUN} --nproc_per_node=8 {TOOLS}/test.py CONFIG FILE --launcher pytorch --tta',
        ),
        (
            'slurm_train',
            'QUEUE JOB CONFIG RUN --amp',
            CLUSTER,
            f'--partition=QUEUE --job-name=JOB --gres=gpu:8 --ntasks=16 --ntasks-per-node=8 {SRUN} '
            f'{TOOLS}/train.py CONFIG --work-dir RUN --launcher slurm --amp',
        ),
        (
            'slurm_test',
            'QUEUE JOB CONFIG FILE --tta',
            {**CLUSTER, 'GPUS': '2'},  # fewer than a node has
            f'--partition=QUEUE --job-name=JOB --gres=gpu:2 --ntasks=2 --ntasks-per-node=2 {SRUN} '
            f'{TOOLS}/test.py CONFIG FILE --launcher slurm --tta',
        ),
    ],
)
def test_launchers(script: str, arguments: str, settings: dict[str, str], expected: str, tmp_path: Path) -> None:
    """What reaches torch.distributed.run and srun, and the usage without arguments."""
    for name in ('python', 'srun'):
        (tmp_path / name).write_text('#!/bin/sh\necho "$@"\n')
        (tmp_path / name).chmod(0o755)
    environment = {**os.environ, 'PATH': f'{tmp_path}:{os.environ["PATH"]}', **settings}
    command = ['bash', str(TOOLS / f'{script}.sh')]
    done = subprocess.run([*command, *arguments.split()], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == expected.split()
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 2 and f'bash tools/{script}.sh ' in done.stderr
