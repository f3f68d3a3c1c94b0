"""From floats to words of signs, and from words to counts and votes: exact, on CPUs and devices.

`bits` packs and `counting` votes on NumPy's arrays, `coding` does both on tensors of any device; `sizes` and `ties` are
plain Python. `kernels` holds the compiled code, which is loaded at its first call.
"""
