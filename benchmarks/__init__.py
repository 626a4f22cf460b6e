"""Comparisons with other implementations, targets, profiles and hours; run as ``python -m benchmarks.NAME``."""
