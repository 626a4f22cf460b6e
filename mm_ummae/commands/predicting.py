"""Predictions of a fine-tuned model for images without labels, as files and as pictures."""

from __future__ import annotations

import csv
import io
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import Compose, pseudo_collate
from mmengine.logging import print_log
from mmengine.registry import MODELS, TRANSFORMS, VISUALIZERS, init_default_scope
from PIL import Image
from pycocotools import mask as mask_tools

from mm_ummae.checkpoints.files import whole_file
from mm_ummae.checkpoints.loading import load_whole
from mm_ummae.datasets.image_files import find_images, loader_of
from mm_ummae.visualization.sheets import loaded_colours

from .finetuning import MODEL
from .run_folder import find_run, write_text

LIMIT = 10**9


def predict(
    data: str | Path,
    checkpoint: str | Path,
    out: str | Path,
    *,
    config: str | Path | None = None,
    score: float = 0.3,
    draw: int = 100,
    device: str | None = None,
) -> Path:
    """Predict for a folder of images with a detector, segmentor or classifier that was fine-tuned.

    Images are read as in training, of any depth and number of channels. Files that cannot be read are logged and left
    out.

    Args:
        data (str | Path): Folder of images, at any depth, or an image.
        checkpoint (str | Path): Folder that :func:`~mm_ummae.commands.finetune` left, its ``model.pth``, or a
            checkpoint of its run.
        out (str | Path): Folder to write, new or empty. Detection: ``predictions.json``, a list of objects with
            ``file_name``, ``category``, ``bbox`` (x, y, width, height in pixels), ``score``, and ``segmentation``
            (COCO's run-length encoding) if there are masks. Segmentation: ``maps`` with a PNG for each image, whose
            values are those of the training's label maps. Classification: ``predictions.csv`` with file, class, score,
            and the probability of each class. And ``drawn``, pictures.
        config (str | Path, optional): Config. Default: ``config.py`` beside the checkpoint or a folder above it.
        score (float): Objects with smaller scores are left out. Default 0.3.
        draw (int): Largest number of pictures. Default 100.
        device (str, optional): Default: the GPU, or the CPU if there is none.
    Returns:
        Path: ``out``.
    Raises:
        FileNotFoundError: If a file or folder does not exist, or there is no image.
        ValueError: If ``out`` holds something, ``score`` is not in 0..1, or no image can be read.
    """
    out = Path(out).absolute()
    if not 0 <= score <= 1:
        raise ValueError(f'score is {score}, but it must be in 0..1')
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f'out is {out}, but it exists and is not empty: give a new folder')
    root = Path(data).absolute()
    files = find_images(root, LIMIT)
    checkpoint, path = find_run(checkpoint, config, MODEL)
    names = [path.relative_to(root).as_posix() if root.is_dir() else path.name for path in files]
    cfg = Config.fromfile(path)
    scope = cfg.get('default_scope', 'mmpretrain')
    init_default_scope(scope)
    device = device or ('cuda' if torch.cuda.is_available() else 'cpu')
    model, meta = _load(cfg, checkpoint, device)
    load, prepare = loader_of(cfg), _preparation(cfg)
    visualizer = VISUALIZERS.build(dict(cfg.visualizer, name=f'predict {out}', vis_backends=None, save_dir=None))
    visualizer.dataset_meta = meta
    writer = {'mmdet': _Objects, 'mmseg': _Maps}.get(scope, _Classes)(out, cfg, meta, score)
    done = 0
    for index, (name, file) in enumerate(zip(names, files, strict=True)):
        try:
            record = load(dict(img_path=str(file), img_id=index))
            loaded, sample = record['img'], prepare(dict(record))
        except ImportError:  # of a package for all files of a kind
            raise
        except Exception as error:  # decoders raise all kinds
            print_log(f'left out: {file}: {type(error).__name__}: {error}', 'current', logging.WARNING)
            continue
        with torch.no_grad():
            result = model.test_step(pseudo_collate([sample]))[0].cpu()
        writer.add(name, result)
        if done < draw:
            image = loaded_colours(torch.from_numpy(np.ascontiguousarray(loaded)).permute(2, 0, 1)[None])[0]
            target = out / 'drawn' / f'{name}.jpg'
            target.parent.mkdir(parents=True, exist_ok=True)
            writer.draw(visualizer, image, result, str(target))
        done += 1
    if not done:
        raise ValueError(f'data is {data}, but none of its {len(files)} images can be read')
    writer.finish()
    print_log(f'{out}: predictions for {done} of {len(files)} images, {min(done, draw)} pictures in drawn', 'current')
    return out


