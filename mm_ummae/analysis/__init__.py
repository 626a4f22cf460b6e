"""FLOPs, latency, throughput and memory of the networks and data pipelines of configs.

``measuring`` measures any callable; ``networks`` builds networks and images; ``inference``, ``step``, ``loading`` and
``training`` measure what their names say (``--measure`` of tools/benchmark.py); ``memory`` estimates GPU memory.
"""

from .inference import measure_inference
from .loading import measure_loading
from .measuring import DTYPES, Settings, count_multiply_adds, time_interleaved
from .memory import PeakMemory, estimate_training_memory
from .networks import build_network, read_config
from .report import environment, markdown_table, results_table, write_json
from .step import measure_steps
from .training import measure_training

__all__ = [
    'DTYPES',
    'PeakMemory',
    'Settings',
    'build_network',
    'count_multiply_adds',
    'environment',
    'estimate_training_memory',
    'markdown_table',
    'measure_inference',
    'measure_loading',
    'measure_steps',
    'measure_training',
    'read_config',
    'results_table',
    'time_interleaved',
    'write_json',
]
