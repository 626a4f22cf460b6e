"""What a network costs: parameters, multiply-adds, seconds and memory for a picture.

The parts do not know each other: :func:`build_network` and :class:`Prediction` make something to measure,
:func:`count_multiply_adds`, :func:`time_interleaved` and :func:`peak_memory` measure anything that can be called,
:func:`environment` says where, :func:`markdown_table` and :func:`write_json` report. :func:`benchmark` puts them
together for predictions of whole detectors, segmentors and classifiers.
"""

from __future__ import annotations

import copy
import json
import os
import platform
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.hub import get_config
from mmengine.logging import MMLogger
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, TRANSFORMS, DefaultScope
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from mm_ummae.compatibility import HOSTS, installed_version
from mm_ummae.version import __version__

# What makes a data sample of a picture, by the default scope of a config
PACKERS = {'mmdet': 'PackDetInputs', 'mmseg': 'PackSegInputs', 'mmpretrain': 'PackInputs'}
DTYPES = {'float32': None, 'float16': torch.float16, 'bfloat16': torch.bfloat16}  # of autocast; None is without
SEED = 0  # of the weights and of the picture
ROOT = Path(__file__).resolve().parents[1]


# Something to measure


def read_config(name: str | Path) -> Config:
    """Read a config file, or one that an installed host brings.

    Args:
        name (str | Path): A file, or ``host::path`` as in ``mmdet::swin/mask-rcnn_swin-t-p4-w7_fpn_1x_coco.py``.
    Returns:
        Config: With a model and a default scope of a host.
    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the config has no model, or its default scope is none of MMDetection, MMSegmentation and
            MMPretrain.
    """
    config = get_config(str(name)) if '::' in str(name) else Config.fromfile(name)
    if 'model' not in config:
        raise ValueError(f'the config {name} has no model, but a network is what is measured')
    if config.get('default_scope') not in PACKERS:
        raise ValueError(
            f'default_scope of the config {name} is {config.get("default_scope")!r}, but it must be one of '
            f'{", ".join(PACKERS)}'
        )
    return config


def build_network(config: Config) -> nn.Module:
    """Build a config's model as its runner does, with random weights of a fixed seed.

    Nothing is downloaded or loaded, and SyncBN, which needs a process group, becomes BN.

    Args:
        config (Config): From :func:`read_config`; it is not changed.
    Returns:
        nn.Module: The model in eval mode, on the CPU.
    """
    settings = copy.deepcopy(config.model)
    settings.backbone.init_cfg = None
    if 'pretrained' in settings:  # an older way to say it
        settings.pretrained = None
    if 'data_preprocessor' in config:  # MMPretrain's runner puts it into the model
        settings.setdefault('data_preprocessor', copy.deepcopy(config.data_preprocessor))
    torch.manual_seed(SEED)
    with DefaultScope.overwrite_default_scope(config.default_scope):
        model = MODELS.build(settings)
    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel('ERROR')  # else it tells of every parameter how it was made
    try:
        model.init_weights()
    finally:
        logger.setLevel(level)
    return revert_sync_batchnorm(model).eval()


def random_picture(scope: str, shape: tuple[int, int]) -> dict[str, list]:
    """A picture of noise of a fixed seed, as a host's data loader gives it to the data preprocessor.

    Args:
        scope (str): Default scope of the host.
        shape (tuple[int, int]): Height and width in pixels.
    Returns:
        dict[str, list]: ``inputs``, one (3, H, W) uint8, and ``data_samples``, one of the host's.
    """
    pixels = np.random.default_rng(SEED).integers(0, 256, (*shape, 3), dtype=np.uint8)
    results = dict(img=pixels, img_shape=shape, ori_shape=shape, scale_factor=(1.0, 1.0))
    with DefaultScope.overwrite_default_scope(scope):
        pack = TRANSFORMS.build(dict(type=PACKERS[scope], meta_keys=('img_shape', 'ori_shape', 'scale_factor')))
    return {key: [value] for key, value in pack(results).items()}


