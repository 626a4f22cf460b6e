"""Package metadata. Configs and tools are installed in ``mm_ummae/.mim``, where `mim` looks for them."""

from __future__ import annotations

import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
MIM_FILES = ('configs', 'tools', 'weights', 'model-index.yml')


def requirements(name: str) -> list[str]:
    """Lines of a requirement file without comments."""
    lines = (ROOT / 'requirements' / f'{name}.txt').read_text().splitlines()
    return [line for line in (line.partition('#')[0].strip() for line in lines) if line]


class BuildWithMim(build_py):
    """Add ``mm_ummae/.mim``: links in the checkout for an editable install, copies for a wheel."""

    def run(self) -> None:
        """Build the package, then add the files."""
        package = (ROOT if self.editable_mode else Path(self.build_lib)) / 'mm_ummae'
        if not self.editable_mode:  # or modules that were moved since the last build would be packed
            shutil.rmtree(package, ignore_errors=True)
        super().run()
        folder = package / '.mim'
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        for name in MIM_FILES:
            if self.editable_mode:
                (folder / name).symlink_to(Path('..', '..', name))
            elif (ROOT / name).is_dir():
                shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns('__pycache__'))
            else:
                shutil.copy(ROOT / name, folder / name)


version: dict[str, str] = {}
exec((ROOT / 'mm_ummae' / 'version.py').read_text(), version)

setup(
    # Not `mm_ummae`: mim takes the folder in the first line of RECORD for the package. The lines are sorted, and
    # `mm_ummae-0.6.0.dist-info/` would come before `mm_ummae/`; any name that sorts after it is fine.
    name='ummae',
    version=version['__version__'],
    description='UM-MAE and LoMaR: masked-image pre-training of pyramid and plain vision transformers on OpenMMLab 2.x',
    long_description=(ROOT / 'README.md').read_text(),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    python_requires='>=3.10',
    packages=find_packages(include=['mm_ummae', 'mm_ummae.*']),
    cmdclass={'build_py': BuildWithMim},
    # Not the hosts: each exists as two distributions (requirements/hosts.txt), and the import checks versions
    install_requires=requirements('runtime'),
    extras_require={name: requirements(name) for name in ('demo', 'deploy', 'dev', 'dicom')},
)
