"""Write a page about a pre-training run: curves, features, reconstructions, data, time, config.

The page is one file that needs no network. The run may be going on:

    python tools/report.py work_dirs/my_run --out report.html
"""

from __future__ import annotations

import argparse
from pathlib import Path

from mm_ummae.command_line import ToolParser, one_line_errors
from mm_ummae.visualization import write_report


@one_line_errors
def main(arguments: list[str] | None = None) -> Path:
    """Read the run and write the page."""
    parser = ToolParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('work_dir', help='work folder of the run')
    parser.add_argument('--out', help='file to write (default: report.html in the work folder)')
    parser.add_argument('--images', help='image folder for maps and neighbours (default: the training set)')
    parser.add_argument('--next-command', help='command to show as the next one to type')
    parser.add_argument('--device', default='cpu', help='where the network computes features (default: %(default)s)')
    args = parser.parse_args(arguments)
    out = write_report(args.work_dir, args.out, args.images, args.next_command, args.device)
    print(f'report in {out}, {out.stat().st_size / 1e6:.1f} MB')
    return out


if __name__ == '__main__':
    main()
