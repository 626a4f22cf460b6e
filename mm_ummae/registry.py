"""Registry nodes of this package, children of MMEngine's.

Configs keep the default scope of their host and write ``type='mm_ummae.X'``: MMEngine imports this module for the
prefix, and the ``locations`` on first use, so that no ``custom_imports`` is needed.
"""

from mmengine.registry import DATASETS as MMENGINE_DATASETS
from mmengine.registry import HOOKS as MMENGINE_HOOKS
from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS as MMENGINE_OPTIM_WRAPPER_CONSTRUCTORS
from mmengine.registry import RUNNERS as MMENGINE_RUNNERS
from mmengine.registry import TRANSFORMS as MMENGINE_TRANSFORMS
from mmengine.registry import Registry

MODELS = Registry('model', parent=MMENGINE_MODELS, scope='mm_ummae', locations=['mm_ummae.models'])
DATASETS = Registry('dataset', parent=MMENGINE_DATASETS, scope='mm_ummae', locations=['mm_ummae.datasets'])
# For pre-training; those for detection need MMDetection, and configs import mm_ummae.detection, which registers them
TRANSFORMS = Registry('transform', parent=MMENGINE_TRANSFORMS, scope='mm_ummae', locations=['mm_ummae.datasets'])
RUNNERS = Registry('runner', parent=MMENGINE_RUNNERS, scope='mm_ummae', locations=['mm_ummae.engine'])
HOOKS = Registry('hook', parent=MMENGINE_HOOKS, scope='mm_ummae', locations=['mm_ummae.engine'])
OPTIM_WRAPPER_CONSTRUCTORS = Registry(
    'optimizer wrapper constructor',
    parent=MMENGINE_OPTIM_WRAPPER_CONSTRUCTORS,
    scope='mm_ummae',
    locations=['mm_ummae.engine'],
)
