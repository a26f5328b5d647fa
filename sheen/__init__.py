"""Sheen: your own voice model on Ray."""

__version__ = "0.1.0"
