"""Random choices inside a method's forward, whatever the number of processes."""

import torch

import sslops
from sslops.distributed import default_group


class Draws:
    """Numbers that are a function of (seed, step, sample in the global batch).

    The seed is the one that torch was seeded with when the method was made, which training sets to
    `--seed`; so there is no state, and a resumed run draws what it would have drawn. Batches that
    are accumulated into one step share their numbers.

    Example:
        >>> _ = torch.manual_seed(5)
        >>> draws = Draws()
        >>> both, again = (draws(3, 2).uniform(2, 4) for _ in range(2))
        >>> bool((both == again).all()), bool((both == draws(4, 2).uniform(2, 4)).all())
        (True, False)
    """

    def __init__(self):
        self.seed = torch.initial_seed() % 2**63

    def __call__(self, step, samples):
        """The sslops.CounterGenerator of a batch of `samples` images in this process."""
        group = default_group()
        rank = group.rank() if group else 0
        return sslops.CounterGenerator(self.seed, step, first_sample=rank * samples)


def whole_numbers(uniform, count):
    """Uniform numbers in [0, 1) as whole numbers 0 to count - 1, int64."""
    return (uniform * count).long()
