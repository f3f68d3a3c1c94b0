"""What an exchange costs; needs NumPy only.

`traffic` counts the bytes of each rank, `cost` models the seconds from bytes and rounds.
"""
