"""Kernels that call what the array libraries offer themselves."""
