"""Train any config of this project, or of mmpretrain, mmdet and mmseg, with MMEngine's runner."""

from __future__ import annotations

import argparse
from pathlib import Path

from mmengine.config import Config, DictAction
from mmengine.dist import is_main_process
from mmengine.runner import Runner


class ShardedRunner(Runner):
    """MMEngine's runner, able to save the optimiser of ``--zero``, of which each process holds a share."""

    def save_checkpoint(self, *args, save_optimizer: bool = True, **kwargs) -> None:
        """Save a checkpoint; every process calls this.

        Args:
            args: Of MMEngine's runner.
            save_optimizer (bool): Whether to save the optimiser, whole. Default True.
            kwargs: Of MMEngine's runner.
        """
        # MMEngine's runner saves on the main process only. There `state_dict` gathers the shares, and would wait for
        # ever for processes that do not send theirs.
        if save_optimizer and not is_main_process():
            self.optim_wrapper.optimizer.consolidate_state_dict()
        super().save_checkpoint(*args, save_optimizer=save_optimizer, **kwargs)


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line; the options are those of OpenMMLab's own ``tools/train.py``, and ``--zero``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file')
    parser.add_argument('--work-dir', help='folder of logs and checkpoints (default: work_dirs/<config name>)')
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        help='go on from this checkpoint, or without a value from the newest in the work folder',
    )
    parser.add_argument('--amp', action='store_true', help='automatic mixed precision')
    parser.add_argument(
        '--zero', action='store_true', help="split the optimiser's state among the GPUs (ZeRO, stage 1)"
    )
    parser.add_argument('--auto-scale-lr', action='store_true', help='scale the learning rate by the batch size')
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        help='override config values: key=value, or a.b.c=value',
    )
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none')
    return parser.parse_args(arguments)


def load_config(args: argparse.Namespace) -> Config:
    """Read the config and apply the command line."""
    cfg = Config.fromfile(args.config)
    cfg.launcher = args.launcher
    if args.cfg_options:
        cfg.merge_from_dict(args.cfg_options)
    cfg.work_dir = args.work_dir or cfg.get('work_dir') or f'work_dirs/{Path(args.config).stem}'
    return cfg


def build_runner(args: argparse.Namespace) -> Runner:
    """Everything that trains, as the config and the command line say.

    Raises:
        ValueError: If an option does not fit the config or the launcher.
    """
    cfg = load_config(args)
    if args.amp:
        cfg.optim_wrapper.type = 'AmpOptimWrapper'
        cfg.optim_wrapper.setdefault('loss_scale', 'dynamic')
    if args.zero:
        if args.launcher == 'none':
            raise ValueError('--launcher is none, but --zero needs several processes: use tools/dist_train.sh')
        optimizer = cfg.optim_wrapper.optimizer
        optimizer.update(type='ZeroRedundancyOptimizer', optimizer_type=optimizer.type)
    if args.auto_scale_lr:
        if 'base_batch_size' not in cfg.get('auto_scale_lr', {}):
            raise ValueError(f'--auto-scale-lr needs auto_scale_lr.base_batch_size, which {args.config} does not set')
        cfg.auto_scale_lr.enable = True
    if args.resume:
        cfg.resume = True
        cfg.load_from = None if args.resume == 'auto' else args.resume
    return (ShardedRunner if args.zero else Runner).from_cfg(cfg)


def main(arguments: list[str] | None = None) -> None:
    """Train."""
    build_runner(parse_args(arguments)).train()


if __name__ == '__main__':
    main()
