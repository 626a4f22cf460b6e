"""Package metadata. Configs and tools travel inside the package, where `mim` looks for them (mm_ummae/.mim)."""

from __future__ import annotations

import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
MIM_FILES = ('configs', 'tools', 'model-index.yml')


def requirements(name: str) -> list[str]:
    """Lines of a requirement file without comments."""
    lines = (ROOT / 'requirements' / f'{name}.txt').read_text().splitlines()
    return [line for line in (line.partition('#')[0].strip() for line in lines) if line]


class BuildWithMim(build_py):
    """Ship configs, tools and the model index in ``mm_ummae/.mim``: links when editable, copies in a wheel."""

    def run(self) -> None:
        """Put the files in place, then build."""
        folder = ROOT / 'mm_ummae' / '.mim'
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        for name in MIM_FILES:
            target = folder / name
            if self.editable_mode:
                target.symlink_to(Path('..', '..', name))
            elif (ROOT / name).is_dir():
                shutil.copytree(ROOT / name, target, ignore=shutil.ignore_patterns('__pycache__'))
            else:
                shutil.copy(ROOT / name, target)
        super().run()


version: dict[str, str] = {}
exec((ROOT / 'mm_ummae' / 'version.py').read_text(), version)

setup(
    name='mm_ummae',
    version=version['__version__'],
    description='UM-MAE and LoMaR: masked-image pre-training of pyramid and plain vision transformers on OpenMMLab 2.x',
    long_description=(ROOT / 'README.md').read_text(),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    python_requires='>=3.10',
    packages=find_packages(include=['mm_ummae', 'mm_ummae.*']),
    package_data={'mm_ummae': ['.mim/**/*']},
    cmdclass={'build_py': BuildWithMim},
    # Not the hosts: each exists as two distributions (requirements/hosts.txt), and the import checks versions.
    install_requires=requirements('runtime'),
    extras_require={name: requirements(name) for name in ('demo', 'dev')},
)
