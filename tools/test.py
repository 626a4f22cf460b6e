"""Evaluate a checkpoint with any config of this project, or of MMPretrain, MMDetection and MMSegmentation."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from mmengine.config import Config, ConfigDict, DictAction
from mmengine.registry import RUNNERS

from mm_ummae.checkpoints import CheckpointError
from mm_ummae.datasets.damaged import DataError

RUNNER = 'mm_ummae.ResumableRunner'  # reads checkpoints without executing code


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument('--work-dir', help='folder of the results (default: work_dirs/<config name>)')
    parser.add_argument('--show-dir', help='write images of the predictions into this folder below the work folder')
    parser.add_argument('--tta', action='store_true', help="merge the views of the config's tta_pipeline (tta_model)")
    parser.add_argument(
        '--format-only',
        metavar='PREFIX',
        help="write CocoMetric's results to PREFIX.bbox.json and PREFIX.segm.json and evaluate nothing",
    )
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        help='override config values: key=value, or a.b.c=value',
    )
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none')
    # torch.distributed.launch, which `mim test --launcher pytorch` calls, appends it; the environment has it as well
    parser.add_argument('--local_rank', '--local-rank', type=int, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def load_config(args: argparse.Namespace) -> Config:
    """Read the config and apply the command line.

    Raises:
        ValueError: If an option needs something that the config does not set.
    """
    cfg = Config.fromfile(args.config)
    cfg.launcher = args.launcher
    if args.cfg_options:
        cfg.merge_from_dict(args.cfg_options)
    cfg.work_dir = args.work_dir or cfg.get('work_dir') or f'work_dirs/{Path(args.config).stem}'
    cfg.load_from = args.checkpoint
    cfg.setdefault('runner_type', RUNNER)
    if args.show_dir:
        draw_predictions(cfg, str(Path(cfg.work_dir) / args.show_dir))
    if args.tta:
        augment(cfg)
    if args.format_only:
        write_results(cfg, args.format_only)
    if cfg.get('test_dataloader') is None:
        raise ValueError(
            f'{args.config} sets no test_dataloader: there is nothing to evaluate. Reconstructions of a pre-training '
            'model are drawn by tools/visualize.py, its features by tools/visualize_features.py'
        )
    return cfg


def draw_predictions(cfg: Config, folder: str) -> None:
    """Switch the host's visualization hook on."""
    hook = cfg.get('default_hooks', {}).get('visualization')
    if hook is None or cfg.get('visualizer') is None:
        missing = 'default_hooks.visualization' if hook is None else 'visualizer'
        raise ValueError(f'--show-dir needs {missing}, which {cfg.filename} does not set')
    if class_name(hook) == 'VisualizationHook':  # MMPretrain's, which draws every 5000th image by default
        hook.update(enable=True, interval=1)
    else:  # those of MMDetection and MMSegmentation
        hook.draw = True
    cfg.visualizer.save_dir = folder


def augment(cfg: Config) -> None:
    """Wrap the model in ``tta_model`` and read the test images with ``tta_pipeline``."""
    missing = [key for key in ('tta_model', 'tta_pipeline') if key not in cfg]
    if missing:
        raise ValueError(f'--tta needs {" and ".join(missing)}, which {cfg.filename} does not set')
    cfg.model = ConfigDict(**cfg.tta_model, module=cfg.model)
    dataset = cfg.test_dataloader.dataset
    while 'dataset' in dataset:  # of a wrapper, such as RepeatDataset
        dataset = dataset.dataset
    dataset.pipeline = cfg.tta_pipeline


def write_results(cfg: Config, prefix: str) -> None:
    """Let CocoMetric write its results, for images without annotations and for servers that evaluate."""
    evaluator = cfg.get('test_evaluator')
    if class_name(evaluator) != 'CocoMetric':
        found = evaluator.get('type') if isinstance(evaluator, dict) else evaluator
        raise ValueError(f'--format-only needs a CocoMetric as test_evaluator, but in {cfg.filename} it is {found}')
    evaluator.update(format_only=True, outfile_prefix=prefix)
    Path(prefix).parent.mkdir(parents=True, exist_ok=True)


def class_name(component: Any) -> str | None:
    """Name of a component's class without its scope; None unless it is a dict with a ``type``.

    The type is a string, such as ``mmdet.CocoMetric``, or in MMEngine's pure-Python configs the class itself.
    """
    kind = component.get('type') if isinstance(component, dict) else None
    return kind.rpartition('.')[2] if isinstance(kind, str) else getattr(kind, '__name__', None)


def main(arguments: list[str] | None = None) -> dict[str, float]:
    """Evaluate; returns the metrics."""
    runner = RUNNERS.build(load_config(parse_args(arguments)))
    try:
        return runner.test()
    except (CheckpointError, DataError, FileNotFoundError) as error:
        raise SystemExit(f'error: {error}') from error


if __name__ == '__main__':
    main()
