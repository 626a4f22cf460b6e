"""Inference cost of full models: FLOPs, latency and peak memory of one image."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from mmengine.config import Config
from torch import Tensor, nn

from .measuring import Settings, at_least, check_shape, count_multiply_adds, peak_memory
from .networks import build_network, random_image


class Inference:
    """A network with one image; each call predicts once, without gradients.

    The image has been through the data preprocessor: a call starts from a normalised, padded tensor and ends with the
    host's results, including post-processing but no file access.

    A detector with random weights finds either nothing, or passes 80,000 boxes to non-maximum suppression. So the score
    threshold of its box head is set to let about ``candidates`` boxes through, as with trained weights.

    Args:
        config (Config): From :func:`~mm_ummae.analysis.read_config`.
        shape (tuple[int, int]): Height and width of the image in pixels, before padding.
        settings (Settings): Device and precision.
        candidates (int): Boxes that a detector passes to non-maximum suppression. Default 1000.

    Attributes:
        model (nn.Module): The network.
        inputs (Tensor): (1, 3, H', W'), normalised and padded.
        found (dict[str, float]): Of a detector ``score_thr``, ``candidates``, ``detections`` and, with two stages,
            ``proposals``; else empty.

    Raises:
        ValueError: If a detector would run in mixed precision on the CPU or with a single stage, where MMCV's
            non-maximum suppression gets half precision, which it does not support.
    """

    def __init__(self, config: Config, shape: tuple[int, int], settings: Settings, candidates: int = 1000) -> None:
        on_cpu = settings.device == 'cpu'
        mixed_detector = settings.dtype != 'float32' and config.default_scope == 'mmdet'
        if mixed_detector and (on_cpu or 'roi_head' not in config.model):
            raise ValueError(
                f'dtype is {settings.dtype}, but a detector {"on a CPU" if on_cpu else "of one stage"} must have '
                "float32: MMCV's non-maximum suppression supports nothing else there"
            )
        self.model = build_network(config).to(settings.device)
        data = self.model.data_preprocessor(random_image(config.default_scope, shape), False)
        self.inputs: Tensor = data['inputs']
        self._data_samples = data['data_samples']
        self._settings = settings
        self.found = calibrate(self.model, self, candidates)

    def __call__(self) -> list:
        """One data sample with its results."""
        with torch.no_grad(), self._settings.autocast():
            return self.model(self.inputs, self._data_samples, mode='predict')


def calibrate(model: nn.Module, predict: Callable[[], list], candidates: int) -> dict[str, float]:
    """Set a detector's score threshold so that a given number of boxes reaches non-maximum suppression.

    Args:
        model (nn.Module): A detector of MMDetection with two stages (also a cascade) or one; others are not changed.
        predict (Callable[[], list]): Predicts once with the model and returns data samples.
        candidates (int): Pairs of box and class that may pass. Fewer do where scores tie, or where the box head keeps
            fewer itself.
    Returns:
        dict[str, float]: See ``found`` of :class:`Inference`.
    """
    roi_head = getattr(model, 'roi_head', None)
    head = getattr(model, 'bbox_head', None) if roi_head is None else roi_head.bbox_head
    if isinstance(head, nn.ModuleList):  # the last stage of a cascade decides
        head = head[-1]
    settings = getattr(head if roi_head is None else roi_head, 'test_cfg', None) or {}
    if 'score_thr' not in settings:
        return {}
    predict_by_feat = head.predict_by_feat
    found: dict[str, float] = {}

    def calibrated(*args, **kwargs) -> list:
        if roi_head is None:

            def passed(threshold: float) -> int:
                settings.score_thr = threshold
                return sum(map(len, predict_by_feat(*args, **(kwargs | dict(with_nms=False)))))
        else:
            # Without settings the head returns all scores, the background's in the last column
            raw = predict_by_feat(*args, **(kwargs | dict(rcnn_test_cfg=None)))
            scores = torch.cat([result.scores[:, :-1] for result in raw])
            found['proposals'] = len(scores)

            def passed(threshold: float) -> int:
                return int((scores > threshold).sum())

        settings.score_thr = found['score_thr'] = _threshold(passed, candidates)
        found['candidates'] = passed(settings.score_thr)
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


def measure_inference(
    configs: Mapping[str, Config],
    shape: tuple[int, int] = (800, 1280),
    settings: Settings | None = None,
    *,
    candidates: int = 1000,
    flops_only: bool = False,
) -> list[dict[str, Any]]:
    """Measure inference of one image, the networks in turn, round by round.

    Args:
        configs (Mapping[str, Config]): From :func:`~mm_ummae.analysis.read_config`, by name.
        shape (tuple[int, int]): Height and width of the image in pixels. Default (800, 1280).
        settings (Settings, optional): Device, precision and rounds.
        candidates (int): See :class:`Inference`. Default 1000.
        flops_only (bool): Count without timing. Default False.
    Returns:
        list[dict[str, Any]]: For JSON. Of each network ``name``, ``parameters``, ``input_shape``, ``found`` (see
        :class:`Inference`), ``multiply_adds`` by part; without ``flops_only`` also ``seconds`` and
        ``images_per_second``, one value a round, and ``memory``, the peak in bytes, with the weights.
    Raises:
        ValueError: If an argument is illegal.
    """
    settings = settings or Settings()
    check_shape(shape)
    at_least(1, configs=len(configs), candidates=candidates)
    runs = {name: Inference(config, tuple(shape), settings, candidates) for name, config in configs.items()}
    rows = []
    for name, run in runs.items():
        parameters = sum(parameter.numel() for parameter in run.model.parameters())
        counts = count_multiply_adds(run.model, run)
        shape = list(run.inputs.shape)
        rows.append(dict(name=name, parameters=parameters, input_shape=shape, found=run.found, multiply_adds=counts))
    if not flops_only:
        seconds = settings.time(runs)
        for row in rows:
            run = runs[row['name']]
            weights = sum(tensor.nbytes for tensor in [*run.model.parameters(), *run.model.buffers()])
            memory = weights + peak_memory(run, settings.device)
            times = seconds[row['name']]
            row |= dict(seconds=times, images_per_second=[1 / each for each in times], memory=memory)
    return rows
