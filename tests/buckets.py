"""Buckets of gradients, made up for tests."""

import torch

from mpisign.voting.bucket import HeldBucket


def held_buckets(comm, sizes=(1, 64, 65, 1000), seed=0):
    """Return the buckets of a step, other ones on each rank: every fifth coordinate is 0, and all of a bucket of 1."""
    vectors = [torch.randn(n, generator=torch.Generator().manual_seed(seed + 10 * comm.rank + n)) for n in sizes]
    for vector in vectors:
        vector[::5] = 0.0
    last = len(sizes) - 1
    return [HeldBucket(i, vector, [vector], i == last) for i, vector in enumerate(vectors)]
