"""How good a model is, over all ranks."""

import numpy as np
import pytest
import torch
from PIL import Image

from mpisign.train.broken import Broken
from mpisign.train.evaluation import Evaluation
from mpisign.train.recipe import Recipe
from mpisign.workload.data import Pictures, evaluation

pytestmark = pytest.mark.mpi


class Prefers(torch.nn.Module):
    """Says of every picture that the last class is the likeliest one, then the last but one, and so on."""

    def __init__(self, classes):
        super().__init__()
        self.classes = classes

    def forward(self, pictures):
        return torch.arange(self.classes, dtype=torch.float32).expand(len(pictures), -1)


@pytest.mark.parametrize("classes", [5, 6])
def test_there_is_a_top_5_if_there_are_more_than_five_classes(comm, tmp_path_factory, classes):
    folder = comm.bcast(tmp_path_factory.mktemp("pictures"))
    if comm.rank == 0:
        for label in range(classes):
            (folder / str(label)).mkdir()
            Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(folder / str(label) / "black.png")
    comm.Barrier()
    pictures = Pictures(folder, evaluation(32), seed=0, image_size=32)
    found = Evaluation(
        comm, Recipe(batch_size=2, workers=0), pictures=pictures, device=torch.device("cpu"),
        broken=Broken(comm, skip=False), stop=lambda: False,
    ).of(Prefers(classes))  # fmt: skip
    assert found.pop("top5", None) == (None if classes == 5 else pytest.approx(5 / 6))
    assert found["top1"] == pytest.approx(1 / classes)
    assert found["validated"] == classes
    assert found.keys() == {"validation_loss", "top1", "validated"}
