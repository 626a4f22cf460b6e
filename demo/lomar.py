"""Demo of LoMaR: pre-train, show its local windows, fine-tune from the checkpoint and from scratch, compare.

python -m demo.lomar [--size smoke] [--seeds 3]
"""

from __future__ import annotations

from .chain import Demo, run_demo
from .report import RESULTS
from .tasks import LOMAR_TASKS, PRETRAIN_LOMAR, PROBED_LOMAR

DEMO = Demo(
    'work_dirs/demo-lomar',
    PRETRAIN_LOMAR,
    num_reconstructions=4,
    probed=PROBED_LOMAR,
    tasks=LOMAR_TASKS,
    weights='lomar-vit-test',
    stored=RESULTS / 'lomar.json',
)

if __name__ == '__main__':
    run_demo(DEMO, __doc__.splitlines()[0])