def _load(cfg: Config, checkpoint: Path, device: str) -> tuple[Any, dict[str, Any]]:
    """The model with its weights, and the names of its classes."""
    model = MODELS.build(dict(cfg.model, backbone=dict(cfg.model.backbone, init_cfg=None)))
    meta = dict(load_whole(model, str(checkpoint)).get('dataset_meta') or dict(classes=cfg.classes))
    model.dataset_meta = meta
    return model.to(device).eval(), meta


def _preparation(cfg: Config) -> Compose:
    """The test pipeline behind the loading of an image, without labels."""
    steps = [dict(step) for step in cfg.test_dataloader.dataset.pipeline[1:]]
    steps = [step for step in steps if not step['type'].rpartition('.')[2].startswith('Load')]
    return Compose([TRANSFORMS.build(step) for step in steps])


class _Objects:
    """Boxes and masks of a detector, in one JSON file."""

    def __init__(self, out: Path, cfg: Config, meta: dict[str, Any], score: float) -> None:
        self.out, self.classes, self.score, self.found = out, meta['classes'], score, []

    def add(self, name: str, result: Any) -> None:
        objects = result.pred_instances
        for index in torch.nonzero(objects.scores >= self.score).flatten().tolist():
            left, top, right, bottom = objects.bboxes[index].tolist()
            entry = dict(
                file_name=name,
                category=self.classes[int(objects.labels[index])],
                bbox=[round(value, 2) for value in (left, top, right - left, bottom - top)],
                score=round(float(objects.scores[index]), 4),
            )
            if 'masks' in objects:
                mask = np.asfortranarray(np.asarray(objects.masks[index]).astype(np.uint8))
                encoded = mask_tools.encode(mask)
                entry['segmentation'] = dict(size=encoded['size'], counts=encoded['counts'].decode())
            self.found.append(entry)

    def draw(self, visualizer: Any, image: np.ndarray, result: Any, target: str) -> None:
        visualizer.add_datasample(
            'prediction', image, result, draw_gt=False, pred_score_thr=self.score, out_file=target
        )

    def finish(self) -> None:
        write_text(self.out / 'predictions.json', json.dumps(self.found))


class _Maps:
    """Label maps of a segmentor, one PNG for each image."""

    def __init__(self, out: Path, cfg: Config, meta: dict[str, Any], score: float) -> None:
        values = np.asarray(cfg.get('values', range(len(meta['classes']))))
        self.out, self.values = out, values.astype(np.uint8 if values.max() < 256 else np.uint16)

    def add(self, name: str, result: Any) -> None:
        target = self.out / 'maps' / f'{name}.png'
        target.parent.mkdir(parents=True, exist_ok=True)
        content = io.BytesIO()
        Image.fromarray(self.values[result.pred_sem_seg.data[0].numpy()]).save(content, 'PNG')
        with whole_file(target) as part:
            part.write_bytes(content.getvalue())

    def draw(self, visualizer: Any, image: np.ndarray, result: Any, target: str) -> None:
        visualizer.add_datasample('prediction', image, result, draw_gt=False, out_file=target)

    def finish(self) -> None:
        """Nothing is left."""


class _Classes:
    """Classes and probabilities of a classifier, in one table."""

    def __init__(self, out: Path, cfg: Config, meta: dict[str, Any], score: float) -> None:
        self.out, self.classes, self.rows = out, meta['classes'], []

    def add(self, name: str, result: Any) -> None:
        scores = [round(float(value), 4) for value in result.pred_score]
        best = int(result.pred_label)
        self.rows.append([name, self.classes[best], scores[best], *scores])

    def draw(self, visualizer: Any, image: np.ndarray, result: Any, target: str) -> None:
        visualizer.visualize_cls(image, result, classes=self.classes, draw_gt=False, out_file=target)

    def finish(self) -> None:
        table = io.StringIO()
        csv.writer(table, lineterminator='\n').writerows([['file', 'class', 'score', *self.classes], *self.rows])
        write_text(self.out / 'predictions.csv', table.getvalue())
