"""Pictures to train on."""

import subprocess
import sys

import pytest


@pytest.fixture(scope="session")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "photos"
    command = [sys.executable, "-m", "mpisign", "photos", folder, "--validate", "0.2"]
    subprocess.run(command, check=True, capture_output=True)
    return folder
