"""Kernels for arrays that are made of blocks (Dask): the same call on each block, and what joins their results.

Blocks may be NumPy, CuPy or torch arrays, as the call on each is dispatched again. Nothing is computed here.
"""
