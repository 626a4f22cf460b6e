"""Demonstrations on small but real data sets, generated from images inside installed Python packages."""
