"""What the coding is compiled from: Numba on CPUs, Triton on CUDA devices, plain torch elsewhere."""
