"""Which network is it? Its links, by what means MPI and Gloo use them, and how fast it is between two ranks."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from . import links, transport
from .patience import quiet_barrier
from .torchrun import TorchComm

if TYPE_CHECKING:
    from .launch import Comm
    from .links import Links

SMALL, LARGE = 1, 4 * 2**20  # bytes of the messages that show the latency and the bandwidth
WARM_UP = 20  # round trips of the small message; the first ones make the connection
MOST, SECONDS = {SMALL: 200, LARGE: 10}, {SMALL: 0.15, LARGE: 0.5}  # round trips, and about how long they may take


def network(comm: Comm, nodes: Sequence[int]) -> dict[str, Any]:
    """Return what a record tells of the network between the ranks, the same on all of them. Collective.

    `nodes` is each rank's node. There are no host names and no addresses in it. `links` are those of each kind of node
    that there is, `gloo` the interfaces that Gloo takes, `settings` those of rank 0. `pair` are the ranks between
    which `latency_s` (half a round trip, seconds) and `bandwidth` (bytes a second) were measured, None if there is
    but one rank; `carried` are the links over which rank 0's bytes went, as far as the kernel counts them. It takes
    under a second on links of 1 Gbit/s or more.
    """
    own, many, asked = links.links(), len(set(nodes)) > 1, os.environ.get("GLOO_SOCKET_IFNAME")
    gloo = transport.shown(asked) if asked else links.interface_of_host() if many else links.LOOPBACK
    everyones = comm.allgather((own, gloo))
    facts: dict[str, Any] = {"by": "MPI", "transport": transport.UNKNOWN, "drivers": transport.drivers()}
    if isinstance(comm, TorchComm):
        facts |= {"by": "Gloo", "transport": "sockets"}
    else:
        facts["transport"] = transport.transport()
    facts |= {
        "settings": transport.settings(), "nodes": len(set(nodes)),
        "links": _different([links_of_rank for links_of_rank, _ in everyones]),
        "gloo": _different([interface or transport.UNKNOWN for _, interface in everyones]), "pair": None,
    }  # fmt: skip
    other = farthest(nodes)
    if other is not None:
        quiet_barrier(comm)
        if comm.rank in (0, other):
            facts |= {"pair": [0, other], **_ping_pong(comm, other, own)}
        quiet_barrier(comm)  # the others sleep meanwhile: they may share a core with the two
    everywhere: dict[str, Any] = comm.bcast(facts)
    return everywhere


def farthest(nodes: Sequence[int]) -> int | None:
    """Return the rank that is farthest from rank 0, as numbers tell: the last node's first, or else the last rank."""
    if len(nodes) < 2:
        return None
    return nodes.index(max(nodes)) if len(set(nodes)) > 1 else len(nodes) - 1


def _different(things: Sequence[Any]) -> list[Any]:
    return [thing for at, thing in enumerate(things) if thing not in things[:at]]


def _ping_pong(comm: Comm, other: int, own: Links) -> dict[str, Any]:
    """Return what rank 0 measures of messages to the other rank and back.

    How many there are depends on how long the first ones take: rank 0 tells it.
    """
    names = [*own, links.LOOPBACK]
    trips = {size: _trip(comm, other, size) for size in (SMALL, LARGE)}

    def measured(size: int, warm_up: int) -> tuple[float, int]:
        """Return the median seconds of a message one way, and how many messages this rank sent."""
        first = statistics.median(_times(trips[size], warm_up))
        count = max(1, min(MOST[size], int(SECONDS[size] / first)))
        if comm.rank == 0:
            comm.send(count, other)
        else:
            count = comm.recv(source=0)
        return statistics.median(_times(trips[size], count)) / 2, warm_up + count

    latency, _ = measured(SMALL, WARM_UP)
    before = links.sent_bytes(names)
    seconds, messages = measured(LARGE, 1)
    carried = links.carriers(before, links.sent_bytes(names), messages * LARGE)
    return {"latency_s": latency, "bandwidth": LARGE / seconds, "carried": carried}


def _times(trip: Callable[[], None], count: int) -> list[float]:
    seconds = []
    for _ in range(count):
        began = time.perf_counter()
        trip()
        seconds.append(time.perf_counter() - began)
    return seconds


def _trip(comm: Comm, other: int, size: int) -> Callable[[], None]:
    """Return what sends a message of so many bytes from rank 0 to the other and back, from memory that both reuse."""
    memory: Any = bytearray(size)  # the doctor runs without NumPy
    if isinstance(comm, TorchComm):
        import numpy as np

        memory = np.frombuffer(memory, np.uint8)

    def there_and_back() -> None:
        if comm.rank == 0:
            comm.Send(memory, other)
            comm.Recv(memory, other)
        else:
            comm.Recv(memory, 0)
            comm.Send(memory, 0)

    return there_and_back
