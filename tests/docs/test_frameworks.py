"""The examples of docs/ddp.md for Lightning and Accelerate run as they stand, in an environment of their own."""

import re
import subprocess
import sys
import sysconfig

import pytest
from launch import ROOT, environment, skip_if_quick
from test_pages import losses, scripts

WANTED = ("lightning", "accelerate", "lightning-utilities", "torchmetrics", "safetensors", "huggingface-hub", "psutil")
LIGHTNING, ACCELERATE = scripts(ROOT / "docs" / "ddp.md")
# What is printed beside: that there were votes at all.
VOTES = """
    import gc
    print("votes", *(thing.steps for thing in gc.get_objects() if type(thing) is mpisign.VoteState))
"""


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    """Return the Python of an environment that has all of this one's packages, and both frameworks."""
    skip_if_quick()
    folder = tmp_path_factory.mktemp("frameworks")
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    python = folder / "bin" / "python"
    asked = [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    packages = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
    with open(f"{packages}/first.pth", "w") as file:
        file.write(sysconfig.get_path("purelib"))
    install = [python, "-m", "pip", "install", "--quiet", "--no-deps", *WANTED]
    done = subprocess.run(install, capture_output=True, text=True, check=False)
    imported = subprocess.run([python, "-c", "import lightning, accelerate"], env=beside(), capture_output=True,
                              text=True, check=False)  # fmt: skip
    if done.returncode or imported.returncode:
        pytest.skip(f"Lightning and Accelerate can't be installed here: {(done.stderr or imported.stderr)[-300:]}")
    return str(python)


def beside():
    """Return an environment in which mpi4py, which Lightning imports, finds the MPI that lies beside this Python."""
    return environment(OMP_NUM_THREADS="1", LD_LIBRARY_PATH=f"{sys.prefix}/lib")


def trained(python, folder, script, *launcher):
    file = folder / "script.py"
    file.write_text(script)
    command = [python, *launcher, str(file)]
    done = subprocess.run(command, cwd=folder, env=beside(), capture_output=True, text=True, timeout=300, check=False)
    return done.returncode, done.stdout + done.stderr


TORCHRUN = ("-m", "torch.distributed.run", "--nproc-per-node", "2")


@pytest.mark.parametrize("launcher", [(), TORCHRUN], ids=["python", "torchrun"])
def test_lightning(python, tmp_path, launcher):
    code, said = trained(python, tmp_path, LIGHTNING + VOTES, *launcher)
    assert code == 0, said
    assert re.findall(r"votes (\d+)", said) == ["128", "128"]
    assert max(losses("".join(re.findall(r"rank \d: loss [\d.]+", said)))) < 0.5


def test_accelerate(python, tmp_path):
    code, said = trained(python, tmp_path, ACCELERATE + VOTES.replace("    ", ""), *TORCHRUN)
    assert code == 0, said
    assert re.findall(r"votes (\d+)", said) == ["128", "128"]
    assert max(losses(said)) < 0.5


@pytest.mark.parametrize("option", ["accumulate_grad_batches=4", 'precision="bf16-mixed"'])
def test_what_works_with_lightning(python, tmp_path, option):
    code, said = trained(python, tmp_path, LIGHTNING.replace("max_epochs=4", f"max_epochs=1, {option}"), *TORCHRUN)
    assert code == 0, said


def test_clipping_is_refused_with_lightning(python, tmp_path):
    clipped = LIGHTNING.replace("max_epochs=4", "max_epochs=1, gradient_clip_val=1.0")
    code, said = trained(python, tmp_path, clipped, *TORCHRUN)
    assert code != 0
    assert "do not clip" in said


@pytest.mark.parametrize("option", ["gradient_accumulation_steps=4", 'mixed_precision="bf16"'])
def test_what_works_with_accelerate(python, tmp_path, option):
    changed = ACCELERATE.replace("cpu=True", f"cpu=True, {option}").replace("range(4)", "range(1)")
    begin, end = changed.index("        optimizer.zero_grad"), changed.index("print(f")
    body = "".join(f"    {line}\n" for line in changed[begin:end].splitlines())
    changed = f"{changed[:begin]}        with accelerator.accumulate(model):\n{body}{changed[end:]}"
    code, said = trained(python, tmp_path, changed, *TORCHRUN)
    assert code == 0, said


def test_clipping_is_refused_with_accelerate(python, tmp_path):
    clipped = "        accelerator.clip_grad_norm_(model.parameters(), 1.0)\n        optimizer.step()"
    code, said = trained(python, tmp_path, ACCELERATE.replace("        optimizer.step()", clipped), *TORCHRUN)
    assert code != 0
    assert "do not clip" in said
