"""Whole tasks on own images."""
