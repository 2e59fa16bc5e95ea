"""How each array library is reached, and where it can go faster than the standard definition.

One module per library holds its adapter and imports no array library. Kernels lie in `native` (the library's own
functions), `cpu` (Numba, for all arrays in host memory) and `cuda`; they are loaded when a call first needs them.
"""
