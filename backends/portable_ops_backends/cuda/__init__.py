"""CUDA kernels, shared by everything that lives in the memory of an NVIDIA GPU."""
