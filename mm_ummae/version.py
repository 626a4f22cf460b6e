"""The version, alone so that setup.py can read it without importing torch."""

__version__ = '0.5.0'
