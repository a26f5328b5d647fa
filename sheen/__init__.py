"""Sheen: your own voice model on Ray."""
