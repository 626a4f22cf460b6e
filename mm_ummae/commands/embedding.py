"""Features of images as a file, from the backbone of a pre-training."""

from __future__ import annotations

import io
import logging
from pathlib import Path

import numpy as np
import torch
from mmengine.config import Config
from mmengine.logging import print_log

from mm_ummae.apis import get_model
from mm_ummae.checkpoints.files import whole_file
from mm_ummae.datasets.image_files import load_batch, loader_of
from mm_ummae.datasets.pretrain_images import find_files
from mm_ummae.models import MaskedPixelModel
from mm_ummae.models.frozen_features import frozen_features

from .run_folder import RUN, find_run

BATCH = 32


def embed(
    data: str | Path,
    checkpoint: str | Path,
    out: str | Path,
    config: str | Path | None = None,
    image_size: int | None = None,
    device: str | None = None,
) -> Path:
    """Write a feature of each image of a folder: the mean over the backbone's last map of the whole image.

    Images are read as the pre-training read them, resized by their short side and centre-cropped. Files that cannot be
    read are logged and left out.

    Args:
        data (str | Path): Folder of images, at any depth, or a text file with a path per line.
        checkpoint (str | Path): Folder that :func:`~mm_ummae.commands.pretrain` left, or a checkpoint of a
            pre-training.
        out (str | Path): File to write, ``.npz`` with ``features``, (N, C) float32, and ``files``, (N, ) paths below
            the folder, or those of the text file, in their order.
        config (str | Path, optional): Config of the pre-training. Default: ``config.py`` beside the checkpoint or a
            folder above it.
        image_size (int, optional): Side in pixels. Default: that of the backbone.
        device (str, optional): Default: the GPU, or the CPU if there is none.
    Returns:
        Path: The file.
    Raises:
        FileNotFoundError: If a file or the folder does not exist.
        ValueError: If ``out`` does not end in ``.npz``, the config is no pre-training, or no image can be read.
    """
    data, out = Path(data).absolute(), Path(out)
    if out.suffix != '.npz':
        raise ValueError(f'out is {out}, but the file must end in .npz')
    checkpoint, config = find_run(checkpoint, config, RUN)
    device = device or ('cuda' if torch.cuda.is_available() else 'cpu')
    cfg = Config.fromfile(config)
    model = get_model(cfg, pretrained=str(checkpoint), device=device)
    if not isinstance(model, MaskedPixelModel):
        raise ValueError(f'config is {config}, but its model is {type(model).__name__}, no pre-training')
    size, load = image_size or min(model.backbone.img_size), loader_of(cfg)
    files, found, features = find_files(data), [], []
    for start in range(0, len(files), BATCH):
        images = []
        for file in files[start : start + BATCH]:
            try:
                images.append(load_batch([file], size, load)['inputs'])
                found.append(Path(file).relative_to(data).as_posix() if data.is_dir() else file)
            except ValueError as error:
                print_log(f'left out: {error}', 'current', logging.WARNING)
        if images:
            features.append(frozen_features(model, torch.cat(images).to(device)))
    if not found:
        raise ValueError(f'data is {data}, but none of its {len(files)} images can be read')
    content = io.BytesIO()
    np.savez(content, features=torch.cat(features).numpy(), files=np.array(found))
    out.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(out) as part:
        part.write_bytes(content.getvalue())
    print_log(f'{out}: {len(found)} features of {features[0].shape[1]} values', 'current')
    return out
