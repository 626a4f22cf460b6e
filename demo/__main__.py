"""Demo of UM-MAE: pre-train, reconstruct, fine-tune from the checkpoint and from scratch, compare.

    python -m demo [--size smoke] [--seeds 3]

Every run is a call of tools/train.py with a config of configs/demo and can be repeated by hand; its log is output.txt
in its folder.
"""

from __future__ import annotations

from .chain import Demo, run_demo
from .report import RESULTS
from .tasks import PRETRAIN, PROBED, TASKS

DEMO = Demo(
    'work_dirs/demo',
    PRETRAIN,
    num_reconstructions=6,
    probed=PROBED,
    tasks=TASKS,
    weights='um-swin-test',
    stored=RESULTS / 'ummae.json',
)

if __name__ == '__main__':
    run_demo(DEMO, __doc__.splitlines()[0])
