"""A run as a file, and what is drawn from it. Needs neither MPI nor torch nor Numba."""
