"""The cost model: its bytes, its fit, and where its curves meet."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from launch import ROOT
from made import KNOWN, SIZES, made_sweep, rates_of
from scipy.optimize import nnls

from mpisign.coding.sizes import WORD, roll_for
from mpisign.methods.table import METHODS
from mpisign.network import cost, traffic
from mpisign.network.cost import Curve, Rates
from mpisign.report import projection, records
from mpisign.voting.exchange import EXCHANGES


def points_of(*runs):
    return cost.by_method(point for run in runs for point in projection.points(run))


def test_the_model_knows_every_vote_and_every_plain_all_reduce():
    assert list(traffic.PHASES) == list(EXCHANGES)
    assert [cost.FORMULAS[name].exchange for name in cost.MODELLED_VOTES] == list(EXCHANGES)
    assert set(cost.MODELLED_VOTES) == {f"vote-{name}" for name in EXCHANGES} <= set(METHODS)
    dense = {name: how.size for name, how in cost.FORMULAS.items() if how.kind == "rival"}
    # An all-reduce makes each of two ranks send as many bytes as go into it.
    assert dense == {name: METHODS[name].traffic([(2,)], "positive", (0, 1)).max() / 2 for name in dense}
    left = {name for name, method in METHODS.items() if method.kind != "vote"} - set(dense)
    assert left == {"none", "powersgd-2", "powersgd-4"}


@pytest.mark.parametrize("tie", ["positive", "zero"])
@pytest.mark.parametrize("d", [0, 1, 64, 65, 8191, 8193, 10**6 + 7])
@pytest.mark.parametrize("P", [1, 2, 3, 7, 8, 15, 16, 33, 128])
def test_the_bytes_are_the_formulas(P, d, tie):
    """Written out once more: what DESIGN and README say of each exchange."""
    W, back = math.ceil(d / 64), 2 if tie == "zero" else 1
    counters = math.ceil(W / 128) * (int(math.log2(P)) + 1) * 128 * 8
    formulas = {
        "mpi": 2 * (P - 1) * 4 * d // P, "gloo": 2 * (P - 1) * 4 * d // P, "nccl": 2 * (P - 1) * 4 * d // P,
        "fp16": 2 * (P - 1) * 2 * d // P, "bf16": 2 * (P - 1) * 2 * d // P,
        "bf16-mpi": 2 * (P - 1) * 2 * math.ceil(d / P),
        "vote-allgather": (P - 1) * W * 8, "vote-server": (P - 1) * W * 8 * (1 + back),
        "vote-alltoall": (P - 1) * math.ceil(W / P) * 8 * (1 + back), "vote-reduce": 2 * (P - 1) * counters // P,
        "vote-hierarchical": 2 * (P - 1) * counters // P,
    }  # fmt: skip
    assert {name: cost.terms(name, P, d=d, nodes=P, tie=tie).bytes for name in cost.FORMULAS} == formulas
    alone = cost.terms("vote-hierarchical", P, d=d, nodes=1, tie=tie)
    assert alone.bytes == formulas["vote-server"]
    if P % 4 == 0:  # four ranks a node: in, among the nodes, out
        among = 2 * (P // 4 - 1) * counters // (P // 4)
        assert cost.terms("vote-hierarchical", P, d=d, nodes=P // 4, tie=tie).bytes == 3 * W * 8 * (1 + back) + among


@pytest.mark.parametrize("name", cost.FORMULAS)
@pytest.mark.parametrize("P", [1, 2, 5, 16])
def test_the_bytes_are_what_the_exchange_books_at_its_busiest_rank(name, P):
    d = 12345
    taken = cost.terms(name, P, d=d, nodes=P).bytes
    roll = (P - 1) * roll_for(1) * WORD if METHODS[name].kind == "vote" else 0  # which the model leaves out
    sent = METHODS[name].traffic([(d,)], "positive", range(P)) - roll
    # A server's gather and broadcast follow each other; all else is sent and received at once.
    assert taken == (sent[0].sum() if name == "vote-server" else sent.max())


def test_the_bytes_are_those_in_a_kept_record():
    run = records.read(max((ROOT / "results" / "published").glob("*/*-sweep-4-ranks.jsonl")))
    roll = 3 * roll_for(1) * WORD  # of a rank to three others; the model leaves it out
    for size, booked in run.head["traffic"].items():
        for name in set(booked) & set(cost.FORMULAS):
            sent, received = booked[name]
            both_ways = name in ("vote-server", "vote-hierarchical")
            told = sent[0] + received[0] if both_ways else max(sent + received)
            votes = cost.FORMULAS[name].kind == "vote"
            assert cost.terms(name, 4, d=int(size) // 4).bytes == told - votes * roll * (1 + both_ways)


@pytest.mark.parametrize("name", cost.FORMULAS, ids="by {}".format)  # a test called [mpi] would be a collective one
def test_one_rank_needs_no_wire(name):
    taken = cost.terms(name, 1, d=10**6)
    assert (taken.steps, taken.bytes) == (0, 0)
    assert cost.seconds(taken, rates_of(name)) < 3e-3


@given(
    name=st.sampled_from(list(cost.FORMULAS)), P=st.integers(2, 300), d=st.integers(0, 10**8),
    more=st.integers(1, 10**8), bandwidth=st.floats(1e5, 1e11), factor=st.floats(1.01, 100),
)  # fmt: skip
def test_more_coordinates_take_longer_and_more_bandwidth_does_not(name, P, d, more, bandwidth, factor):
    small, large = (cost.curve(name, P, d=n, rates=KNOWN) for n in (d, d + more))
    assert small.seconds(bandwidth) <= large.seconds(bandwidth)
    assert large.seconds(bandwidth * factor) < large.seconds(bandwidth)
    assert large.seconds(bandwidth, hidden_s=1e-4) <= large.seconds(bandwidth)


@pytest.mark.parametrize("name", cost.FORMULAS)
@pytest.mark.parametrize("outliers", [0, 3])
def test_known_rates_are_recovered_from_medians(name, outliers):
    runs = [made_sweep(ranks, outliers=outliers, names=(name,)) for ranks in (2, 3, 5)]
    (found,) = points_of(*runs).values()
    assert cost.fit(found) == pytest.approx(rates_of(name), rel=1e-6)
    errors = cost.held_out(found)
    assert len(errors.sizes) == len(errors.ranks) == 3 * len(SIZES)
    assert max(errors.sizes + errors.ranks) < 1e-6


def test_one_sweep_tells_the_wire_from_the_coding():
    (found,) = points_of(made_sweep(names=("vote-alltoall",))).values()
    assert cost.fit(found) == pytest.approx(KNOWN, rel=1e-6)
    assert cost.held_out(found).ranks == []


def test_the_held_out_error_tells_of_what_the_model_does_not_know():
    (straight,), (bent,) = (points_of(made_sweep(names=("mpi",), bend=bend)).values() for bend in (1.0, 3.0))
    assert max(cost.held_out(straight).sizes) < 1e-6
    assert max(cost.held_out(bent).sizes) > 0.2
    (few,) = points_of(made_sweep(2, names=("mpi",)), made_sweep(16, names=("mpi",), bend=3.0)).values()
    assert min(max(errors) for errors in cost.held_out(few)) > 0.2


def test_the_held_out_points_are_not_fitted():
    """One point of five is off: the fit sees it, and where it is held out it is foretold as if it were not."""
    (found,) = points_of(made_sweep(names=("mpi",), sizes=SIZES[:5])).values()
    found[-1] = found[-1]._replace(seconds=2 * found[-1].seconds)
    assert cost.held_out(found).sizes.count(pytest.approx(0.5)) == 1
    assert abs(cost.seconds(found[-1].terms, cost.fit(found)) / found[-1].seconds - 1) < 0.4


def test_the_fit_has_the_least_squares_of_relative_error():
    (found,) = points_of(made_sweep(names=("mpi",), bend=3.0)).values()
    rates = cost.fit(found)

    def error(**changed):
        return sum((cost.seconds(p.terms, rates._replace(**changed)) / p.seconds - 1) ** 2 for p in found)

    for rate in ("alpha", "beta"):
        for factor in (0.99, 1.01):
            assert error(**{rate: factor * getattr(rates, rate)}) > error()


@given(st.integers(0, 10**6), st.integers(1, 3))
def test_the_least_squares_are_those_of_scipy(seed, columns):
    rng = np.random.default_rng(seed)
    A, b = rng.normal(size=(8, columns)) * 10.0 ** rng.integers(-3, 9, columns), rng.normal(size=8)
    theirs, left = nnls(A, b)
    ours = np.array(cost.non_negative(A, b, np.ones(8)))
    assert (ours >= 0).all()
    assert np.linalg.norm(A @ ours - b) == pytest.approx(left, rel=1e-6)
    assert A @ ours == pytest.approx(A @ theirs, abs=1e-6)


def test_break_even_is_where_the_curves_meet():
    vote, rival = Curve(fixed_s=0.050, bytes=10 * 10**6), Curve(fixed_s=0.010, bytes=200 * 10**6)
    at = cost.break_even([vote], [rival])
    assert at == pytest.approx(190e6 / 0.040)
    assert vote.seconds(at) == pytest.approx(rival.seconds(at))
    assert vote.seconds(at * 0.99) < rival.seconds(at * 0.99)
    assert vote.seconds(at * 1.01) > rival.seconds(at * 1.01)


def test_break_even_overlapped_is_where_the_rival_is_all_hidden():
    vote, rival = Curve(0.050, 10 * 10**6), Curve(0.010, 200 * 10**6)
    at = cost.break_even([vote], [rival], hidden_s=0.110)
    assert at == pytest.approx(200e6 / 0.100)
    assert rival.seconds(at, 0.110) == pytest.approx(0, abs=1e-12)
    # Less can be hidden than the coding takes: as without overlap.
    assert cost.break_even([vote], [rival], hidden_s=0.020) == pytest.approx(190e6 / 0.040)


def test_break_even_takes_the_best_of_each_side():
    lean, quick = Curve(0.050, 10 * 10**6), Curve(0.020, 100 * 10**6)
    rival = Curve(0.010, 200 * 10**6)
    assert cost.break_even([lean, quick], [rival]) == pytest.approx(100e6 / 0.010)
    assert cost.break_even([lean, quick], [rival, Curve(0.010, 20 * 10**6)]) == pytest.approx(10e6 / 0.040)


def test_break_even_may_be_nowhere():
    assert cost.break_even([Curve(0.01, 10)], [Curve(0.02, 20)]) == math.inf
    assert cost.break_even([Curve(0.02, 20)], [Curve(0.01, 10)]) == 0
    assert cost.break_even([Curve(0.01, 20)], [Curve(0.02, 10)]) == 0  # it pays on fast wires only
    assert cost.break_even([Curve(0.01, 10)], [Curve(0.01, 10)]) == 0


def test_an_all_reduce_is_granted_the_fewest_messages():
    assert cost.terms("nccl", 4096, d=1).steps == 8190
    assert cost.curve("nccl", 4096, d=0, rates=Rates(alpha=1, beta=0)).fixed_s == 24
    assert cost.curve("vote-alltoall", 4096, d=0, rates=Rates(alpha=1, beta=0)).fixed_s == 8190
    assert cost.curve("nccl", 4096, d=0, rates=Rates(alpha=1, beta=0), latency=0.5).fixed_s == 12


def test_what_no_model_can_be_made_of_is_refused_by_name():
    with pytest.raises(ValueError, match=r"no 'powersgd-2', choose from mpi, "):
        cost.terms("powersgd-2", 4, d=100)
    with pytest.raises(ValueError, match="2 ranks on 3 nodes"):
        cost.terms("mpi", 2, d=100, nodes=3)
    with pytest.raises(ValueError, match="mpi: too few sizes for a fit: 2, and 3"):
        cost.fit(points_of(made_sweep(sizes=SIZES[:2], names=("mpi",)))["mpi"])
