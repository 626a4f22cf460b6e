"""Stock networks under Uniform Masking on the demo data: what frozen features are worth, before and after.

    python -m demo.networks [--arms ...] [--seeds 0 1 2] [--epochs 10]

Each arm pre-trains a small network of a host through ``UMBackbone`` with the data, schedule and settings of the demo's
pre-training, then probes the maps of strides 16 and 32 of whole images. Four to ten minutes per arm and seed on one
core; finished runs are kept, so that another call continues.
"""

from __future__ import annotations

import argparse
import io
import json
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from pprint import pformat
from typing import Any

from .chain import parse_args
from .make_data import make_demo_data
from .report import machine, spread, write_json
from .screen import SCREEN, keep_log_off, step
from .tasks import PRETRAIN, PRETRAIN_SIMMIM
from .training import CONFIGS, TrainingResult, run_training

with redirect_stdout(io.StringIO()):  # hosts print notes when they are imported
    from .probe import probe

SIZE = 128  # px
SWIN = dict(
    type='mmpretrain.SwinTransformer',
    arch=dict(embed_dims=32, depths=[2, 2, 2, 2], num_heads=[2, 4, 8, 16]),
    img_size=SIZE,
    window_size=4,  # to 128 px what 7 is to 224 px
    pad_small_map=True,
    drop_path_rate=0.0,
    out_indices=(2, 3),
)
SWIN_V2 = dict(
    SWIN,
    type='mmpretrain.SwinTransformerV2',
    arch=dict(embed_dims=32, depths=[2, 2, 2, 2], num_heads=[2, 4, 8, 16], extra_norm_every_n_blocks=0),
)
PVT_V2 = dict(
    type='mmdet.PyramidVisionTransformerV2',
    embed_dims=32,
    num_layers=[2, 2, 2, 2],
    drop_path_rate=0.0,
    out_indices=(2, 3),
)
TWINS = dict(
    type='mmpretrain.SVT',
    arch=dict(
        embed_dims=[32, 64, 128, 256],
        depths=[2, 2, 2, 2],
        num_heads=[1, 2, 4, 8],
        window_sizes=[4, 4, 4, 2],
        patch_sizes=[4, 2, 2, 2],
        strides=[4, 2, 2, 2],
        mlp_ratios=[4, 4, 4, 4],
        sr_ratios=[8, 4, 2, 1],
    ),
    drop_path_rate=0.0,
    out_indices=(2, 3),
)
CONVNEXT = dict(
    type='mmpretrain.ConvNeXt',
    arch=dict(depths=[2, 2, 2, 2], channels=[32, 64, 128, 256]),
    gap_before_final_norm=False,
    out_indices=(2, 3),
)
RESNET = dict(type='mmdet.ResNet', depth=50, base_channels=16, out_indices=(2, 3), norm_eval=False)

# The demo's settings before version 0.7: a quarter of the updates, at four times the learning rate
FEW_UPDATES = {'train_dataloader.batch_size': 64, 'optim_wrapper.optimizer.lr': 1.5e-3}


@dataclass(frozen=True)
class Arm:
    """A network and how it is pre-trained.

    Attributes:
        name (str): For tables.
        network (Mapping[str, Any]): Config in the host.
        backbone (Mapping[str, Any]): Options of ``UMBackbone``.
        simmim (bool): SimMIM instead of UM-MAE.
        size (int): Side of the images in pixels.
        options (Mapping[str, Any]): Other values of the config.
    """

    name: str
    network: Mapping[str, Any]
    backbone: Mapping[str, Any] = field(default_factory=dict)
    simmim: bool = False
    size: int = SIZE
    options: Mapping[str, Any] = field(default_factory=dict)


ARMS = {
    'swin_compact': Arm('Swin, compact positions', SWIN),
    'swin_224-px': Arm('Swin, windows of 7, 224 px', dict(SWIN, img_size=224, window_size=7), size=224),
    'swin-v2_compact': Arm('Swin V2, compact positions', SWIN_V2),
    'swin-v2_true': Arm('Swin V2, true positions', SWIN_V2, dict(true_positions=True)),
    'convnext': Arm('ConvNeXt', CONVNEXT),
    'pvt-v2': Arm('PVT v2', PVT_V2),
    'twins': Arm('Twins-SVT', TWINS),
    'resnet': Arm('ResNet-50', RESNET),
    'pvt-v2_few-updates': Arm('PVT v2, 64 images at 1.5e-3', PVT_V2, options=FEW_UPDATES),
    'swin_simmim': Arm('Swin, SimMIM', SWIN, simmim=True),
    'pvt-v2_simmim': Arm('PVT v2, SimMIM', PVT_V2, simmim=True),
}
# Beside the arms, one that was measured and is no longer offered
NAMES = {key: arm.name for key, arm in ARMS.items()} | {'swin_true': 'Swin, true positions (removed)'}


def pretrain(arm: Arm, title: str, seed: int, epochs: int, folder: Path, options: Mapping[str, Any]) -> TrainingResult:
    """Pre-train an arm; a finished run is kept.

    Args:
        arm (Arm): The arm.
        title (str): For the screen.
        seed (int): Of initial weights, order of the images and masks.
        epochs (int): Of the pre-training.
        folder (Path): Folder of its run.
        options (Mapping[str, Any]): Further config keys and values.
    Returns:
        TrainingResult: Of the run.
    """
    config = folder / 'config.py'
    folder.mkdir(parents=True, exist_ok=True)
    config.write_text(pretraining_config(arm))
    options = {
        'randomness.seed': seed,
        **options,
        'train_cfg.max_epochs': epochs,
        # A tenth is warm-up, as in the demo; MMEngine accepts fractions of an epoch here
        'param_scheduler.0.end': epochs / 10,
        'param_scheduler.1.begin': epochs / 10,
        'param_scheduler.1.end': epochs,
        'default_hooks.checkpoint.interval': epochs,
        'train_dataloader.dataset.pipeline.1.scale': arm.size,
        **arm.options,
    }
    return run_training(title, str(config), folder / 'pretrain', options, threads=1)


