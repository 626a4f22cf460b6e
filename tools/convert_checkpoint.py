"""Convert a published checkpoint to our parameter names, or one of ours to the published names.

The direction is recognised from the names in the file.
"""

from __future__ import annotations

from pathlib import Path

from mm_ummae.checkpoints import convert_checkpoint, find_state, read_checkpoint
from mm_ummae.checkpoints.names import NAMINGS, naming_of
from mm_ummae.command_line import ToolParser, one_line_errors


def summary(path: Path) -> list[str]:
    """Summary of a converted file, with a note on its decoder.

    Args:
        path (Path): From :func:`convert_checkpoint`.
    Returns:
        list[str]: Lines.
    """
    content = read_checkpoint(path)
    meta = content['meta']
    state = find_state(content, path)
    ours = naming_of(state) == 'ours'
    lines = [
        f'{path}: {len(state)} tensors in {"our" if ours else "published"} naming',
        f'{meta["kind"]}, {meta["backbone"]}: ' + ', '.join(f'{name} {value}' for name, value in meta['arch'].items()),
        f'from {meta["source"]} (SHA-256 {meta["source_sha256"]}); licence: {meta["licence"]}',
    ]
    if meta['kind'] == 'um-mae' and meta['backbone'] != 'vit':
        lines.append(
            'A decoder that was trained by the published code needs neck.published_positions=True.'
            if ours
            else 'The published code runs the decoder correctly only if it was trained with published_positions=True.'
        )
    return lines


@one_line_errors
def main(arguments: list[str] | None = None) -> Path:
    """Convert a file and print a summary.

    Args:
        arguments (list[str], optional): Command-line arguments. Default: those of the process.
    Returns:
        Path: The written file.
    """
    parser = ToolParser(description=__doc__)
    parser.add_argument('source', type=Path, help='file to convert')
    parser.add_argument('target', type=Path, help='file to write; by safetensors if that is its suffix')
    parser.add_argument('--to', choices=NAMINGS, help='naming of the target; fails if the source has it already')
    parser.add_argument(
        '--img-size',
        type=int,
        nargs='+',
        metavar='PIXELS',
        help='image size of pre-training (side, or height and width); needed for UM-MAE Swin and LoMaR to published '
        'naming, and for images that are not square',
    )
    parser.add_argument('--licence', help="licence of the weights (default: the source's or the released one)")
    parser.add_argument('--hash-suffix', action='store_true', help='append 8 digits of the SHA-256 to the name')
    args = parser.parse_args(arguments)
    if args.img_size is not None and len(args.img_size) > 2:
        parser.error(f'--img-size takes one or two numbers, not {args.img_size}')
    img_size = args.img_size[0] if args.img_size and len(args.img_size) == 1 else args.img_size
    path = convert_checkpoint(args.source, args.target, args.to, img_size, args.licence, args.hash_suffix)
    print('\n'.join(summary(path)))
    return path


if __name__ == '__main__':
    main()
