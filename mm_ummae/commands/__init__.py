"""Whole tasks on own images in one call, and on the command line: ``python -m mm_ummae``."""

from .embedding import embed
from .finetuning import Finetuning, finetune
from .finetuning_recipes import TASKS
from .predicting import predict
from .pretraining import MODELS, Pretraining, pretrain
from .settings import Settings, choose_settings

__all__ = [
    'MODELS',
    'TASKS',
    'Finetuning',
    'Pretraining',
    'Settings',
    'choose_settings',
    'embed',
    'finetune',
    'predict',
    'pretrain',
]
