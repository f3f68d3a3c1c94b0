"""The learning rate: its default, its warm-up, and how it falls."""

import pytest

from mpisign.train.rate import rate_of
from mpisign.train.recipe import Recipe


def rates(recipe, *progress):
    return [rate_of(recipe, ranks=1).at(epochs) for epochs in progress]


def test_the_defaults_are_the_papers():
    recipe = Recipe()
    assert rates(recipe, 0, 2.5, 5, 29.9) == pytest.approx([0, 5e-5, 1e-4, 1e-4])
    assert rates(recipe, 30, 59, 60, 80) == pytest.approx([1e-5, 1e-5, 1e-6, 1e-6])
    assert (recipe.batch_size, recipe.momentum, recipe.weight_decay, recipe.epochs) == (128, 0.9, 1e-4, 80)


@pytest.mark.parametrize(
    ("asked", "ranks", "peak", "told"),
    [
        ({"method": "gloo"}, 2, 0.1, "0.1, the default of dense sgd, 0.1 * 256 / 256: a step has 256 pictures"),
        ({"method": "gloo", "batch_size": 4}, 4, 0.00625, "0.00625, the default of dense sgd, 0.1 * 16 / 256: a step"),
        ({"method": "bf16", "batch_size": 512}, 16, 3.2, "3.2, the default of dense sgd, 0.1 * 8192 / 256"),
        ({"method": "gloo", "batch_size": 4, "lr": 0.3}, 4, 0.3, "0.3, as asked for"),
        ({"method": "gloo", "batch_size": 4, "lr": 0.0}, 4, 0.0, "0, as asked for"),
        ({"method": "gloo", "batch_size": 4, "optimizer": "adamw"}, 4, 1e-3, "0.001, the default of adamw"),
        ({"batch_size": 4}, 4, 1e-4, "0.0001, the default of votes"),
        ({"method": "vote-server"}, 64, 1e-4, "0.0001, the default of votes"),
        ({"lr": 2e-4}, 4, 2e-4, "0.0002, as asked for"),
    ],
)
def test_only_the_default_of_dense_sgd_is_scaled_by_the_batch(asked, ranks, peak, told):
    rate = rate_of(Recipe(**asked), ranks=ranks)
    assert rate.peak == pytest.approx(peak)
    assert rate.told().startswith(f"learning rate: {told}")


def test_the_cosine_falls_over_what_the_warm_up_leaves():
    cosine = Recipe(lr=1.0, lr_schedule="cosine", epochs=10, warmup_epochs=5.0)
    assert rates(cosine, 0, 2.5, 4.9999, 5, 7.5, 10, 10.1) == pytest.approx([0, 0.5, 1, 1, 0.5, 0, 0], abs=1e-4)
    at_once = Recipe(lr=0.1, lr_schedule="cosine", epochs=10, warmup_epochs=0.0)
    assert rates(at_once, 0, 5, 10) == pytest.approx([0.1, 0.05, 0], abs=1e-12)


@pytest.mark.parametrize("schedule", ["step", "cosine"])
def test_a_warm_up_longer_than_the_training_is_told(schedule):
    asked = {"lr": 1.0, "lr_schedule": schedule, "epochs": 4}
    as_long, longer = Recipe(**asked, warmup_epochs=4.0), Recipe(**asked, warmup_epochs=5.0)
    assert rate_of(as_long, ranks=1).fault() is None
    assert rates(as_long, 2, 4) == [0.5, 1.0]
    assert rate_of(longer, ranks=1).fault() == (
        "the warm-up of 5 epochs is longer than the training of 4: the rate rises to 0.8 only (--warmup-epochs)"
    )
    assert rates(longer, 4) == [0.8]
