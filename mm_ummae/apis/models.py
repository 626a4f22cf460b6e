"""MMPretrain-style API for the models of this package: build by name, inference, features.

Each function behaves as MMPretrain's of the same name, with two differences: a checkpoint that does not fit is an
error, and pre-training models, for which MMPretrain has no inferencer, work as well.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
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

from mm_ummae.checkpoints.loading import load_whole
from mm_ummae.datasets.image_files import centre_crop_steps, loader_of
from mm_ummae.models import MaskedPixelModel
from mm_ummae.models.widths import check_widths
from mm_ummae.resources import MODEL_INDEX, WEIGHTS_PREFIX, stored_weights

from .reconstruction import reconstruct

# Training data of the listed models without weights: MMDetection and MMSegmentation build those on COCO and ADE20K, and
# the models of the demo are built by the path of their config
TRAINING_DATA = 'ImageNet-1k'


@cache
def register_models() -> tuple[str, ...]:
    """Register this package's pre-training and classification models in MMPretrain's model hub.

    ``mmpretrain.get_model(name)`` and ``mmpretrain.list_models('ummae*')`` then find them. The other functions of this
    module call it themselves; a second call has no effect.

    Returns:
        tuple[str, ...]: Names of the models.
    Raises:
        FileNotFoundError: If the package is not installed, so that its model index is missing.
        ValueError: If MMPretrain already has a model of the same name.
    """
    if not MODEL_INDEX.is_file():
        raise FileNotFoundError(
            f'the model index {MODEL_INDEX} is missing: it is created when the package is installed'
        )
    models = [model for model in _index() if model.weights or _training_data(model) == TRAINING_DATA]
    # One metafile at a time: each belongs to one host, and an index can only be registered as a whole
    for metafile in sorted({model.filepath for model in models}):
        ModelHub.register_model_index(metafile, config_prefix=MODEL_INDEX.parent)
    return tuple(sorted(model.name.lower() for model in models))


def list_models(pattern: str | None = None, task: str | None = None) -> list[str]:
    """List this package's models that :func:`get_model` builds.

    Args:
        pattern (str, optional): Start of the name, with wildcards ``*`` and ``?``. Default: all models.
        task (str, optional): Task of the results in the metafile, such as ``Image Classification``; ``null`` for
            models without results. Default: all tasks.
    Returns:
        list[str]: Names in alphabetical order.
    """
    ours = register_models()
    return [name for name in mmpretrain.apis.list_models(pattern, task=task) if name in ours]


def get_model(
    model: str | Path | Config,
    pretrained: bool | str | Path | None = None,
    device: str | None = None,
    **kwargs: Any,
) -> BaseModel:
    """Build a model in eval mode and, if asked to, load weights that must match it completely.

    Args:
        model (str | Path | Config): Name of a model of this package or of MMPretrain, name of stored weights such as
            ``um-swin-test`` for the model that was pre-trained to them, config file, or config.
        pretrained (bool | str | Path, optional): Checkpoint of this package or of the published implementation; True
            takes the weights named in the metafile, or ``load_from`` of the config. Default: random weights.
        device (str, optional): Default: the CPU.
        kwargs: Overrides of the model's config, such as ``backbone=dict(out_indices=(0, 1, 2, 3))``.
    Returns:
        BaseModel: The model, with its config in ``model._config``.
    Raises:
        FileNotFoundError: If there is no such config file or checkpoint.
        ValueError: If there is no model of that name, it belongs to MMDetection or MMSegmentation, no weights are known
            for ``pretrained=True``, the parts have different widths, or the checkpoint does not fit (the message lists
            the parameters).
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
        raise ValueError(
            f'the default_scope of the config is {host!r}, but get_model builds models of mmpretrain only: build this '
            f'one with {host}'
        )
    if pretrained is True:
        pretrained = config.get('load_from') if entry is None else entry.weights
        if not pretrained:
            known = config.filename if entry is None else entry.name
            raise ValueError(
                f'pretrained is True, but no weights of {known} are known: set pretrained to the path of a checkpoint'
            )
    config.merge_from_dict(dict(model=kwargs))
    built = mmpretrain.apis.get_model(config)
    if 'out_indices' not in kwargs.get('backbone', {}):  # those of other stages are features, which no head follows
        check_widths(built)
    if pretrained is not None and pretrained is not False:
        load_weights(built, pretrained)
    built._metainfo = entry
    return built if device is None else built.to(device)


