"""Version check of the host libraries on import.

Both the original OpenMMLab distributions and their maintained continuation (``onedl-*``) provide the same import
packages, so ``setup.py`` can require neither; the check takes whichever is installed.
"""

from __future__ import annotations

from importlib import metadata

from packaging.version import Version

# Import package -> (its distributions, lowest supported version, first unsupported one, required).
# mmdet and mmseg are needed by their own configs only.
HOSTS = {
    'torch': (('torch',), '2.1', '3', True),
    'mmengine': (('mmengine', 'onedl-mmengine'), '0.10.5', '1', True),
    'mmcv': (('mmcv', 'mmcv-lite', 'onedl-mmcv'), '2.1.0', '3', True),
    'mmpretrain': (('mmpretrain', 'onedl-mmpretrain'), '1.2.0', '2', True),
    'mmdet': (('mmdet', 'onedl-mmdetection'), '3.3.0', '4', False),
    'mmseg': (('mmsegmentation', 'onedl-mmsegmentation'), '1.2.2', '2', False),
}


def installed_version(distributions: tuple[str, ...]) -> str | None:
    """Version of the first of ``distributions`` that is installed, or None."""
    for name in distributions:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return None


def check_versions() -> None:
    """Compare installed and supported versions of the hosts.

    Raises:
        RuntimeError: Names each host that is missing or out of range. (Not an ImportError: MMEngine's registry
            swallows those, and users would only read that a class is not registered.)
    """
    problems = []
    for package, (distributions, lowest, limit, required) in HOSTS.items():
        version = installed_version(distributions)
        supported = f'>={lowest},<{limit}'
        if version is None and required:
            problems.append(f'{package} is not installed, mm_ummae needs {" or ".join(distributions)} {supported}')
        elif version is not None and not Version(lowest) <= Version(version) < Version(limit):
            problems.append(f'{package} {version} is installed, mm_ummae supports {supported}')
    if problems:
        raise RuntimeError('; '.join(problems) + '. requirements/ lists versions that work together')
