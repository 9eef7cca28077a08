"""Random numbers that are a function of (seed, step, sample, position): Philox4x32-10."""

import torch

_WORD = 0xFFFFFFFF


class CounterGenerator:
    """A generator without state: the same seed, step and sample give the same numbers everywhere.

    Accepted as `generator` by the masking functions. The numbers of a sample do not depend on the
    batch it comes in, on the device or on the number of processes, so a run that is resumed, or
    continued on other hardware, draws the masks it would have drawn. Processes that share a batch
    say where their part begins: `first_sample = rank * samples_per_rank`.

    Args:
        seed: int, 0 <= seed < 2**63.
        step: int, 0 <= step < 2**32, or a 0-d int64 tensor on the device where the numbers are
            wanted. The tensor is read by the kernel, so a captured CUDA graph, which would repeat
            an int, follows the tensor's value from replay to replay.
        first_sample: int, 0 <= first_sample < 2**32, the index of the batch's first sample.

    Source:
        Salmon, Moraes, Dror, Shaw, "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011.

    Example:
        >>> import torch, sslops
        >>> x = torch.arange(8.0).reshape(1, 8, 1)
        >>> generator = sslops.CounterGenerator(seed=0, step=3)
        >>> x_kept, mask, ids_restore = sslops.random_masking(x, 0.75, generator=generator)
        >>> print(x_kept.flatten().tolist())
        [1.0, 4.0]
    """

    def __init__(self, seed, step=0, first_sample=0):
        _check_word("seed", seed, 63)
        _check_word("first_sample", first_sample, 32)
        if not isinstance(step, torch.Tensor):
            _check_word("step", step, 32)
        elif step.ndim != 0 or step.dtype != torch.int64:
            raise ValueError(
                f"step must be an int or a 0-d int64 tensor; got shape {tuple(step.shape)}, "
                f"{step.dtype}"
            )
        self.seed, self.step, self.first_sample = seed, step, first_sample

    def uniform(self, samples, count, *, stream=0, device=None):
        """Numbers in [0, 1), multiples of 2**-24: [samples, count], float32.

        `stream` tells apart what one step draws several times; stream 0 is the noise of tokens.
        """
        # Number n of a sample is word n mod 4 of the block at (n div 4, sample, step, stream).
        block = torch.arange((count + 3) // 4, device=device)[None, :]
        sample = (torch.arange(samples, device=device)[:, None] + self.first_sample) & _WORD
        words = philox(self.seed, (block, sample, self.step & _WORD, stream))
        words = torch.stack(words, dim=-1).flatten(1)[:, :count]
        return (words >> 8).float() * 2.0**-24


def philox(seed, counter):
    """Ten rounds of Philox4x32 on four words of 32 bits, each an int or an int64 tensor."""
    c0, c1, c2, c3 = counter
    key0, key1 = seed & _WORD, seed >> 32
    for _ in range(10):
        # The product of two words may wrap around as int64; its two 32-bit words stay right.
        a, b = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1 = ((b >> 32) & _WORD) ^ c1 ^ key0, b & _WORD
        c2, c3 = ((a >> 32) & _WORD) ^ c3 ^ key1, a & _WORD
        key0, key1 = (key0 + 0x9E3779B9) & _WORD, (key1 + 0xBB67AE85) & _WORD
    return c0, c1, c2, c3


def _check_word(name, value, bits):
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int; got {type(value).__name__} {value!r}")
    if not 0 <= value < 2**bits:
        raise ValueError(f"{name} must be in [0, 2**{bits}); got {value}")