def frozen_accuracy(arm: Arm, checkpoint: str | None, data: Path, seed: int) -> dict[str, float]:
    """Accuracy in percent on the map of stride 16, ``linear`` and ``knn``, and on that of stride 32, ``..._32``."""
    backbone = dict(type='mm_ummae.UMBackbone', network=dict(arm.network), img_size=arm.size)
    found: dict[str, float] = {}
    for level, suffix in enumerate(('', '_32')):
        found |= {f'{name}{suffix}': value for name, value in probe(backbone, checkpoint, data, seed, level).items()}
    return found


def run_arm(key: str, seed: int, epochs: int, folder: Path, data: Path) -> dict[str, Any]:
    """Pre-train and probe an arm.

    Args:
        key (str): Key of ``ARMS``.
        seed (int): Of initial weights, order of the images and masks.
        epochs (int): Of the pre-training.
        folder (Path): Folder of its run.
        data (Path): From :func:`make_demo_data`.
    Returns:
        dict[str, Any]: ``seconds`` and ``loss`` of pre-training, :func:`frozen_accuracy` under ``random`` and
        ``trained``.
    """
    arm, title = ARMS[key], f'seed {seed}, {ARMS[key].name}'
    run = pretrain(arm, title, seed, epochs, folder, {'train_dataloader.dataset.data_root': data / 'imagenet'})
    with step(f'{title}, frozen features'):
        random, trained = (
            frozen_accuracy(arm, checkpoint, data / 'imagenet', seed) for checkpoint in (None, run.checkpoint)
        )
    return dict(seconds=run.seconds, loss=run.metrics['loss'], random=random, trained=trained)


def pretraining_config(arm: Arm) -> str:
    """Text of a config that inherits the demo's pre-training."""
    base = CONFIGS / (PRETRAIN_SIMMIM if arm.simmim else PRETRAIN)
    token = 'mask_token' if arm.simmim else 'secondary_token'
    width = width_of(arm.network)
    backbone = dict(
        _delete_=True, type='mm_ummae.UMBackbone', network=dict(arm.network), img_size=arm.size, **arm.backbone
    ) | {token: True}
    model: dict[str, Any] = dict(backbone=backbone)
    if arm.simmim:
        model['head'] = dict(in_channels=width)
    else:
        model['neck'] = dict(in_channels=width, img_size=arm.size)
    return f'_base_ = {str(base)!r}\nmodel = {pformat(model)}\n'


def width_of(network: Mapping[str, Any]) -> int:
    """Channels of the last map."""
    if network['type'].endswith('ResNet'):
        return 32 * network['base_channels']
    arch = network.get('arch', {})
    return arch['channels'][-1] if 'channels' in arch else 256


def table(results: Mapping[str, Sequence[Mapping[str, float]]]) -> str:
    """Markdown table: random weights -> pre-trained, mean and range over seeds."""
    keys = ('linear', 'knn', 'linear_32', 'knn_32')
    titles = ('linear, stride 16', '10-NN, stride 16', 'linear, stride 32', '10-NN, stride 32')
    lines = [f'| network | seeds | loss | {" | ".join(titles)} |', '|---' * (len(keys) + 3) + '|']
    for key, seeds in results.items():
        cells = [' -> '.join(spread([s[k][m] for s in seeds], 1) for k in ('random', 'trained')) for m in keys]
        loss = spread([s['loss'] for s in seeds], 3)
        lines.append(f'| {NAMES[key]} | {len(seeds)} | {loss} | {" | ".join(cells)} |')
    return '\n'.join(lines)


def networks_table(content: Mapping[str, Any]) -> str:
    """The table of a results file."""
    arms = {key: [seed[key] for seed in content['seeds'].values() if key in seed] for key in NAMES}
    return table({key: seeds for key, seeds in arms.items() if seeds})


def main(arguments: list[str] | None = None) -> None:
    """Run what is missing; write and print the table and the numbers."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2], help='default: 0 1 2')
    parser.add_argument('--epochs', type=int, default=10, help='of pre-training (default: %(default)s)')
    parser.add_argument('--arms', nargs='+', choices=ARMS, default=list(ARMS), help='default: all')
    args = parse_args(parser, 'work_dirs/networks', arguments)
    record = args.out / 'networks.json'
    results = json.loads(record.read_text()) if record.exists() else dict(seeds={})
    keep_log_off()
    with SCREEN:
        with step('data'):
            data = {
                size: make_demo_data(
                    args.data if size == SIZE else args.data.with_name(f'{args.data.name}_{size}px'), image_size=size
                )
                for size in {ARMS[key].size for key in args.arms}
            }
        environment = machine()
        for seed in args.seeds:
            for key in args.arms:
                measured = run_arm(key, seed, args.epochs, args.out / f'seed{seed}' / key, data[ARMS[key].size])
                results = json.loads(record.read_text()) if record.exists() else results
                results['seeds'].setdefault(str(seed), {})[key] = measured
                write_json(record, results | dict(environment=environment, epochs=args.epochs))
    text = networks_table(results)
    (args.out / 'networks.md').write_text(text + '\n')
    print(f'\n{text}\n\nresults in {args.out}')


if __name__ == '__main__':
    main()
