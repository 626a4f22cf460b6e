"""Files that are installed with the package: configs, the model index and small weights."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path

FOLDER = Path(__file__).parent / '.mim'  # links to the checkout in an editable install, copies in a wheel
CONFIGS = FOLDER / 'configs'
MODEL_INDEX = FOLDER / 'model-index.yml'
WEIGHTS = FOLDER / 'weights'
WEIGHTS_PREFIX = 'mm_ummae://'  # of their addresses


def config_path(name: str) -> str:
    """Path of an installed config, for ``Config.fromfile`` and as the base of a config outside the package.

    MMEngine evaluates the expression after ``_base_``, so that a config inherits one of ours, wherever the package is
    installed, by::

        _base_ = __import__('mm_ummae').config_path('ummae/ummae_swin-tiny_8xb128x4-amp-coslr-200e_in1k-256px.py')

    ``_base_ = 'mm_ummae::...'`` does not work: MMEngine has a fixed table of packages for it. Nor does an ``import``
    statement: MMEngine takes a file with one for a pure-Python config.

    Args:
        name (str): Path below ``configs/``, or the file name alone.
    Returns:
        str: Absolute path.
    Raises:
        FileNotFoundError: If there is no such config, or the package was not installed.
    """
    if not CONFIGS.is_dir():
        raise FileNotFoundError(f'{CONFIGS} does not exist: install the package (in a checkout: pip install -e .)')
    root = CONFIGS.resolve()
    paths = {path.relative_to(root).as_posix(): path for path in root.rglob('*.py')}
    for known, path in paths.items():
        if name in (known, path.name):
            return str(path)
    similar = get_close_matches(name, [*paths, *(path.name for path in paths.values())])
    raise FileNotFoundError(
        f'name is {name!r}, but there is no such config in {root}'
        + (f'; similar: {", ".join(similar)}' if similar else '')
    )


def stored_weights() -> list[str]:
    """Names of the weights that are installed with the package, such as ``um-swin-test``, in alphabetical order."""
    return sorted(path.stem for path in WEIGHTS.glob('*.pth'))


def weights_path(name: str) -> Path:
    """Path of weights that are installed with the package.

    Where MMEngine takes a checkpoint (``init_cfg``, ``load_from``), ``mm_ummae://um-swin-test`` is their address.

    Args:
        name (str): See :func:`stored_weights`, with or without ``mm_ummae://``.
    Returns:
        Path: The file.
    Raises:
        FileNotFoundError: If there are none of that name, or the package was not installed.
    """
    if not WEIGHTS.is_dir():
        raise FileNotFoundError(f'{WEIGHTS} does not exist: install the package (in a checkout: pip install -e .)')
    path = WEIGHTS / f'{name.removeprefix(WEIGHTS_PREFIX)}.pth'
    if not path.is_file():
        raise FileNotFoundError(
            f'the name of stored weights is {name!r}, but it must be one of {", ".join(stored_weights())}'
        )
    return path
