"""Version of the package, in a module of its own so that setup.py can read it without importing PyTorch."""

__version__ = '0.7.0'
