"""Segmentation of own images."""