def load_weights(model: BaseModel, checkpoint: str | Path) -> None:
    """Load a checkpoint into a complete model, together with the class names stored in it.

    Args:
        model (BaseModel): Receives the weights; unchanged in case of an error.
        checkpoint (str | Path): Checkpoint of this package or of the published implementation.
    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file cannot be read, or names or shapes differ; missing, unexpected and reshaped parameters
            are listed.
    """
    dataset_meta = load_whole(model, str(checkpoint)).get('dataset_meta')
    if dataset_meta:
        model._dataset_meta = dataset_meta


def inference_model(model: BaseModel, image: str | Path | np.ndarray, **kwargs: Any) -> dict | DataSample:
    """Classify an image with a classifier, or mask and reconstruct it with a pre-training model.

    Args:
        model (BaseModel): Model built by :func:`get_model`.
        image (str | Path | np.ndarray): Image file; for a classifier also (H, W, 3) uint8 BGR.
        kwargs: For a classifier, ``classes`` (their names) and the call arguments of MMPretrain's
            ``ImageClassificationInferencer``; for a pre-training model, ``image_size``, ``seed`` and ``mask`` of
            :func:`reconstruct`.
    Returns:
        dict | DataSample: For a classifier, ``pred_label``, ``pred_score``, ``pred_scores`` and, if the names are
        known, ``pred_class``; for a pre-training model, the sample that :meth:`MaskedPixelModel.predict` returns.
    Raises:
        ValueError: If the model is neither, or the image cannot be read.
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
    """MMPretrain's feature extractor, extended to pre-training models.

    ``FeatureExtractor(model)(images, stage='backbone')`` returns for each image a tuple of feature maps
    (C_i, h_i, w_i), one for each of the backbone's ``out_indices``. Images are not masked. They are prepared by the
    test pipeline of the config; pre-training configs have none, and their images are resized to the backbone's image
    size (short side) and centre-cropped.

    Args:
        model (BaseModel | str | Path | Config): Model, or name, config file or config of one.
        pretrained (bool | str | Path, optional): See :func:`get_model`; False for random weights. Default True. A model
            that is already built keeps its weights unless a checkpoint is given.
        device (str, optional): Default: the CPU, or the device of a model that is already built.
        kwargs: Overrides of the model's config, such as ``backbone=dict(out_indices=(0, 1, 2, 3))``.

    Raises:
        ValueError: See :func:`get_model`; or if ``kwargs`` are given with a model that is already built.
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
            raise ValueError(f'{", ".join(kwargs)} would change the config, but the model is already built')
        elif isinstance(pretrained, (str, Path)):
            load_weights(model, pretrained)
        super().__init__(model, pretrained=None, device=device)

    def forward(self, inputs: dict, **kwargs: Any) -> list:
        """Features of each image of a batch after ``stage``; pre-training models have only ``backbone``."""
        if isinstance(self.model, MaskedPixelModel):
            stage = kwargs.pop('stage', 'backbone')
            if stage != 'backbone':
                raise ValueError(f'stage is {stage!r}, but a pre-training model has features of its backbone only')
        return super().forward(inputs, **kwargs)

    def _init_pipeline(self, cfg: Config) -> Compose:
        with DefaultScope.overwrite_default_scope('mmpretrain'):
            if cfg.get('test_dataloader') is not None:
                return super()._init_pipeline(cfg)
            steps = centre_crop_steps(min(self.model.backbone.img_size), loader_of(cfg).channels)
            return Compose([TRANSFORMS.build(step) for step in steps])

    def preprocess(self, inputs: Iterable, batch_size: int = 1) -> Iterator:
        """Batches of images; files are read as the pre-training read them."""
        if isinstance(self.model, MaskedPixelModel):
            load = loader_of(self.config)
            inputs = (
                each if isinstance(each, np.ndarray) else load(dict(img_path=str(each)))['img'] for each in inputs
            )
        return super().preprocess(inputs, batch_size)

    @staticmethod
    def list_models(pattern: str | None = None) -> list[str]:
        """List this package's models; see :func:`list_models`."""
        return list_models(pattern)


def _index() -> list[Model]:
    """All models of the index."""
    return load_index(str(MODEL_INDEX)).models


def _entry(name: str) -> Model:
    """Entry of the model index, also by the name of its stored weights, with its config loaded."""
    register_models()
    if name in stored_weights():
        (name,) = (model.name for model in _index() if model.weights == WEIGHTS_PREFIX + name)
    try:
        return ModelHub.get(name)
    except ValueError as error:
        raise ValueError(
            f'model is {name!r}, but there is no such model: mm_ummae.list_models() and mmpretrain.list_models() list '
            'all names; detectors and segmentors are built by mmdet and mmseg'
        ) from error


def _training_data(model: Model) -> str | None:
    metadata = model.full_model.metadata  # includes the metadata of its collection
    return metadata.data.get('Training Data') if metadata else None
