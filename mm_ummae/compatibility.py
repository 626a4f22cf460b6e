"""Version check of the host libraries on import.

Both the original OpenMMLab distributions and their maintained continuation (``onedl-*``) provide the same import
packages, so ``setup.py`` can require neither; the check takes whichever is installed.
"""

from __future__ import annotations

from importlib import metadata

from packaging.specifiers import SpecifierSet
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
# Pairs inside these ranges that do not work: package, its versions, the other one, its versions, a third one that must
# be installed for it or None, what fails. MMEngine up to 0.10.7 with PyTorch from 2.6 on resumes because its loaders
# are replaced (mm_ummae.checkpoints.mmengine_loaders).
PAIRS = (
    ('mmengine', '>=0.10.9', 'torch', '<2.3', None, 'mmengine imports torch.amp.GradScaler'),
    ('mmengine', '<0.10.6', 'torch', '>=2.5', 'transformers', 'mmengine registers Adafactor twice'),
)


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
        RuntimeError: Names each host that is missing, out of range, or does not work with another. (Not an
            ImportError: MMEngine's registry swallows those, and users would only read that a class is not registered.)
    """
    problems, versions = [], {}
    for package, (distributions, lowest, limit, required) in HOSTS.items():
        version = versions[package] = installed_version(distributions)
        supported = f'>={lowest},<{limit}'
        if version is None and required:
            problems.append(f'{package} is not installed, mm_ummae needs {" or ".join(distributions)} {supported}')
        elif version is not None and not Version(lowest) <= Version(version) < Version(limit):
            problems.append(f'{package} {version} is installed, mm_ummae supports {supported}')
    for package, range_, other, others, third, failure in PAIRS:
        pair = ((package, range_), (other, others))
        if not all(versions[name] and _within(versions[name], bounds) for name, bounds in pair):
            continue
        if third is None or installed_version((third,)):
            beside = f' beside {third}' if third else ''
            problems.append(
                f'{package} {versions[package]} does not work with {other} {versions[other]}{beside}: {failure}'
            )
    if problems:
        raise RuntimeError('; '.join(problems) + '. requirements/ lists versions that work together')


def _within(version: str, bounds: str) -> bool:
    return SpecifierSet(bounds).contains(Version(version).base_version)
