"""Makes the small but real demo data sets: pre-training, classification, detection and segmentation."""

import argparse
import inspect
import time
from pathlib import Path

from demo.writers import make_demo_data


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    """Reads the command line; every number that :func:`make_demo_data` takes has an option of its own.

    Args:
        arguments: Words of the command line; None takes those of the process.

    Returns:
        ``out`` and the keyword arguments of :func:`make_demo_data`.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--out', type=Path, default=Path('data/demo'), help='folder to make (default: %(default)s)')
    parser.add_argument('--overwrite', action='store_true', help='replace an earlier demo data set')
    for name, parameter in inspect.signature(make_demo_data).parameters.items():
        if name not in ('root', 'overwrite'):
            option = f'--{name.replace("_", "-")}'
            parser.add_argument(option, type=int, default=parameter.default, help='(default: %(default)s)')
    return parser.parse_args(arguments)


def tree(folder: Path, depth: int = 0) -> list[str]:
    """Describes a folder, counting the images instead of naming them.

    Args:
        folder: Folder to describe.
        depth: Level of indentation.

    Returns:
        One line per folder and per file that is no image.
    """
    entries = sorted(folder.iterdir())
    pictures = sum(entry.suffix in ('.jpg', '.png') for entry in entries)
    lines = ['  ' * depth + f'{folder.name}/' + (f'  {pictures} images' if pictures else '')]
    for entry in entries:
        if entry.is_dir():
            lines += tree(entry, depth + 1)
        elif entry.suffix not in ('.jpg', '.png'):
            lines.append('  ' * (depth + 1) + entry.name)
    return lines


def main(arguments: list[str] | None = None) -> None:
    """Makes the data and prints what was made.

    Args:
        arguments: Words of the command line; None takes those of the process.
    """
    options = vars(parse_args(arguments))
    start = time.perf_counter()
    root = make_demo_data(options.pop('out'), **options)
    print(f'demo data in {root} ({time.perf_counter() - start:.1f} s)')
    print('\n'.join(tree(root)))


if __name__ == '__main__':
    main()
