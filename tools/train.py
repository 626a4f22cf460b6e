"""Train any config of this project, or of MMPretrain, MMDetection and MMSegmentation, with MMEngine's runner."""

from __future__ import annotations

import argparse
from pathlib import Path

from mmengine.config import Config, DictAction
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

from mm_ummae.checkpoints import CheckpointError
from mm_ummae.datasets.damaged import DataError

RUNNER = 'mm_ummae.ResumableRunner'
SHARDED_RUNNER = 'mm_ummae.ShardedRunner'


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line; the options are those of OpenMMLab's own ``tools/train.py``, and ``--zero``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file')
    parser.add_argument('--work-dir', help='folder of logs and checkpoints (default: work_dirs/<config name>)')
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        help='resume from this checkpoint, or without a value from the newest in the work folder',
    )
    parser.add_argument('--amp', action='store_true', help='automatic mixed precision')
    parser.add_argument('--zero', action='store_true', help='shard the optimizer state over the GPUs (ZeRO, stage 1)')
    parser.add_argument('--auto-scale-lr', action='store_true', help='scale the learning rate by the batch size')
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        help='override config values: key=value, or a.b.c=value',
    )
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none')
    # torch.distributed.launch, which `mim train --launcher pytorch` calls, appends it; the environment has it as well
    parser.add_argument('--local_rank', '--local-rank', type=int, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def load_config(args: argparse.Namespace) -> Config:
    """Read the config and apply the command line.

    Raises:
        ValueError: If an option does not fit the config or the launcher.
    """
    cfg = Config.fromfile(args.config)
    cfg.launcher = args.launcher
    if args.cfg_options:
        cfg.merge_from_dict(args.cfg_options)
    cfg.work_dir = args.work_dir or cfg.get('work_dir') or f'work_dirs/{Path(args.config).stem}'
    if args.amp:
        cfg.optim_wrapper.type = 'AmpOptimWrapper'
        cfg.optim_wrapper.setdefault('loss_scale', 'dynamic')
    if args.zero:
        shard_optimizer(cfg)
    cfg.setdefault('runner_type', RUNNER)
    if args.auto_scale_lr:
        if 'base_batch_size' not in cfg.get('auto_scale_lr', {}):
            raise ValueError(f'--auto-scale-lr needs auto_scale_lr.base_batch_size, which {args.config} does not set')
        cfg.auto_scale_lr.enable = True
    if args.resume:
        cfg.resume = True
        cfg.load_from = None if args.resume == 'auto' else args.resume
    return cfg


def shard_optimizer(cfg: Config) -> None:
    """Set the optimizer and the runner of ``--zero``."""
    if cfg.launcher == 'none':
        raise ValueError('--launcher is none, but --zero needs several processes: use tools/dist_train.sh')
    if cfg.get('runner_type', RUNNER) not in (RUNNER, SHARDED_RUNNER):
        raise ValueError(f'runner_type is {cfg.runner_type!r}, but --zero needs {SHARDED_RUNNER!r}: leave it out')
    kind = cfg.optim_wrapper.optimizer.type  # a class in pure-Python configs
    cfg.optim_wrapper.optimizer.update(
        type='ZeroRedundancyOptimizer', optimizer_type=kind if isinstance(kind, str) else kind.__name__
    )
    cfg.runner_type = SHARDED_RUNNER


def build_runner(args: argparse.Namespace) -> Runner:
    """The runner of the config and the command line: the config's ``runner_type``, by default ours."""
    return RUNNERS.build(load_config(args))


def main(arguments: list[str] | None = None) -> None:
    """Train."""
    runner = build_runner(parse_args(arguments))
    try:
        runner.train()
    except (CheckpointError, DataError) as error:
        raise SystemExit(f'error: {error}') from error


if __name__ == '__main__':
    main()
