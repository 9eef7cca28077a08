"""Random numbers as a function of integers: splitmix64 in counter mode, without a state."""

import numpy as np

GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def mix64(x):
    """Finaliser of splitmix64 (Steele, Lea, Flood 2014): a bijection of uint64."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def stream_keys(*counters):
    """One uint64 for each sample, from integers or int64 arrays, by splitmix64 chained."""
    with np.errstate(over="ignore"):
        key = np.zeros(1, np.uint64)
        for counter in counters:
            counter = np.asarray(counter, dtype=np.int64).astype(np.uint64)
            key = mix64(key + GOLDEN + mix64(counter))
        return key


class Uniform:
    """A stream of uniform numbers for each sample: the n-th number of key k is splitmix64(k, n)."""

    def __init__(self, keys):
        self.keys = keys
        self.drawn = 0

    def __call__(self, columns=None, low=0.0, high=1.0):
        """float64 [B] or [B, columns] in [low, high)."""
        n = 1 if columns is None else columns
        steps = np.arange(self.drawn + 1, self.drawn + 1 + n, dtype=np.uint64)
        self.drawn += n
        with np.errstate(over="ignore"):
            bits = mix64(self.keys[:, None] + steps * GOLDEN)
        u = (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53
        u = low + (high - low) * u
        return u[:, 0] if columns is None else u