class Prediction:
    """A network and one picture in front of it; each call predicts once, without gradients.

    The picture has been through the data preprocessor: what a call does begins with a normalised, padded tensor and
    ends with the host's results, with post-processing and without reading files.

    A detector of random weights finds either nothing, or passes 80,000 boxes on to non-maximum suppression. So the
    score threshold of its box head is set to let about ``candidates`` through, as that of a trained network does.

    Args:
        config (Config): From :func:`read_config`.
        shape (tuple[int, int]): Height and width of the picture in pixels, before padding.
        device (str): ``cpu`` or ``cuda``. Default ``cpu``.
        dtype (str): ``float32``, or ``float16`` or ``bfloat16`` for mixed precision by autocast. Default ``float32``.
        candidates (int): Boxes that a detector passes on to non-maximum suppression. Default 1000.

    Attributes:
        model (nn.Module): The network.
        inputs (Tensor): (1, 3, H', W'), normalised and padded.
        found (dict[str, float]): Of a detector ``score_thr``, ``candidates``, ``detections`` and, if it has two
            stages, ``proposals``; else empty.

    Raises:
        ValueError: If a detector would run on the CPU in anything but float32, or one of a single stage, whose boxes
            stay in half precision, would do so anywhere.
    """

    def __init__(
        self,
        config: Config,
        shape: tuple[int, int],
        device: str = 'cpu',
        dtype: str = 'float32',
        candidates: int = 1000,
    ) -> None:
        if (
            dtype != 'float32'
            and config.default_scope == 'mmdet'
            and (device == 'cpu' or 'roi_head' not in config.model)
        ):
            raise ValueError(
                f'dtype is {dtype}, but a detector {"on a CPU" if device == "cpu" else "of one stage"} must have '
                "float32: MMCV's non-maximum suppression takes nothing else, and its boxes would not be"
            )
        self.model = build_network(config).to(device)
        data = self.model.data_preprocessor(random_picture(config.default_scope, shape), False)
        self.inputs: Tensor = data['inputs']
        self._data_samples = data['data_samples']
        self._autocast = dict(device_type=device, dtype=DTYPES[dtype], enabled=DTYPES[dtype] is not None)
        self.found = calibrate(self.model, self, candidates)

    def __call__(self) -> list:
        """One data sample with its results."""
        with torch.no_grad(), torch.autocast(**self._autocast):
            return self.model(self.inputs, self._data_samples, mode='predict')


def calibrate(model: nn.Module, predict: Callable[[], list], candidates: int) -> dict[str, float]:
    """Set a detector's score threshold so that so many boxes reach non-maximum suppression.

    Args:
        model (nn.Module): A detector of MMDetection with two stages (also a cascade) or one; others are left alone.
        predict (Callable[[], list]): Predicts once with the model and returns data samples.
        candidates (int): How many pairs of box and class may pass. Fewer do where scores tie, or where the box head
            keeps fewer itself.
    Returns:
        dict[str, float]: What was found: see :class:`Prediction`.
    """
    roi_head = getattr(model, 'roi_head', None)
    head = getattr(model, 'bbox_head', None) if roi_head is None else roi_head.bbox_head
    if isinstance(head, nn.ModuleList):  # of a cascade the last stage decides
        head = head[-1]
    settings = getattr(head if roi_head is None else roi_head, 'test_cfg', None) or {}
    if 'score_thr' not in settings:
        return {}
    predict_by_feat = head.predict_by_feat
    found: dict[str, float] = {}

    def passed_by_dense_head(*args, **kwargs) -> Callable[[float], int]:
        def count(threshold: float) -> int:
            settings.score_thr = threshold
            return sum(map(len, predict_by_feat(*args, **(kwargs | dict(with_nms=False)))))

        return count

    def passed_by_roi_head(*args, **kwargs) -> Callable[[float], int]:
        # Without settings the head returns all scores, the background's in the last column
        raw = predict_by_feat(*args, **(kwargs | dict(rcnn_test_cfg=None)))
        scores = torch.cat([result.scores[:, :-1] for result in raw])
        found['proposals'] = len(scores)
        return lambda threshold: int((scores > threshold).sum())

    def calibrated(*args, **kwargs) -> list:
        count = (passed_by_dense_head if roi_head is None else passed_by_roi_head)(*args, **kwargs)
        settings.score_thr = found['score_thr'] = _threshold(count, candidates)
        found['candidates'] = count(settings.score_thr)
        return predict_by_feat(*args, **kwargs)

    head.predict_by_feat = calibrated
    try:
        results = predict()
    finally:
        del head.predict_by_feat
    return found | dict(detections=sum(len(result.pred_instances) for result in results))


