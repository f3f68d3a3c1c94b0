"""The vote between nodes of a model that FSDP2 has sharded inside them: 4 ranks as 2 nodes of 2; see sharded.py."""

from pathlib import Path

import pytest
from launch import ROOT, run, torchrun, written

SCRIPT = Path(__file__).parent / "sharded.py"
RANKS = 4
NAMES = (
    "signum", "signsgd_with_coins", "lion_without_ties", "noisy", "stochastic", "abstaining", "revocable",
    "a_module_without_a_gradient", "a_module_without_a_gradient_on_one_node", "one_module", "sharded_by_columns",
    "offloaded", "mixed_precision", "learns", "resumes", "accumulates", "frozen_on_the_way",
    "goes_on_after_a_failed_backward", "taken_back", "refuses_a_model_that_is_not_sharded",
    "refuses_a_mesh_of_two_dimensions", "refuses_ranks_among_which_nothing_is_replicated", "refuses_other_ranks",
    "refuses_a_second_time", "refuses_what_is_not_sharded", "refuses_the_meta_device", "refuses_other_shapes",
    "refuses_nodes_that_differ", "refuses_votes_that_are_added_to", "refuses_parameters_that_are_thawed",
    "refuses_parameters_that_are_replaced", "refuses_to_leave_momentum_out", "refuses_an_optimizer_for_gradients",
    "refuses_clipping", "refuses_votes_that_nobody_used", "refuses_what_is_not_finite",
)  # fmt: skip


def read(file, ended):
    """Return what the ranks raised, by name."""
    return {line["name"]: line["raised"] for line in written(file, ended)}


@pytest.fixture(scope="module")
def raised(tmp_path_factory):
    file = tmp_path_factory.mktemp("torchrun") / "raised.jsonl"
    return read(file, torchrun(RANKS, str(SCRIPT), str(file), *NAMES, timeout=280))


@pytest.mark.parametrize("name", NAMES)
def test_a_sharded_model(raised, name):
    assert raised[name] == [None] * RANKS


def test_the_votes_are_over_mpi(tmp_path):
    file = tmp_path / "raised.jsonl"
    assert read(file, run(2, str(SCRIPT), str(file), "over_mpi")) == {"over_mpi": [None] * 2}


def test_the_page_has_a_row_for_each():
    listed = (ROOT / "docs" / "ddp.md").read_text()
    assert [name for name in (*NAMES, "over_mpi") if f"`{name}`" not in listed] == ["learns", "taken_back"]
