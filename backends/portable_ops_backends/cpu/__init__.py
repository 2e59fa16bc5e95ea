"""Numba kernels for arrays in host memory, whichever library holds them. Nothing here is imported before it is needed."""
