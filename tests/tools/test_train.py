"""tools/train.py: options, resumption after a kill, and the launchers."""

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

from tests.runs import CLASSIFY, ITERATIONS, PRETRAIN, ROOT, leaf, logged, pretrain_options

TOOLS = ROOT / 'tools'
EPOCHS = 3  # of the interrupted run
PURE_PYTHON = """
from mmengine.config import read_base
from torch.optim import AdamW
optim_wrapper = dict(optimizer=dict(type=AdamW, lr=1e-3))
"""


# Options


def test_defaults(config_of: Callable[..., Config], tmp_path: Path) -> None:
    cfg = config_of('train', PRETRAIN)
    assert cfg.work_dir == f'work_dirs/{PRETRAIN.stem}' and cfg.launcher == 'none'
    assert cfg.load_from is None and cfg.resume is False and cfg.optim_wrapper.type == 'OptimWrapper'
    (tmp_path / 'other.py').write_text('model = dict()')  # any config gets the safe runner
    assert cfg.runner_class == config_of('train', tmp_path / 'other.py').runner_class == 'ResumableRunner'


def test_options(config_of: Callable[..., Config], tmp_path: Path) -> None:
    cfg = config_of('train', PRETRAIN, '--work-dir', tmp_path, '--amp', '--resume', '--launcher', 'pytorch')
    assert (cfg.work_dir, cfg.launcher, cfg.resume, cfg.load_from) == (str(tmp_path), 'pytorch', True, None)
    assert (cfg.optim_wrapper.type, cfg.optim_wrapper.loss_scale) == ('AmpOptimWrapper', 'dynamic')
    # As torch.distributed.launch calls it, which mim uses
    cfg = config_of('train', PRETRAIN, '--resume', 'epoch_3.pth', '--launcher', 'pytorch', '--local-rank=1')
    assert (cfg.launcher, cfg.resume, cfg.load_from) == ('pytorch', True, 'epoch_3.pth')
    options = ('model.backbone.init_cfg=None', 'runner_type=mm_ummae.ShardedRunner')
    cfg = config_of('train', CLASSIFY, '--cfg-options', *options)
    assert cfg.model.backbone.init_cfg is None and cfg.runner_class == 'ShardedRunner'
    cfg = config_of('train', leaf('ummae/ummae_swin-tiny_8xb128x4-*'), '--auto-scale-lr')
    assert cfg.auto_scale_lr == dict(base_batch_size=1024, enable=True)


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
        ('--zero', r'--launcher is none, but --zero needs several processes: use tools/dist_train\.sh'),
        (
            '--zero --launcher pytorch --cfg-options runner_type=Other',
            r"runner_type is 'Other', but --zero needs 'mm_ummae\.ShardedRunner'",
        ),
        ('--auto-scale-lr', rf'--auto-scale-lr needs auto_scale_lr\.base_batch_size, which .*{PRETRAIN.stem}'),
    ],
)
def test_options_that_do_not_fit(options: str, message: str, tool: Callable[[str], ModuleType]) -> None:
    with pytest.raises(SystemExit, match=message):
        tool('train').main([str(PRETRAIN), *options.split()])


# Runs


