"""What networks cost: parameters, multiply-adds, seconds and memory.

The parts do not know each other: ``networks`` makes something to measure, ``measuring`` measures anything that can be
called, ``report`` says where and writes it down. ``prediction`` puts them together for one image, ``training`` for
steps (``plain`` is what they are compared with, ``profile`` and ``plot`` look closer), ``loading`` for images from
files, ``end_to_end`` for all of it; ``scaling`` reckons with the results.
"""

from .measuring import at_least, check_device, count_multiply_adds, flop_counter, peak_memory, time_interleaved
from .networks import DTYPES, PACKERS, SEED, build_network, random_image, read_config
from .prediction import Prediction, benchmark, calibrate, network_table
from .report import ROOT, environment, markdown_table, write_json

__all__ = [
    'DTYPES',
    'PACKERS',
    'ROOT',
    'SEED',
    'Prediction',
    'at_least',
    'benchmark',
    'build_network',
    'calibrate',
    'check_device',
    'count_multiply_adds',
    'environment',
    'flop_counter',
    'markdown_table',
    'network_table',
    'peak_memory',
    'random_image',
    'read_config',
    'time_interleaved',
    'write_json',
]
