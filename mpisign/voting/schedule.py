"""When votes are taken: after backward, or during it in a thread."""

from __future__ import annotations

SCHEDULES = ("serial", "overlap")  # of the exchange: after backward, or during it in a thread
