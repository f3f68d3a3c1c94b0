from mpisign.bench.config import Config
from mpisign.ranks import agreement, machine


def test_what_ranks_were_started_with_is_compared():
    ours = machine.started("p", Config(output="a", data="b", iterations=3), ("data", "output"))
    assert ours["--iterations"] == 3
    assert ours["the program"] == "p"
    assert ours["torch"]
    assert {"--output", "--data"}.isdisjoint(ours)
    assert machine.started("p", Config(output="c", data="d", iterations=3), ("data", "output")) == ours
    other = ours | {"--iterations": 4, "torch": "0"}
    said = agreement.unlike([ours, ours, other, {**other, "--tie": "random"}])
    assert "--iterations is 3 on rank 0 and 4 on rank 2" in said
    assert f"torch is {ours['torch']} on rank 0 and 0 on rank 2" in said
    assert "--tie is positive on rank 0 and random on rank 3" in said
    assert (
        agreement.unlike([{"a": 1}, {"b": 1}])
        == "a is 1 on rank 0 and None on rank 1; b is None on rank 0 and 1 on rank 1"
    )
