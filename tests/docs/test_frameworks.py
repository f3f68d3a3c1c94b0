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
# Each script in one start: as it stands, then with options that work, then with clipping, which is refused.
COUNTED = """
import mpisign
states = []
class Counted(mpisign.VoteState):
    def __init__(self):
        super().__init__()
        states.append(self)
mpisign.VoteState = Counted
"""
LIGHTNING_AGAIN = """
    print("votes", states[0].steps)
    for options in ({"accumulate_grad_batches": 4, "precision": "bf16-mixed"}, {"gradient_clip_val": 1.0}):
        again = lightning.Trainer(strategy=VoteStrategy(), accelerator="cpu", devices=2, max_epochs=1, logger=False,
                                  **options)
        again.fit(Classifier(), torch.utils.data.DataLoader(data, batch_size=32, shuffle=True))
        print("trained with", *options)
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


def twice(said):
    """Return whether both ranks say so."""
    return lambda words: said.count(words) == 2


def test_lightning(python, tmp_path):
    code, said = trained(python, tmp_path, COUNTED + LIGHTNING + LIGHTNING_AGAIN)
    both = twice(said)
    assert both("votes 128"), said
    assert max(losses("".join(re.findall(r"rank \d: loss [\d.]+", said)))) < 0.5
    assert both("trained with accumulate_grad_batches precision"), said
    assert "trained with gradient_clip_val" not in said
    assert "do not clip" in said
    assert code != 0


def test_accelerate(python, tmp_path):
    script = ACCELERATE.replace("accelerator.end_training()\n", "")
    begin, end = ACCELERATE.index("accelerator = "), ACCELERATE.index("print(f")
    plain = ACCELERATE[begin:end].replace("range(4)", "range(1)")
    loop = plain.index("        optimizer.zero_grad")
    inner = "".join(f"    {line}\n" for line in plain[loop:].splitlines())
    options = f"{plain[:loop]}        with accelerator.accumulate(model):\n{inner}"
    options = options.replace("cpu=True", 'cpu=True, gradient_accumulation_steps=4, mixed_precision="bf16"')
    clipped = plain.replace(
        "        optimizer.step()",
        "        accelerator.clip_grad_norm_(model.parameters(), 1.0)\n        optimizer.step()",
    )
    fresh = "import accelerate\naccelerate.state.AcceleratorState._reset_state(True)\n"
    said_so = 'print("trained with options")\n'
    again = f'print("votes", states[0].steps)\n{fresh}{options}\n{said_so}{fresh}{clipped}\nprint("through")\n'
    code, said = trained(python, tmp_path, COUNTED + script + again, *TORCHRUN)
    both = twice(said)
    assert both("votes 128"), said
    assert max(losses(said)) < 0.5
    assert both("trained with options"), said
    assert "through" not in said
    assert "do not clip" in said
    assert code != 0
