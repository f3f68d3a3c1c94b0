"""What is installed from a plain wheel, away from the checkout, is whole: all rooms, all commands."""

import os
import subprocess
import sys
import sysconfig
import zipfile

import pytest
from launch import MPIRUN, ROOT, environment

import mpisign


def tracked():
    """The files of the package and of slurm/, as a wheel holds them."""
    files = subprocess.run(
        ["git", "ls-files", "mpisign", "slurm"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    inside = {f"mpisign/{name}" if name.startswith("slurm/") else name for name in files.stdout.split()}
    return {name for name in inside if "." in name}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"  # a build leaves files beside what it builds
    subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, stdout=(folder / "files").open("wb"), check=True)
    copy = ["tar", "--create", "--null", f"--files-from={folder / 'files'}"]
    source.mkdir()
    archive = subprocess.run(copy, cwd=ROOT, capture_output=True, check=True).stdout
    subprocess.run(["tar", "--extract"], cwd=source, input=archive, check=True)
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", folder, source]
    subprocess.run(build, check=True, capture_output=True, env=environment(), timeout=200)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """The folder of an environment that has the wheel; all that it depends on comes from this one."""
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    packages = sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)})
    install = [folder / "bin" / "python", "-m", "pip", "install", "--quiet", "--no-deps", wheel]
    # Not with the checkout on the path, whose egg-info pip would take for an installed mpisign.
    subprocess.run(install, check=True, capture_output=True, env=environment(PYTHONPATH=""))
    with open(f"{packages}/first.pth", "w") as file:
        file.write(sysconfig.get_path("purelib"))
    return folder


def test_the_wheel_holds_every_file_of_the_package(wheel):
    held = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("mpisign/")}
    assert held == tracked()
    assert {"mpisign/report/page.html", "mpisign/py.typed", "mpisign/slurm/imagenet.sh"} <= held


def test_all_commands_run_away_from_the_checkout(installed, tmp_path):
    libraries = f"{sys.prefix}/lib"  # where the wheel of an MPI has put it, and its mpi4py would look for it

    def says(*command):
        ended = subprocess.run(command, cwd=tmp_path, env=environment(PYTHONPATH="", LD_LIBRARY_PATH=libraries),
                               capture_output=True, text=True, timeout=200, check=False)  # fmt: skip
        assert ended.returncode == 0, ended.stderr
        return ended.stdout

    command = installed / "bin" / "mpisign"
    where = says(installed / "bin" / "python", "-c", "import mpisign; print(mpisign.__file__)").strip()
    assert where.startswith(str(installed))
    assert says(command, "--version") == f"mpisign {mpisign.__version__}\n"
    for name in ("bench", "train", "report", "doctor", "slurm", "photos"):
        assert says(command, name, "--help").startswith("usage: mpisign")
    says(command, "slurm", "jobs")
    assert {path.name for path in (tmp_path / "jobs").iterdir()} == {"bench.sh", "imagenet.sh"}
    assert all(os.access(path, os.X_OK) for path in (tmp_path / "jobs").iterdir())
    assert says(command, "photos", "photos", "--validate", "1/5") == "80 pictures in photos\n"
    small = "--model", "tiny", "--image-size", "32", "--iterations", "2", "--methods", "gloo,vote-alltoall"
    bench = says(MPIRUN, "-n", "1", command, "bench", *small, "--output", "r.jsonl")
    assert says(command, "report", "r.jsonl") == bench