@pytest.mark.integration
@pytest.mark.slow
def test_a_killed_run_resumes_after_its_last_checkpoint(
    tool: Callable[[str], ModuleType], demo_data: Path, tmp_path: Path
) -> None:
    """MMPretrain's script, which `mim train mmpretrain` runs, trains our config as well; our script continues."""
    host = Path(mmpretrain.__file__).parent / '.mim' / 'tools' / 'train.py'
    words = [str(PRETRAIN), '--work-dir', str(tmp_path), '--cfg-options', *pretrain_options(demo_data, EPOCHS)]
    with (tmp_path / 'output.txt').open('w') as output:
        process = subprocess.Popen([sys.executable, host, *words], cwd=tmp_path, stdout=output, stderr=output)
        try:
            while not (tmp_path / 'last_checkpoint').exists():
                assert process.poll() is None, (tmp_path / 'output.txt').read_text()
                time.sleep(0.02)
        finally:
            process.kill()
            process.wait()
    assert not (tmp_path / f'epoch_{EPOCHS}.pth').exists(), 'finished before it was killed'
    tool('train').main([*words, '--resume'])

    killed, second = sorted(path for path in tmp_path.iterdir() if path.is_dir())
    records = logged(second)
    first = records[0]['epoch']
    assert logged(killed)[0]['step'] == 1 and 1 < first <= EPOCHS
    assert [each['step'] for each in records] == list(range((first - 1) * ITERATIONS + 1, EPOCHS * ITERATIONS + 1))
    assert [each['epoch'] for each in records] == [e for e in range(first, EPOCHS + 1) for _ in range(ITERATIONS)]
    total = (EPOCHS - 1) * ITERATIONS
    for each in records:
        decay = 0.5 * (1 + math.cos(math.pi * (each['step'] - 1 - ITERATIONS) / total))
        assert each['lr'] == pytest.approx(4e-4 * decay, rel=1e-3)
    log = next(second.glob('*.log')).read_text()
    assert re.search(rf'resumed epoch: {first - 1}, iter: {(first - 1) * ITERATIONS}', log)
    checkpoint = torch.load(tmp_path / f'epoch_{EPOCHS}.pth', weights_only=False)
    assert checkpoint['meta']['iter'] == EPOCHS * ITERATIONS
    assert all(value.isfinite().all() for value in checkpoint['state_dict'].values())


# Launchers

MACHINES = dict(NNODES='8', NODE_RANK='3', MASTER_ADDR='10.0.0.1', PORT='29400')
TORCHRUN = (
    '-m torch.distributed.run --nnodes=8 --node_rank=3 --master_addr=10.0.0.1 --master_port=29400 --nproc_per_node=8'
)
CLUSTER = dict(GPUS='16', GPUS_PER_NODE='8', CPUS_PER_TASK='4', SRUN_ARGS='--time=1:00 --exclusive', PYTHON='python3')
JOB = '--partition=QUEUE --job-name=JOB'
SRUN = '--cpus-per-task=4 --kill-on-bad-exit=1 --time=1:00 --exclusive python3 -u'


@pytest.mark.parametrize(
    ('command', 'settings', 'expected'),
    [
        (
            'dist_train CONFIG 8 --zero',
            MACHINES,
            f'{TORCHRUN} {TOOLS}/train.py CONFIG --launcher pytorch --zero',
        ),
        (
            'dist_test CONFIG FILE 8 --tta',
            MACHINES,
            f'{TORCHRUN} {TOOLS}/test.py CONFIG FILE --launcher pytorch --tta',
        ),
        (
            'slurm_train QUEUE JOB CONFIG RUN --amp',
            CLUSTER,
            f'{JOB} --gres=gpu:8 --ntasks=16 --ntasks-per-node=8 {SRUN} '
            f'{TOOLS}/train.py CONFIG --work-dir RUN --launcher slurm --amp',
        ),
        (
            'slurm_test QUEUE JOB CONFIG FILE --tta',
            {**CLUSTER, 'GPUS': '2'},  # fewer than a node has
            f'{JOB} --gres=gpu:2 --ntasks=2 --ntasks-per-node=2 {SRUN} '
            f'{TOOLS}/test.py CONFIG FILE --launcher slurm --tta',
        ),
    ],
)
def test_launchers(command: str, settings: dict[str, str], expected: str, tmp_path: Path) -> None:
    """What reaches torch.distributed.run and srun, and the usage without arguments."""
    for name in ('python', 'srun'):
        (tmp_path / name).write_text('#!/bin/sh\necho "$@"\n')
        (tmp_path / name).chmod(0o755)
    settings = {**os.environ, 'PATH': f'{tmp_path}:{os.environ["PATH"]}', **settings}
    script, *arguments = command.split()
    launch = ['bash', TOOLS / f'{script}.sh']
    done = subprocess.run([*launch, *arguments], env=settings, capture_output=True, text=True, check=True)
    assert done.stdout.split() == expected.split()
    done = subprocess.run(launch, env=settings, capture_output=True, text=True)
    assert done.returncode == 2 and f'bash tools/{script}.sh ' in done.stderr
