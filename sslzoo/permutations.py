"""Sets of permutations far apart from one another, for jigsaw puzzles."""

import numpy as np

from sslzoo.counter_random import Uniform, stream_keys


def permutation_set(count, items=9, seed=0):
    """Permutations chosen greedily for the greatest summed Hamming distance to those before.

    The first is drawn at random; each further one is a permutation whose distances to all chosen
    ones have the greatest sum, ties broken at random. Drawn by counters: the same everywhere.

    Args:
        count: permutations, at most items!; a smaller set is the beginning of a larger one.
        items: of each permutation; all items! are held in memory, so at most 9.
        seed: of the first one and the ties.

    Returns:
        int64 [count, items], each row a permutation of 0 to items - 1, no two alike.

    Source:
        Noroozi, Favaro, "Unsupervised Learning of Visual Representations by Solving Jigsaw
        Puzzles", ECCV 2016, algorithm 1.

    Example:
        >>> permutation_set(3, items=3).tolist()
        [[0, 2, 1], [1, 0, 2], [2, 1, 0]]
    """
    candidates = all_permutations(items)
    columns = np.ascontiguousarray(candidates.T)
    N = len(candidates)
    if not 1 <= count <= N:
        raise ValueError(f"count must be 1 to {N}; got {count}")
    u = Uniform(stream_keys(seed, items, [0]))(count)[0]
    chosen = [int(u[0] * N)]
    distance = np.zeros(N, np.int32)
    for draw in u[1:]:
        last = candidates[chosen[-1]]
        for column, value in zip(columns, last, strict=True):
            distance += column != value
        distance[chosen[-1]] = np.iinfo(np.int32).min // 2  # never again
        best = np.flatnonzero(distance == distance.max())
        chosen.append(int(best[int(draw * len(best))]))
    return candidates[chosen].astype(np.int64)


def all_permutations(items):
    """uint8 [items!, items], in lexicographic order."""
    if items == 1:
        return np.zeros((1, 1), np.uint8)
    rest = all_permutations(items - 1)
    return np.concatenate([
        np.insert(rest + (rest >= first), 0, first, axis=1).astype(np.uint8)
        for first in range(items)
    ])  # fmt: skip


def mean_distance(permutations):
    """(mean, least) Hamming distance between two different rows of [P, n]."""
    P = len(permutations)
    distance = (permutations[:, None] != permutations[None]).sum(-1)
    return float(distance.sum() / (P * (P - 1))), int(distance[~np.eye(P, dtype=bool)].min())
