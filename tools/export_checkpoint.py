"""Write the pre-trained network of a checkpoint for the class of another library.

    python tools/export_checkpoint.py work_dirs/my_swin/epoch_200.pth swin_tiny.pth --to timm

The source is a checkpoint of a pre-training, or weights in any layout that is known.
"""

from __future__ import annotations

from pathlib import Path

from mm_ummae.checkpoints import export_checkpoint
from mm_ummae.checkpoints.export import TARGETS, USES
from mm_ummae.checkpoints.files import SAFETENSORS
from mm_ummae.command_line import ToolParser, one_line_errors


@one_line_errors
def main(arguments: list[str] | None = None) -> Path:
    """Export a file and print how to load it.

    Args:
        arguments (list[str], optional): Command-line arguments. Default: those of the process.
    Returns:
        Path: The written file.
    """
    parser = ToolParser(description=__doc__.splitlines()[0])
    parser.add_argument('source', type=Path, help='checkpoint')
    parser.add_argument('target', type=Path, help='file to write; by safetensors if that is its suffix')
    parser.add_argument('--to', choices=TARGETS, required=True, help='library whose class loads the file')
    parser.add_argument('--safetensors', action='store_true', help='give the target the suffix .safetensors')
    parser.add_argument('--window-size', type=int, help='of a Swin V2 without it in its file, for torchvision')
    parser.add_argument('--licence', help="licence of the weights (default: the source's)")
    args = parser.parse_args(arguments)
    target = args.target.with_suffix(SAFETENSORS) if args.safetensors else args.target
    path = export_checkpoint(args.source, target, args.to, args.window_size, args.licence)
    print(f'{path}, for {args.to}:\n    {USES[args.to].format(path=path)}')
    if args.to == 'mmdet':
        print(
            '    The names of a Swin are those of the official code, as the stock configs with convert_weights=True '
            'expect them; with convert_weights=False export --to mmpretrain'
        )
    return path


if __name__ == '__main__':
    main()