def _threshold(count: Callable[[float], int], wanted: int) -> float:
    """The lowest threshold in [0, 1] that at most ``wanted`` scores exceed, by bisection."""
    low, high = 0.0, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        found = count(middle)
        if found == wanted:
            return middle
        low, high = (middle, high) if found > wanted else (low, middle)
    return high


# Measuring


def count_multiply_adds(model: nn.Module, run: Callable[[], Any]) -> dict[str, int]:
    """Count multiply-adds of matrix products, attention and convolutions: what papers on detection call FLOPs.

    PyTorch's counter sees each operation of ATen while it runs and counts two for a multiply-add; this is half of it.
    Not counted are biases, norms, activations and interpolation, and kernels with formulas of their own: MMCV's
    (RoIAlign, deformable convolution) and the fast path of ``nn.MultiheadAttention``.

    Args:
        model (nn.Module): The network.
        run (Callable[[], Any]): Runs it once, without gradients.
    Returns:
        dict[str, int]: Multiply-adds of each child of the model that has any, in the order they ran, and of what runs
        in none as ``other``.
    """
    counter = flop_counter()
    counts: Counter[str] = Counter()
    open_modules: list[int] = []

    def enter(module: nn.Module, args: tuple) -> None:
        open_modules.append(counter.get_total_flops())

    def leave(name: str) -> Callable:
        def hook(module: nn.Module, args: tuple, output: Any) -> None:
            before = open_modules.pop()
            if not open_modules:
                counts[name] += counter.get_total_flops() - before

        return hook

    # Of every module, because hosts call parts of a head and not the head: the outermost one that runs counts
    handles = []
    for name, child in model.named_children():
        for module in child.modules():
            handles += [module.register_forward_pre_hook(enter), module.register_forward_hook(leave(name))]
    try:
        with counter:
            run()
    finally:
        for handle in handles:
            handle.remove()
    counts['other'] = counter.get_total_flops() - counts.total()
    return {name: count // 2 for name, count in counts.items() if count}


def flop_counter() -> FlopCounterMode:
    """PyTorch's counter, which also knows fused attention on a CPU; two operations are a multiply-add."""
    return FlopCounterMode(display=False, custom_mapping=_cpu_attention_formula())


def time_interleaved(
    runs: Mapping[str, Callable[[], Any]], rounds: int, warmup: int = 1, device: str = 'cpu'
) -> dict[str, list[float]]:
    """Time several things in turn, round by round, so that what disturbs the machine disturbs all of them.

    Args:
        runs (Mapping[str, Callable[[], Any]]): What to time, by name.
        rounds (int): How often each is timed.
        warmup (int): Rounds before those, which are not timed. Default 1.
        device (str): Whose work a time has to cover; a GPU is waited for. Default ``cpu``.
    Returns:
        dict[str, list[float]]: Seconds of each round, by name.
    Raises:
        ValueError: If there is no round, or a negative number of them for warming up.
    """
    at_least(1, rounds=rounds)
    at_least(0, warmup=warmup)
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for i in range(-warmup, rounds):
        for name, run in runs.items():
            start = _now(device)
            run()
            end = _now(device)
            if i >= 0:
                seconds[name].append(end - start)
    return seconds


def peak_memory(model: nn.Module, run: Callable[[], Any], device: str) -> int | None:
    """Memory of a GPU that a network needs while it runs: its weights, and the most that a run adds.

    Args:
        model (nn.Module): The network; others may lie on the GPU beside it.
        run (Callable[[], Any]): Runs it once.
        device (str): Where it runs.
    Returns:
        int | None: Bytes; None where the device is no GPU.
    """
    if device != 'cuda':
        return None
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run()
    added = torch.cuda.max_memory_allocated() - before
    return added + sum(tensor.nbytes for tensor in [*model.parameters(), *model.buffers()])


def environment(device: str) -> dict[str, Any]:
    """Where measurements are made: hardware, versions, commit and time.

    Args:
        device (str): What runs the network.
    Returns:
        dict[str, Any]: For JSON.
    """
    found: dict[str, Any] = dict(
        date=datetime.now().astimezone().isoformat(timespec='seconds'),
        device=device,
        cpu=_cpu_name(),
        cores=os.cpu_count(),
        threads=torch.get_num_threads(),
    )
    if device == 'cuda':
        found |= dict(
            gpu=torch.cuda.get_device_name(),
            cuda=torch.version.cuda,
            cudnn=torch.backends.cudnn.version(),
            cudnn_benchmark=torch.backends.cudnn.benchmark,
            tf32=dict(
                convolutions=torch.backends.cudnn.allow_tf32, matrix_products=torch.backends.cuda.matmul.allow_tf32
            ),
        )
    versions = {name: installed_version(distributions) for name, (distributions, *_) in HOSTS.items()}
    found['versions'] = dict(python=platform.python_version(), mm_ummae=__version__, **versions)
    found['commit'] = _commit()
    return found


def _cpu_attention_formula() -> dict[Any, Callable]:
    """Of fused attention on the CPU, which PyTorch's counter misses; 2.1 has it under a name that the counter knows."""
    fused = '_scaled_dot_product_flash_attention_for_cpu'

    def count(query: Sequence[int], key: Sequence[int], value: Sequence[int], *args, **kwargs) -> int:
        return sdpa_flop_count(query, key, value)

    return {getattr(torch.ops.aten, fused): count} if hasattr(torch.ops.aten, fused) else {}


def _now(device: str) -> float:
    if device == 'cuda':
        torch.cuda.synchronize()
    return time.perf_counter()


def _cpu_name() -> str:
    """Name of the model where Linux tells it, else of the architecture."""
    info = Path('/proc/cpuinfo')
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(':')[2].strip() for line in lines if line.startswith('model name')]
    return names[0] if names else platform.machine()


