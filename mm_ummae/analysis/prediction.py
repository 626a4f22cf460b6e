"""What an image costs: predictions of whole detectors, segmentors and classifiers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from mmengine.config import Config
from torch import Tensor, nn

from mm_ummae.analysis.measuring import at_least, check_device, count_multiply_adds, peak_memory, time_interleaved
from mm_ummae.analysis.networks import DTYPES, Entry, build_network, random_image
from mm_ummae.analysis.report import environment, markdown_table


class Prediction:
    """A network and one image in front of it; each call predicts once, without gradients.

    The image has been through the data preprocessor: what a call does begins with a normalised, padded tensor and
    ends with the host's results, with post-processing and without reading files.

    A detector of random weights finds either nothing, or passes 80,000 boxes on to non-maximum suppression. So the
    score threshold of its box head is set to let about ``candidates`` through, as that of a trained network does.

    Args:
        config (Config): From :func:`read_config`.
        shape (tuple[int, int]): Height and width of the image in pixels, before padding.
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
        data = self.model.data_preprocessor(random_image(config.default_scope, shape), False)
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


def network_table(networks: Sequence[dict]) -> str:
    """The networks of :func:`benchmark` as a Markdown table; columns that none of them has are left out.

    Seconds are the median, with the smallest and the largest behind it. Heads are all that is neither backbone nor
    neck.
    """
    titles = ['network', 'parameters (M)', 'multiply-adds (G)', 'backbone', 'neck', 'heads']
    timed = any('seconds' in network for network in networks)
    on_gpu = any(network.get('peak_memory') is not None for network in networks)
    titles += ['seconds (smallest to largest)', 'images per second'] * timed + ['memory (GB)'] * on_gpu
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


def benchmark(
    configs: Sequence[str | Path | Entry],
    shape: tuple[int, int] = (800, 1280),
    *,
    device: str = 'cpu',
    dtype: str = 'float32',
    rounds: int = 5,
    warmup: int = 1,
    candidates: int = 1000,
    flops_only: bool = False,
) -> dict[str, Any]:
    """Measure what networks need to predict one image.

    Args:
        configs (Sequence[str | Path | Entry]): Of :func:`~mm_ummae.benchmark.read_config`, or with changes.
        shape (tuple[int, int]): Height and width of the image in pixels. Default (800, 1280).
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
    names = [config.name if isinstance(config, Entry) else str(config) for config in configs]
    arguments = dict(
        configs=names,
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
    entries = [config if isinstance(config, Entry) else Entry.of(config) for config in configs]
    predictions = {
        name: Prediction(entry.read(), shape, device, dtype, candidates)
        for name, entry in zip(names, entries, strict=True)
    }
    networks = {}
    for entry, (name, prediction) in zip(entries, predictions.items(), strict=True):
        networks[name] = dict(
            **entry._asdict(),
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
