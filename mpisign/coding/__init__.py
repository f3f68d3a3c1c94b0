"""From floats to words of signs, and from words to counts and votes: exact, on CPUs and devices."""
