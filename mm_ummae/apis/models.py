"""MMPretrain-style API for the models of this package: build by name, inference, features.

Each function behaves as MMPretrain's of the same name, with two differences: a checkpoint that does not fit is an
error, and pre-training models, for which MMPretrain has no inferencer, work as well.
"""

from __future__ import annotations

import copy
from functools import cache
from pathlib import Path
from typing import Any

import mmpretrain.apis
import numpy as np
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.model import BaseModel
from mmengine.registry import DefaultScope
from mmpretrain.apis import ImageClassificationInferencer, ModelHub
from mmpretrain.models import ImageClassifier
from mmpretrain.registry import TRANSFORMS
from mmpretrain.structures import DataSample
from modelindex.load_model_index import load as load_index
from modelindex.models.Model import Model

import mm_ummae
from mm_ummae.checkpoints.files import read_checkpoint
from mm_ummae.checkpoints.loading import load_whole
from mm_ummae.datasets.image_files import centre_crop_steps
from mm_ummae.models import MaskedPixelModel

from .reconstruction import reconstruct

INDEX = Path(mm_ummae.__file__).parent / '.mim' / 'model-index.yml'  # links where editable, copies in a wheel
# What MMPretrain's models are trained on. Those on other data are built by MMDetection and MMSegmentation.
TRAINING_DATA = 'ImageNet-1k'


@cache
def register_models() -> tuple[str, ...]:
    """Make MMPretrain know our pre-training and classification models by name.

    After it ``mmpretrain.get_model(name)`` and ``mmpretrain.list_models('ummae*')`` see them. The other functions here
    call it themselves; a second call does nothing.

    Returns:
        tuple[str, ...]: Their names.
    Raises:
        FileNotFoundError: If the package was not installed, so that its model index is missing.
        ValueError: If MMPretrain has another model of the same name.
    """
    if not INDEX.is_file():
        raise FileNotFoundError(f'the model index {INDEX} is missing; installing the package puts it there')
    models = [model for model in load_index(str(INDEX)).models if _training_data(model) == TRAINING_DATA]
    # Metafile by metafile: each is of one host, and an index can only be registered whole
    for metafile in sorted({model.filepath for model in models}):
        ModelHub.register_model_index(metafile, config_prefix=INDEX.parent)
    return tuple(sorted(model.name.lower() for model in models))


def list_models(pattern: str | None = None, task: str | None = None) -> list[str]:
    """Names of our models that :func:`get_model` builds.

    Args:
        pattern (str, optional): What the name starts with; ``*`` and ``?`` stand for any characters. Default: all.
        task (str, optional): Task of the results in the metafile, such as ``Image Classification``; ``null`` for
            models without. Default: all.
    Returns:
        list[str]: In alphabetical order.
    """
    ours = register_models()
    return [name for name in mmpretrain.apis.list_models(pattern, task=task) if name in ours]


def get_model(
    model: str | Path | Config,
    pretrained: bool | str | Path | None = None,
    device: str | None = None,
    **kwargs: Any,
) -> BaseModel:
    """Build a model in eval mode, and load all of its weights or none.

    Args:
        model (str | Path | Config): Name (ours or MMPretrain's), config file, or config.
        pretrained (bool | str | Path, optional): Checkpoint, ours or the published implementation's; True takes the one
            in the metafile, or ``load_from`` of the config. Default: random weights.
        device (str, optional): Default: the CPU.
        kwargs: Change the model's config: ``backbone=dict(out_indices=(0, 1, 2, 3))``.
    Returns:
        BaseModel: The model, with its config in ``model._config``.
    Raises:
        FileNotFoundError: If there is no such config file or checkpoint.
        ValueError: If there is no model of that name, it belongs to MMDetection or MMSegmentation, no weights are known
            for ``pretrained=True``, or the checkpoint does not fit; the parameters are listed.
    """
    entry = None
    if isinstance(model, Config):
        config = copy.deepcopy(model)
    elif Path(model).suffix == '.py':
        config = Config.fromfile(model)
    else:
        entry = _entry(str(model))
        config = entry.config
    host = config.get('default_scope') or 'mmpretrain'
    if host != 'mmpretrain':
        raise ValueError(f'the default_scope of the config is {host!r}, but only models of mmpretrain are built here')
    if pretrained is True:
        pretrained = config.get('load_from') if entry is None else entry.weights
        if not pretrained:
            known = config.filename if entry is None else entry.name
            raise ValueError(f'pretrained is True, but no weights of {known} are known: give the path of a checkpoint')
    config.merge_from_dict(dict(model=kwargs))
    built = mmpretrain.apis.get_model(config)
    if pretrained is not None and pretrained is not False:
        load_weights(built, pretrained)
    built._metainfo = entry
    return built if device is None else built.to(device)


def load_weights(model: BaseModel, checkpoint: str | Path) -> None:
    """Load a checkpoint into a whole model, and the names of the classes it was trained on.

    Args:
        model (BaseModel): Receives the weights; unchanged if anything is wrong.
        checkpoint (str | Path): Ours or the published implementation's.
    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file cannot be read, or names or shapes do not fit; all three kinds are listed.
    """
    load_whole(model, str(checkpoint))
    dataset_meta = _dataset_meta(checkpoint)
    if dataset_meta:
        model._dataset_meta = dataset_meta


