"""What the vote is compared with: Multi-Krum, the median, QSGD and sign with error feedback, as pure functions.

Shapes: any leading ones, P workers, n coordinates, float32 tensors.
"""

import torch


def krum_scores(sent, f):
    """Return each worker's score, (..., P): the sum of squared distances to its P - f - 2 nearest others.

    Blanchard et al. 2017 (arXiv 1703.02757), section 4. It holds against f traitors where P >= 2 f + 3.

    Raises:
        ValueError: P < 2 f + 3.

    """
    P = sent.shape[-2]
    if 2 * f + 3 > P:
        raise ValueError(f"f: {P} workers cannot hold against {f} traitors, at least {2 * f + 3} must be there")
    distances = torch.cdist(sent, sent, compute_mode="donot_use_mm_for_euclid_dist") ** 2
    distances.diagonal(dim1=-2, dim2=-1).fill_(torch.inf)
    return distances.sort(-1).values[..., : P - f - 2].sum(-1)


def multi_krum(sent, f):
    """Return the mean, (..., n), of the m = P - f vectors of `sent`, (..., P, n), with the least scores.

    Blanchard et al. 2017, Multi-Krum; m = P - f is the most that leaves out f.
    """
    best = krum_scores(sent, f).argsort(-1)[..., : sent.shape[-2] - f]
    return torch.take_along_dim(sent, best[..., None], -2).mean(-2)


def coordinate_median(sent):
    """Return the median of each coordinate, (..., n), of `sent`, (..., P, n); of an even P, the middle two's mean.

    Yin et al. 2018 (arXiv 1803.01498), definition 1 and algorithm 1.
    """
    P = sent.shape[-2]
    return sent.sort(-2).values[..., (P - 1) // 2 : P // 2 + 1, :].mean(-2)


def qsgd(vectors, levels, bucket, coins):
    """Quantise without bias; return the vectors as decoded, and the bits of each one's code, (...,).

    Alistarh et al. 2017 (arXiv 1610.02132), section 3.1: in each bucket of coordinates, |v| / norm lies between two
    of the levels 0, 1 / s, ..., 1 and goes to either by a coin of `coins`, a torch.Generator.
    """
    short = -vectors.shape[-1] % bucket
    v = torch.nn.functional.pad(vectors, (0, short)).unflatten(-1, (-1, bucket))
    norms = v.norm(dim=-1, keepdim=True)
    scaled = torch.where(norms > 0, v.abs() / norms, 0) * levels
    whole = (scaled + torch.rand(v.shape, generator=coins)).floor().clamp(max=levels)
    decoded = (norms * v.sign() * whole / levels).flatten(-2)
    bits = elias_bits(whole).flatten(-2)[..., : vectors.shape[-1]].sum(-1) + 32 * v.shape[-2]  # a norm is a float32
    return decoded[..., : vectors.shape[-1]], bits


def elias_bits(whole):
    """Return the bits of each level: Elias's gamma code of level + 1, and a sign if the level is not 0."""
    return 2 * (whole + 1).log2().floor() + 1 + (whole > 0)


def sign_with_feedback(vectors, error):
    """Return what is sent, mean |p| * sign(p) of p = vectors + error, and the error that remains, both (..., n).

    Karimireddy et al. 2019 (arXiv 1901.09847), algorithm 1. The sign of 0 is +1: it costs one bit.
    """
    wanted = vectors + error
    sent = wanted.abs().mean(-1, keepdim=True) * torch.where(wanted < 0, -1.0, 1.0)
    return sent, wanted - sent
