"""What an exchange costs: bytes, rounds, time. NumPy only."""
