"""FLOPs, latency, throughput and memory of the networks and data pipelines of configs.

``measuring`` measures any callable; ``networks`` builds networks and images; ``inference``, ``step``, ``loading`` and
``training`` measure what their names say (``--measure`` of tools/benchmark.py); ``memory`` estimates GPU memory.
"""

from .inference import inference_table, measure_inference
from .loading import loading_table, measure_loading
from .measuring import DTYPES, Settings, count_multiply_adds, time_interleaved
from .memory import PeakMemory, estimate_training_memory
from .networks import build_network, read_config
from .report import environment, markdown_table, write_json
from .step import measure_steps, step_table
from .training import measure_training, training_table

__all__ = [
    'DTYPES',
    'PeakMemory',
    'Settings',
    'build_network',
    'count_multiply_adds',
    'environment',
    'estimate_training_memory',
    'inference_table',
    'loading_table',
    'markdown_table',
    'measure_inference',
    'measure_loading',
    'measure_steps',
    'measure_training',
    'read_config',
    'step_table',
    'time_interleaved',
    'training_table',
    'write_json',
]
