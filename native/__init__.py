"""Compiled kernels on the per-message path: no clock, no randomness, no configuration inside."""
