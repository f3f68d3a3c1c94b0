"""The slow obvious truth: every fast path equals this, bit for bit. Plain NumPy and Python integers, no kernels."""

import numpy as np

MASK = 2**64 - 1


def pack(x):
    """Bit i of the vector is bit i % 64 of word i // 64; 1 means x < 0."""
    bits = np.zeros(-(-len(x) // 64) * 64, np.uint8)
    bits[: len(x)] = np.asarray(x) < 0
    return np.packbits(bits, bitorder="little").view("<u8").astype(np.uint64)


def bits_of(words):
    """uint64 (..., W) -> bool (..., 64 W)."""
    return np.unpackbits(np.ascontiguousarray(words).view(np.uint8), axis=-1, bitorder="little").astype(bool)


def unpack(words, n):
    planes = bits_of(np.atleast_2d(words))[:, :n]
    signs = np.where(planes[0], -1.0, 1.0)
    return np.where(planes[1:].any(axis=0), 0.0, signs).astype(np.float32)


def momentum(m, g, beta):
    """m + (1 - beta) (g - m), each operation rounded to float32."""
    return m + np.float32(1 - beta) * (g - m)


def sign(g, rule, m=None, key=0):
    """Return the words, the moved momentum, the words of zeros and the number of faults; see `bits.sign`."""
    with np.errstate(all="ignore"):
        g = np.asarray(g).astype(np.float32)
        m = np.zeros_like(g) if m is None else m
        d = g - m
        faulty = ~np.isfinite(d)
        d = np.where(faulty, 0 - m, d)
        u = m + np.float32(1 - rule.vote) * d
        moved = m + np.float32(1 - rule.keep) * d
        x = u + np.float32(rule.scale) * dither(rule, key, len(g)) if rule.dither else u
        return pack(x), moved, pack(np.where(u == 0, -1, 1)), int(faulty.sum())


def dither(rule, key, n):
    """Of 64 random bits a coordinate, the upper 24 make a number in (-1, 1), or the eight bytes one of variance 1."""
    thrown = [mix((key + (i + 1) * 0x9E3779B97F4A7C15) & MASK) for i in range(n)]
    if rule.dither == "uniform":
        return np.array([(x >> 40) / 2**23 - (1 - 2**-24) for x in thrown], np.float32)
    unit = np.float32(1 / np.sqrt(8 * (256**2 - 1) / 12))
    return np.array([sum(x.to_bytes(8, "little")) - 1020 for x in thrown], np.float32) * unit


def dither_key(seed, rank, bucket, step):
    return mix((mix((mix((mix(seed & MASK) + rank) & MASK) + bucket) & MASK) + step) & MASK)


def fill_zeros(words, zeros, key):
    return words | zeros & np.array(
        [mix((mix(key) + (w + 1) * 0x9E3779B97F4A7C15) & MASK) for w in range(len(words))], np.uint64
    )


def mix(x):
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    return x ^ (x >> 31)


def coins(seed, step, W):
    key = mix((mix(seed & MASK) + step) & MASK)
    return np.array([mix((key + (w + 1) * 0x9E3779B97F4A7C15) & MASK) for w in range(W)], np.uint64)


def majority(words_PW, rule="positive", seed=0, step=0, *, absent=None, sizes=(), abstains=None):
    """Count the negative votes of each coordinate; more than half of those who vote is negative, half is a tie.

    `absent`, bool (P, parts), says who has no vote on which part, of so many coordinates; `abstains`, (P, W), who has
    none on which coordinate unless it is negative there. Where nobody votes a second row says so then, under each rule.
    """
    P, W = words_PW.shape
    negative = bits_of(words_PW)
    votes = np.ones((P, 64 * W), bool)
    if abstains is not None:
        votes &= negative | ~bits_of(abstains)
    if absent is not None:
        for rank in range(P):
            start = 0
            for size, gone in zip(sizes, absent[rank], strict=True):
                votes[rank, start : start + size] &= not gone
                start += size
    negatives, voters = (negative & votes).sum(axis=0, dtype=np.int64), votes.sum(axis=0)
    more, tied = 2 * negatives > voters, 2 * negatives == voters
    if rule == "random":
        more = np.where(tied, bits_of(coins(seed, step, W)), more)
    if abstains is not None:
        more &= voters > 0
    voted = np.packbits(more, bitorder="little").view("<u8").astype(np.uint64)
    zeros = np.packbits(tied if rule == "zero" else voters == 0, bitorder="little").view("<u8").astype(np.uint64)
    return voted if rule != "zero" and abstains is None else np.stack([voted, zeros])


def awkward(n, seed=0):
    """float32 (n,) with -0.0, NaN, an infinity and a subnormal in it."""
    x = np.random.default_rng(seed).standard_normal(n).astype(np.float32)
    x[::7], x[1::11], x[2::13], x[3::17] = -0.0, np.nan, -np.inf, -1e-45
    return x
