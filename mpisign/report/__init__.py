"""A run as a file, and what is drawn from it; needs neither MPI nor torch nor Numba.

`records` reads and writes a run, `summary` sums it up, `table`, `charts`, `page` and `trace` show it. Other rooms use
these, `formats` and `rows.widest`; `mpisign.report` is also a command.
"""
