"""`report --project`: what it prints, draws and refuses."""

import re
import subprocess
import sys

import pytest
from launch import ROOT
from made import KNOWN, SIZES, kept, made_run, made_sweep

from mpisign.network import cost
from mpisign.network.cost import GBIT
from mpisign.report import __main__ as report
from mpisign.report import charts, projection


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Records: sweeps of known rates among 2 and 4 ranks, and a run of a model of 100 coordinates and 10 ms."""
    folder = tmp_path_factory.mktemp("records")
    for ranks in (2, 4):
        kept(made_sweep(ranks), folder / f"sweep-{ranks}.jsonl")
    for name in ("model", "another"):
        kept(made_run(), folder / f"{name}.jsonl")
    kept(made_sweep(sizes=SIZES[:2]), folder / "short.jsonl")
    kept(made_sweep(names=("vote-alltoall", "fp16")), folder / "no-rival.jsonl")
    return folder


def project(folder, out, *arguments, files=("sweep-2", "sweep-4")):
    return report.main([*(str(folder / f"{name}.jsonl") for name in files), "--project", str(out), *arguments])


@pytest.fixture
def undrawn(monkeypatch):
    """For what is printed alone."""
    monkeypatch.setattr(charts, "write", lambda stem, draw: [])


def test_it_draws_the_same_to_the_byte_and_prints_the_break_even_bandwidths(folder, tmp_path, capsys):
    arguments = ("--compute-ms", "300", "--latency-us", "5", "--ranks", "8", "--format", "markdown")
    for name in ("a", "b"):
        assert project(folder, tmp_path / "new" / name, *arguments) == 0
    out, err = capsys.readouterr()
    assert [path.name for path in sorted((tmp_path / "new").iterdir())] == ["a.png", "a.svg", "b.png", "b.svg"]
    for suffix in ("png", "svg"):
        assert (tmp_path / "new" / f"a.{suffix}").read_bytes() == (tmp_path / "new" / f"b.{suffix}").read_bytes()
    assert str(tmp_path / "new" / "a.svg") in err
    table = {row.split("|")[1].strip(): row.split("|")[2:-1] for row in out.splitlines() if row.startswith("|")}
    assert set(table) >= {str(P) for P in projection.RANKS} | set(cost.FORMULAS)
    vote, rival = (
        cost.curve(name, 64, d=projection.RESNET50_COORDINATES, latency=5e-6,
                   rates=KNOWN._replace(gamma=gamma, delta=delta, fixed=fixed))
        for name, gamma, delta, fixed in (("vote-alltoall", *KNOWN[2:]), ("mpi", 0, 0, 0))
    )  # fmt: skip
    assert float(table["64"][1]) == pytest.approx(cost.break_even([vote], [rival]) / GBIT, rel=0.01)
    assert float(table["64"][3]) == pytest.approx(cost.break_even([vote], [rival], hidden_s=0.2) / GBIT, rel=0.01)
    assert [float(cell) for cell in table["vote-alltoall"][:5]] == [20, 10, 0.5, 3, 40]  # KNOWN, in the table's units
    assert table["vote-alltoall"][-1].strip() == "0 %, at worst 0 %"


def test_the_chart_says_what_it_rests_on(folder, tmp_path):
    assert project(folder, tmp_path / "p", files=("model", "sweep-4")) == 0
    drawn = (tmp_path / "p.svg").read_text()
    text = " ".join(re.findall(r"<!-- (.*?) -->", drawn))  # letters are drawn; what they say stands beside them
    assert "100 coordinates; compute 10.04 ms, of which backward 5.018 ms (a run of tiny)." in text
    assert "latency as fitted, method by method" in text
    assert "Fitted from sweeps of 4 ranks on X." in text
    assert "WARNING" not in text
    for name in cost.FORMULAS:
        assert name in text
    assert text.count("0 %, at worst 0 %") >= len(cost.FORMULAS)
    assert re.search(
        r"best vote (never|always) pays against (fp32|bf16)|pays up to \S+ Gbit/s against (fp32|bf16)", text
    )


def test_options_go_before_the_models_run(folder, tmp_path, capsys, undrawn):
    assert project(folder, tmp_path / "p", "--compute-ms", "20", "--coordinates", "777",
                   files=("model", "sweep-4")) == 0  # fmt: skip
    said = capsys.readouterr().out
    assert "777 coordinates; compute 20 ms, of which backward 10 ms (compute as given, a run of tiny)." in said


def test_only_the_methods_asked_for(folder, tmp_path, capsys, undrawn):
    assert project(folder, tmp_path / "p", "--compute-ms", "1", "--project-methods", "gloo,vote-server") == 0
    said = capsys.readouterr().out
    assert "gloo" in said
    assert "vote-alltoall" not in said
    assert "bf16" not in said


@pytest.mark.parametrize(
    ("files", "arguments", "said"),
    [
        (["model"], ["--compute-ms", "1"], "model.jsonl: no sweep over sizes"),
        (["nowhere"], [], "nowhere.jsonl"),
        (["sweep-2", "model", "another"], [], "another.jsonl: --project takes one run of a model at most"),
        (["short"], ["--compute-ms", "1"], "mpi: too few sizes for a fit: 2"),
        (["no-rival"], ["--compute-ms", "1"], "no vote with an all-reduce in fp32 or bf16: only fp16, vote-alltoall"),
        (["sweep-2"], [], "--project needs --compute-ms, or a run of a model beside the sweeps"),
        (
            ["sweep-2"],
            ["--compute-ms", "1", "--project-methods", "votes"],
            "the model knows no 'votes', choose from mpi",
        ),
        (["no-rival"], ["--compute-ms", "1", "--project-methods", "mpi"], "no sweep given has mpi"),
        (["sweep-2"], ["--compute-ms", "1", "--ranks", "0"], "--ranks: must be at least 1, got 0"),
        (["sweep-2"], ["--compute-ms", "1", "--coordinates", "-1"], "--coordinates: must be at least 1, got -1"),
        (["sweep-2"], ["--compute-ms", "1", "--format", "csv"], "--project prints a table or markdown"),
    ],
)
def test_what_cannot_be_projected_is_refused_in_one_line(files, arguments, said, folder, tmp_path, capsys):
    assert project(folder, tmp_path / "p", *arguments, files=files) == 2
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_method_that_was_wrong_at_one_size_is_left_out(folder, tmp_path, capsys, undrawn):
    run = made_sweep()
    next(line for line in run.exchange if line["method"] == "vote-alltoall")["wrong"] = 1
    kept(run, tmp_path / "faulty.jsonl")
    (tmp_path / "sweep-2.jsonl").write_bytes((folder / "sweep-2.jsonl").read_bytes())
    both = {"files": ("sweep-2", "faulty")}
    assert project(tmp_path, tmp_path / "p", "--compute-ms", "1", **both) == 0
    said = capsys.readouterr().out.splitlines()
    assert [line for line in said if "vote-alltoall" in line] == [
        "WARNING: left out, for they had wrong results in a sweep: vote-alltoall."
    ]
    for names, fault in (("vote-alltoall,mpi", "--project-methods: vote-alltoall had wrong results in a sweep"),
                         ("mpi", "only mpi, without vote-alltoall, which had wrong results")):  # fmt: skip
        assert project(tmp_path, tmp_path / "p", "--compute-ms", "1", "--project-methods", names, **both) == 2
        assert fault in capsys.readouterr().err


@pytest.mark.parametrize("argument", [["--bandwidth", "0"], ["--latency-us", "nan"], ["--compute-ms", "-1"]])
def test_numbers_out_of_range_are_refused(argument, folder, tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        project(folder, tmp_path / "p", *argument)
    assert "is no finite number above 0" in capsys.readouterr().err


def test_a_figure_that_cannot_be_written_is_refused(folder, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert project(folder, tmp_path / "file" / "p", "--compute-ms", "1") == 2
    assert "file" in capsys.readouterr().err


def test_ranks_that_share_cores_are_warned_of(tmp_path, capsys, undrawn):
    run = made_sweep()
    run.head["machine"]["ranks_per_core"] = 2.0
    kept(run, tmp_path / "crowded.jsonl")
    assert project(tmp_path, tmp_path / "p", "--compute-ms", "1", files=["crowded"]) == 0
    assert "WARNING: ranks shared cores" in capsys.readouterr().out


def test_a_table_waits_for_no_plotting(folder):
    code = "import sys; import mpisign.report.__main__; assert not {'matplotlib', 'scipy', 'torch'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, timeout=60)


def test_a_points_terms_are_its_records():
    run = made_sweep(4, nodes=2, sizes=SIZES[:3], names=("vote-hierarchical",))
    run.head["config"]["tie"] = "zero"
    assert [p.terms for p in projection.points(run)] == [
        cost.terms("vote-hierarchical", 4, d=size // 4, nodes=2, tie="zero") for size in SIZES[:3]
    ]


def test_a_run_without_points_is_refused():
    with pytest.raises(ValueError, match="no sweep"):
        projection.points(made_run())
    foreign = made_sweep(names=("mpi",))
    foreign.head["methods"] = ["none", "powersgd-2"]
    with pytest.raises(ValueError, match="no method that the model knows"):
        projection.points(foreign)