def inference_model(model: BaseModel, image: str | Path | np.ndarray, **kwargs: Any) -> dict | DataSample:
    """Classify an image, or mask and reconstruct it, whichever the model is for.

    Args:
        model (BaseModel): From :func:`get_model`.
        image (str | Path | np.ndarray): File; for a classifier also (H, W, 3) uint8 BGR.
        kwargs: For a classifier ``classes``, their names, and what MMPretrain's ``ImageClassificationInferencer``
            takes in a call; for a pre-training model ``image_size``, ``seed`` and ``mask`` of :func:`reconstruct`.
    Returns:
        dict | DataSample: ``pred_label``, ``pred_score``, ``pred_scores`` and, where the names are known,
        ``pred_class``; or what :meth:`MaskedPixelModel.predict` gives for one image.
    Raises:
        ValueError: If the model is of another kind, or the image cannot be read.
    """
    if isinstance(model, MaskedPixelModel):
        return reconstruct(model, [image], **kwargs)[0]
    if not isinstance(model, ImageClassifier):
        raise ValueError(
            f'model is a {type(model).__name__}, but it must be a classifier or a pre-training model '
            'from mm_ummae.get_model'
        )
    image = image if isinstance(image, np.ndarray) else str(image)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        inferencer = ImageClassificationInferencer(model, classes=kwargs.pop('classes', None))
    return inferencer(image, **kwargs)[0]


class FeatureExtractor(mmpretrain.apis.FeatureExtractor):
    """MMPretrain's feature extractor, for pre-training models too.

    ``FeatureExtractor(model)(images, stage='backbone')`` gives for each image a tuple of maps (C_i, h_i, w_i), one
    for each of the backbone's ``out_indices``. Images are not masked. They are prepared as the config's test pipeline
    says; pre-training configs have none, and then the short side becomes the nominal size and the centre is cropped.

    Args:
        model (BaseModel | str | Path | Config): Loaded model, or name, config file or config.
        pretrained (bool | str | Path, optional): See :func:`get_model`; False for random weights. Default True. A
            loaded model keeps its weights unless a checkpoint is named.
        device (str, optional): Default: the CPU, or where the loaded model is.
        kwargs: Change the model's config: ``backbone=dict(out_indices=(0, 1, 2, 3))``.

    Raises:
        ValueError: See :func:`get_model`; or if ``kwargs`` are given for a loaded model.
    """

    def __init__(
        self,
        model: BaseModel | str | Path | Config,
        pretrained: bool | str | Path | None = True,
        device: str | None = None,
        **kwargs: Any,
    ) -> None:
        if not isinstance(model, BaseModel):
            model = get_model(model, pretrained, device, **kwargs)
        elif kwargs:
            raise ValueError(f'{", ".join(kwargs)} would change the config, but the model was built before')
        elif isinstance(pretrained, (str, Path)):
            load_weights(model, pretrained)
        super().__init__(model, pretrained=None, device=device)

    def forward(self, inputs: dict, **kwargs: Any) -> list:
        """Features of a batch, for each image those of ``stage``; pre-training models have ``backbone`` only."""
        if isinstance(self.model, MaskedPixelModel):
            stage = kwargs.pop('stage', 'backbone')
            if stage != 'backbone':
                raise ValueError(f'stage is {stage!r}, but a pre-training model has features of its backbone only')
        return super().forward(inputs, **kwargs)

    def _init_pipeline(self, cfg: Config) -> Compose:
        with DefaultScope.overwrite_default_scope('mmpretrain'):
            if cfg.get('test_dataloader') is not None:
                return super()._init_pipeline(cfg)
            steps = centre_crop_steps(min(self.model.backbone.img_size))
            return Compose([TRANSFORMS.build(step) for step in steps])

    @staticmethod
    def list_models(pattern: str | None = None) -> list[str]:
        """Names of our models; see :func:`list_models`."""
        return list_models(pattern)


def _entry(name: str) -> Model:
    """The model index's entry, with its config loaded."""
    register_models()
    try:
        return ModelHub.get(name)
    except ValueError as error:
        raise ValueError(
            f'model is {name!r}, but there is no such model: mm_ummae.list_models() and mmpretrain.list_models() name '
            'them all, and detectors and segmentors are built by mmdet and mmseg'
        ) from error


def _training_data(model: Model) -> str | None:
    metadata = model.full_model.metadata  # with what its collection says
    return metadata.data.get('Training Data') if metadata else None


def _dataset_meta(checkpoint: str | Path) -> dict:
    """Classes and the like that MMEngine keeps with a checkpoint; empty if it has none or runs code to restore it."""
    try:
        content = read_checkpoint(checkpoint)
    except (FileNotFoundError, ValueError):  # an address, or an old PyTorch: the weights were read another way
        return {}
    meta = content.get('meta') if isinstance(content, dict) else None
    return (meta.get('dataset_meta') or {}) if isinstance(meta, dict) else {}