def _commit() -> str | None:
    """Commit of this project's checkout, with ``-dirty`` if files differ from it; None where there is none."""
    if not (ROOT / '.git').exists():
        return None
    command = ['git', '-C', str(ROOT), 'describe', '--always', '--dirty', '--abbrev=40', '--exclude=*']
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):  # no git, or a checkout that it does not trust
        return None


# Reporting


def markdown_table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the first column is text and the others are numbers."""
    lines = [titles, ['---', *['---:'] * (len(titles) - 1)], *rows]
    return '\n'.join(f'| {" | ".join(line)} |' for line in lines)


def write_json(report: dict, path: str | Path) -> Path:
    """Write a report; folders are made."""
    text = json.dumps(report, indent=2) + '\n'
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def network_table(networks: Sequence[dict]) -> str:
    """The networks of :func:`benchmark` as a Markdown table; columns that none of them has are left out.

    Seconds are the median, with the smallest and the largest behind it. Heads are all that is neither backbone nor
    neck.
    """
    titles = ['network', 'parameters (M)', 'multiply-adds (G)', 'backbone', 'neck', 'heads']
    timed = any('seconds' in network for network in networks)
    on_gpu = any(network.get('peak_memory') is not None for network in networks)
    titles += ['seconds (smallest to largest)', 'pictures per second'] * timed + ['memory (GB)'] * on_gpu
    rows = []
    for network in networks:
        counts = network['multiply_adds']
        total = sum(counts.values())
        shares = [counts.get('backbone', 0) / total, counts.get('neck', 0) / total]
        row = [network['name'], f'{network["parameters"] / 1e6:.1f}', f'{total / 1e9:.1f}']
        row += [f'{100 * share:.0f} %' for share in (*shares, 1 - sum(shares))]
        if timed:
            times = network['seconds']
            row += [f'{median(times):.3f} ({min(times):.3f} to {max(times):.3f})', f'{1 / median(times):.3g}']
        if on_gpu:
            row.append(f'{network["peak_memory"] / 1e9:.2f}')
        rows.append(row)
    return markdown_table(titles, rows)


# All together


def benchmark(
    configs: Sequence[str | Path],
    shape: tuple[int, int] = (800, 1280),
    *,
    device: str = 'cpu',
    dtype: str = 'float32',
    rounds: int = 5,
    warmup: int = 1,
    candidates: int = 1000,
    flops_only: bool = False,
) -> dict[str, Any]:
    """Measure what networks need to predict one picture.

    Args:
        configs (Sequence[str | Path]): Of :func:`read_config`.
        shape (tuple[int, int]): Height and width of the picture in pixels. Default (800, 1280).
        device (str): ``cpu`` or ``cuda``. Default ``cpu``.
        dtype (str): ``float32``, or ``float16`` (on a GPU) or ``bfloat16`` for mixed precision. Default ``float32``.
        rounds (int): How often each network is timed. Default 5.
        warmup (int): Rounds before those. Default 1.
        candidates (int): See :func:`calibrate`. Default 1000.
        flops_only (bool): Only count. Default False.
    Returns:
        dict[str, Any]: For JSON: ``environment``, ``arguments`` and, for each config in ``networks``, its ``name``,
        ``config``, ``parameters``, ``input_shape``, ``found`` (see :class:`Prediction`), ``multiply_adds`` by child,
        and unless they are only counted every one of the ``seconds`` and the ``peak_memory`` in bytes.
    Raises:
        ValueError: If an argument is illegal.
        RuntimeError: If there is no GPU and ``device`` asks for one.
    """
    arguments = dict(
        configs=[str(config) for config in configs],
        shape=tuple(shape),
        device=device,
        dtype=dtype,
        rounds=rounds,
        warmup=warmup,
        candidates=candidates,
        flops_only=flops_only,
    )
    _check_arguments(**arguments)
    where = environment(device)
    predictions = {
        name: Prediction(read_config(name), shape, device, dtype, candidates) for name in arguments['configs']
    }
    networks = {}
    for name, prediction in predictions.items():
        networks[name] = dict(
            name=Path(name.rpartition('::')[2]).stem,
            config=name,
            parameters=sum(parameter.numel() for parameter in prediction.model.parameters()),
            input_shape=list(prediction.inputs.shape),
            found=prediction.found,
            multiply_adds=count_multiply_adds(prediction.model, prediction),
        )
    if not flops_only:
        for name, times in time_interleaved(predictions, rounds, warmup, device).items():
            memory = peak_memory(predictions[name].model, predictions[name], device)
            networks[name] |= dict(seconds=times, peak_memory=memory)
    return dict(environment=where, arguments=arguments, networks=list(networks.values()))


def _check_arguments(
    configs: list[str],
    shape: tuple[int, ...],
    device: str,
    dtype: str,
    rounds: int,
    warmup: int,
    candidates: int,
    flops_only: bool,
) -> None:
    if not configs or len(set(configs)) < len(configs):
        raise ValueError(f'configs is {configs}, but there must be at least one and none of them twice')
    if len(shape) != 2 or min(shape) < 1:
        raise ValueError(f'shape is {shape}, but it must be a height and a width of at least one pixel')
    if dtype not in DTYPES:
        raise ValueError(f'dtype is {dtype!r}, but it must be one of {", ".join(DTYPES)}')
    if device == 'cpu' and dtype == 'float16':
        raise ValueError('dtype is float16, but on a CPU it must be float32 or bfloat16')
    at_least(1, rounds=rounds, candidates=candidates)
    at_least(0, warmup=warmup)
    check_device(device)


def check_device(device: str) -> None:
    """Raise if nothing can be measured there.

    Raises:
        ValueError: If it is neither ``cpu`` nor ``cuda``.
        RuntimeError: If it is ``cuda`` and there is no GPU.
    """
    if device not in ('cpu', 'cuda'):
        raise ValueError(f'device is {device!r}, but it must be cpu or cuda')
    if device == 'cuda' and not torch.cuda.is_available():
        raise RuntimeError('device is cuda, but PyTorch finds no GPU here')


def at_least(limit: int, **values: int) -> None:
    """Raise ValueError for the first value below the limit; it is named."""
    for name, value in values.items():
        if value < limit:
            raise ValueError(f'{name} is {value}, but it must be at least {limit}')
