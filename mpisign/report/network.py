"""What a record's facts of the network say: what it was, and whether a fast link lay idle."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ..ranks import links

FAR_BELOW = 1 / 4  # of a link's speed: headers and two copies on the way cost less
SLOWER = 1 / 2  # of the fastest link's speed; what is nearer to it was no worse choice


def told(facts: dict[str, Any]) -> str:
    """Say in a line what is known of the network."""
    one_node, pair = facts["nodes"] == 1, facts["pair"]
    means = facts["transport"] if facts["by"] == "MPI" else ""
    means = ", ".join(filter(None, (means, *(f"{name}={value}" for name, value in facts["settings"].items()))))
    by = f"by {facts['by']}{f' ({means})' if means else ''}"
    said = []
    if pair:
        where = "on one node, whose memory is the network" if one_node else f"on {facts['nodes']} nodes"
        said.append(
            f"between ranks {pair[0]} and {pair[1]}, {where}: {1e6 * facts['latency_s']:.3g} us, "
            f"{facts['bandwidth'] / 1e9:.3g} GB/s {by}{_over(facts)}"
        )
    else:
        said.append(f"one rank, which sends nothing {by}")
    if not one_node:
        kinds = [_named(own, own, unknown=" of unknown speed") or "none that are up" for own in facts["links"]]
        said += [f"links: {' or, on other nodes, '.join(kinds)}", f"Gloo's: {' or '.join(facts['gloo'])}"]
    return "; ".join(said)


def _named(names: Iterable[str], own: Mapping[str, float | None], unknown: str = "") -> str:
    return ", ".join(f"{name} {own[name]:g} Gbit/s" if own.get(name) else f"{name}{unknown}" for name in names)


def _over(facts: dict[str, Any]) -> str:
    """Name the links that carried the bytes, where the kernel has counted them."""
    return f" over {_named(facts['carried'], facts['links'][0])}" if facts["carried"] else ""


def slow(facts: dict[str, Any]) -> str | None:
    """Say what is wrong, and what to set, if a fast link between nodes is there and the ranks' bytes go slowly."""
    best = _fastest(facts)
    if best is None or not facts["pair"]:
        return None
    name, speed = best
    gbit = 8e-9 * facts["bandwidth"]
    used = [facts["links"][0].get(carrier) or speed for carrier in facts["carried"]]  # if unknown, none is blamed
    if gbit >= FAR_BELOW * speed and max(used, default=speed) > SLOWER * speed:
        return None
    return (
        f"{facts['by']} sends {gbit:.3g} Gbit/s between nodes{_over(facts)}, though there is a link of {speed:g} "
        f"Gbit/s, {name}: {_advice(facts, name)}"
    )


def slow_gloo(facts: dict[str, Any]) -> str | None:
    """Say what to set if Gloo takes a slower link between nodes than the fastest that sockets can use."""
    best = _fastest(facts, sockets=True)
    if best is None:
        return None
    name, speed = best
    for interface in facts["gloo"]:
        for own in facts["links"]:
            its = own.get(interface)
            if its and its <= SLOWER * speed:
                return (
                    f"Gloo takes {interface}, {its:g} Gbit/s, though {name} has {speed:g} Gbit/s: set "
                    f"GLOO_SOCKET_IFNAME={name}"
                )
    return None


def _fastest(facts: dict[str, Any], *, sockets: bool = False) -> tuple[str, float] | None:
    """Return the fastest link of the node whose fastest is slowest: what all have. None if one's is not known."""
    if facts["nodes"] == 1:
        return None
    each = [links.fastest(own, sockets=sockets) for own in facts["links"]]
    known = [link for link in each if link]
    return min(known, key=lambda link: link[1]) if known and len(known) == len(each) else None


def _advice(facts: dict[str, Any], name: str) -> str:
    """Say what to set, or to install, so that the link of this name is used."""
    ucx = facts["transport"].startswith("pml") or facts["transport"].endswith(":ucx")
    if ucx and links.is_rdma(name) and facts["drivers"] and not any(its.startswith("ib") for its in facts["drivers"]):
        return (
            f"UCX has loaded no driver for it (but {', '.join(facts['drivers'])}): install libibverbs (rdma-core) on "
            "each node, or take the site's MPI"
        )
    interface = links.fastest(facts["links"][0], sockets=True)
    sockets = interface[0] if interface else "INTERFACE"
    if facts["by"] != "MPI":
        return f"set GLOO_SOCKET_IFNAME={sockets}, or start by an MPI that has a driver for it"
    if facts["transport"].startswith("pml"):
        ways = f"OMPI_MCA_pml=ucx and UCX_NET_DEVICES={name}, or OMPI_MCA_btl_tcp_if_include={sockets} for TCP"
    elif facts["transport"].endswith(":ofi"):
        provider = "FI_PROVIDER=verbs, or " if links.is_rdma(name) else "FI_PROVIDER to the fabric's own, or "
        ways = f"{provider}FI_TCP_IFACE={sockets} for TCP"
    elif facts["transport"].endswith(":ucx"):
        ways = f"UCX_NET_DEVICES={name}, and let UCX_TLS name its transport or unset it"
    else:
        ways = f"UCX_NET_DEVICES={name}, or FI_PROVIDER (see your MPI's manual)"
    return f"set {ways}; if that does not help, this MPI has no driver for the link: take the site's MPI"
