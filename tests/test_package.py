"""The package as a whole: its public names, its commands and their options, and what they load."""

import json
import os
import re
import subprocess
import sys
from functools import cache

import pytest
from launch import ROOT, environment, our_lines, run

import mpisign

COMMANDS = {
    "mpisign": ("mpisign",),
    "mpisign slurm": ("mpisign", "slurm"),
    "mpisign photos": ("mpisign", "photos"),
    "mpisign.bench": ("mpisign.bench",),
    "mpisign.train": ("mpisign.train",),
    "mpisign.report": ("mpisign.report",),
    "mpisign.report compare": ("mpisign.report", "compare"),
    "mpisign.doctor": ("mpisign.doctor",),
}
HEAVY = {"torch", "torchvision", "mpi4py", "numba", "numpy", "llvmlite"}
# Runs what is given as `python -m` would, and then says on standard error which modules there are.
LOADED = """
import json, runpy, sys
sys.argv[1:], module = sys.argv[2:], sys.argv[1]
try:
    __import__(module) if sys.argv[1:] == ["import"] else runpy.run_module(module, run_name="__main__", alter_sys=True)
except SystemExit as ended:
    assert not ended.code, ended
finally:
    print(json.dumps(sorted({name.split(".")[0] for name in sys.modules})), file=sys.stderr)
"""


@cache
def loading(*arguments):
    """Return what a command printed, and the top-level names of the modules that it loaded."""
    ended = subprocess.run([sys.executable, "-c", LOADED, *arguments], env=environment(COLUMNS="300"),
                           capture_output=True, text=True, timeout=60, check=True)  # fmt: skip
    return ended.stdout, set(json.loads(ended.stderr.splitlines()[-1]))


def options_of(command):
    """Return the options that --help lists, with what they take; of positional arguments the names."""
    text, _ = loading(*COMMANDS[command], "--help")
    return re.findall(r"^  ((?:-h, )?-?-?[a-zA-Z][\w.-]*(?: [^ \n]+)*)(?:  .*)?$", text.split("\n\ncommands")[0], re.M)


def test_importing_the_package_loads_nothing_heavy():
    _, modules = loading("mpisign", "import")
    assert not HEAVY & modules


@pytest.mark.parametrize("command", COMMANDS)
def test_no_help_loads_anything_heavy(command):
    text, modules = loading(*COMMANDS[command], "--help")
    assert text.startswith(f"usage: {command} ")
    assert not HEAVY & modules


def test_options_neither_come_nor_go_unseen():
    """If one should: python tests/test_package.py > tests/options.txt, and say so in CHANGELOG.md."""
    assert listed() == (ROOT / "tests" / "options.txt").read_text()


def listed():
    return "".join(f"{command} {option}\n" for command in COMMANDS for option in options_of(command))


def mpisign_says(*arguments, **extra):
    return subprocess.run([sys.executable, "-m", "mpisign", *arguments], env=environment(**extra), capture_output=True,
                          text=True, timeout=60, check=False)  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "mpisign: error: the following arguments are required: COMMAND"),
        (["bnech"], "mpisign: error: argument COMMAND: invalid choice: 'bnech'"),
        (["slurm"], "mpisign slurm: error: the following arguments are required: DIR"),
        (["slurm", "/dev/null/x"], "mpisign slurm: error: [Errno 20]"),
        (["photos", "x", "--validate", "5"], "mpisign photos: error: argument --validate: '5' is not between 0 and 1"),
        (["report", "nowhere.jsonl"], "mpisign.report: error: "),
        (["doctor", "--limit", "0"], "mpisign.doctor: error: argument --limit: 0 is less than 1"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, list) else "",
)
def test_bad_input_gets_one_line_and_code_2(arguments, said):
    ended = mpisign_says(*arguments)
    assert (ended.returncode, ended.stdout) == (2, "")
    (line,) = ended.stderr.splitlines()
    assert line.startswith(said)


def test_under_mpirun_one_rank_prints():
    assert run(3, "-m", "mpisign", "--version").stdout == f"mpisign {mpisign.__version__}\n"
    assert run(3, "-m", "mpisign", "--help").stdout.count("usage: mpisign ") == 1
    ended = run(3, "-m", "mpisign", "nonsense")
    assert ended.returncode == 2
    assert len(our_lines(ended.stderr)) == 1


def test_the_job_scripts_are_written_once(tmp_path):
    assert mpisign_says("slurm", tmp_path / "jobs").stdout.count("\n") == 2
    for script in (ROOT / "slurm").glob("*.sh"):
        written = tmp_path / "jobs" / script.name
        assert written.read_text() == script.read_text()
        assert os.access(written, os.X_OK)
        written.write_text("mine")
    ended = mpisign_says("slurm", tmp_path / "jobs")
    assert (ended.returncode, ended.stdout) == (2, "")
    assert "is there already (--force overwrites it)" in ended.stderr
    assert {path.read_text() for path in (tmp_path / "jobs").iterdir()} == {"mine"}
    assert mpisign_says("slurm", tmp_path / "jobs", "--force").returncode == 0
    assert "mine" not in {path.read_text() for path in (tmp_path / "jobs").iterdir()}


def test_without_scikit_learn_the_extra_is_named(tmp_path):
    (tmp_path / "sklearn.py").write_text("raise ModuleNotFoundError('no', name='sklearn')")
    ended = mpisign_says("photos", tmp_path / "photos", PYTHONPATH=f"{tmp_path}{os.pathsep}{ROOT}")
    assert ended.returncode == 2
    assert ended.stderr == (
        "mpisign photos: error: the photographs are scikit-learn's, and sklearn is missing: "
        "python -m pip install 'mpisign[photos]'\n"
    )
    assert not (tmp_path / "photos").exists()


def test_help_shows_the_public_names_with_their_docstrings():
    ended = subprocess.run([sys.executable, "-c", "import mpisign; help(mpisign)"], env=environment(),
                           capture_output=True, text=True, timeout=60, check=True)  # fmt: skip
    text = " ".join(ended.stdout.split())
    for name in mpisign.__all__:
        assert name in text
        value = getattr(mpisign, name)
        if callable(value):
            assert " ".join(value.__doc__.splitlines()[0].split()) in text
    assert mpisign.__version__ in text


def test_what_is_declared_as_tested_is_what_runs_here():
    declared = re.findall(r"Programming Language :: Python :: ([\d.]+)", (ROOT / "pyproject.toml").read_text())
    assert declared
    if os.environ.get("CI"):
        assert declared == ["{}.{}".format(*sys.version_info)]


def test_a_newer_library_does_not_flood_the_user(tmp_path):
    """Nothing that the bench calls is deprecated in what is installed."""
    tiny = ("--model", "tiny", "--image-size", "32", "--iterations", "3", "--output", "r.jsonl")
    ended = run(2, "-W", "error::FutureWarning", "-m", "mpisign.bench", *tiny, cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert "Warning" not in ended.stderr


if __name__ == "__main__":
    print(listed(), end="")
