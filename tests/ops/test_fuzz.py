"""Random arguments for every public op: results, or the documented errors; never a crash.

`make test-asan` runs this file too, where a read outside of an array is a crash.
"""

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

import sslops
from sslops import registry

# Prefix of the docstrings' "Raises"; IndexError is that of ids on the CPU.
DOCUMENTED = (TypeError, ValueError, IndexError)
BY_IDS = ("gather_tokens", "gather_patches", "restore_tokens")
SMALL = settings(max_examples=40, phases=[Phase.explicit, Phase.generate],
                 suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large,
                                        HealthCheck.function_scoped_fixture])  # fmt: skip
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.uint8)
FILLS = {
    "normal": lambda x: x,
    "equal": lambda x: torch.ones_like(x),
    "huge": lambda x: x * 1e30,
    "not a number": lambda x: x * torch.nan,
    "infinite": lambda x: x / 0,
}
LAYOUTS = {
    "contiguous": lambda x: x,
    "transposed": lambda x: x.transpose(0, -1).contiguous().transpose(0, -1),
    "one row again and again": lambda x: x[:1].expand_as(x) if len(x) else x,
    "offset": lambda x: torch.cat([x[:1], x])[1:],
}


class Draw:
    """What a call is made of: mostly what is expected, sometimes anything."""

    def __init__(self, data):
        self.draw = data.draw

    def mostly(self, expected, other):
        """`expected`, or once in twelve times something of the strategy `other`."""
        return self.draw(other) if self.draw(st.integers(0, 11)) == 11 else expected

    def one(self, *values):
        return self.draw(st.sampled_from(values))

    def size(self, least=0, most=9):
        return self.draw(st.integers(least, most))

    def tensor(self, *shape, dtype=None):
        shape = self.mostly(shape, st.lists(st.integers(0, 5), max_size=4))
        x = torch.randn(*shape) if shape else torch.randn(())
        if x.ndim:
            x = LAYOUTS[self.one(*LAYOUTS)](x)
        x = FILLS[self.mostly("normal", st.sampled_from(list(FILLS)))](x)
        return x.to(self.mostly(dtype or torch.float32, st.sampled_from(DTYPES)))

    def whole(self, *shape, most):
        """int64 from 0 to below `most`, mostly."""
        shape = self.mostly(shape, st.lists(st.integers(0, 5), max_size=4))
        low, high = self.mostly((0, max(most, 1)), st.just((-(2**62), 2**62)))
        return torch.randint(low, high, tuple(shape))

    def number(self, *values):
        return self.mostly(
            self.one(*values), st.sampled_from([0, -1, 1e-30, float("nan"), None, "x", True])
        )


def info_nce(d):
    N, M, D = d.size(), d.size(), d.size(1)
    mode = d.one("unpaired", "paired")
    own = d.tensor(N, M, D) if mode == "paired" else d.tensor(M, D)
    others = d.one(None, own)
    return (d.tensor(N, D), d.tensor(N, D), others), dict(
        temperature=d.number(0.1, 1e-4, 5.0), reduction=d.one("mean", "sum", "none"),
        symmetric=d.one(False, others is None), normalize=d.one(True, False),
        negative_mode=mode, return_stats=d.one(True, False),
    )  # fmt: skip


def nt_xent(d):
    N, D = d.size(), d.size(1)
    return (d.tensor(N, D), d.tensor(N, D)), dict(
        temperature=d.number(0.5, 0.01), reduction=d.one("mean", "sum", "none"),
        normalize=d.one(True, False), return_stats=d.one(True, False))  # fmt: skip


def random_masking(d):
    B, L, P = d.size(0, 3), d.size(0), d.size(0, 2)
    return (d.tensor(B, P + L, d.size(1)), d.number(0.75, 0.0, 0.99)), dict(
        noise=d.one(None, d.tensor(B, L)), num_prefix_tokens=P)  # fmt: skip


def sample_mask(d):
    side = d.size(1, 5)
    generator = sslops.CounterGenerator(d.size(), d.size(), d.size())
    return (d.size(0, 3), d.mostly(side * side, st.integers(-1, 9)), d.number(0.75, 0.5)), dict(
        generator=generator, strategy=d.one("random", "block", "grid", "none"))  # fmt: skip


def gather_tokens(d):
    B, L, P = d.size(0, 3), d.size(1), d.size(0, 2)
    return (d.tensor(B, P + L, d.size(1)), d.whole(B, d.size(), most=L)), dict(num_prefix_tokens=P)


def gather_patches(d):
    B, p, h, w = d.size(0, 3), d.size(1, 4), d.size(1, 3), d.size(1, 3)
    ids = d.whole(B, d.size(0, 5), most=h * w)
    return (d.tensor(B, d.one(1, 3), h * p, w * p), ids, d.mostly(p, st.integers(-1, 9))), {}


def restore_tokens(d):
    B, L, P, D = d.size(0, 3), d.size(1), d.size(0, 2), d.size(1)
    kept = d.mostly(d.size(0, L), st.integers(0, 12))
    position = d.one(None, d.tensor(P + L, D), d.tensor(1, P + L, D))
    return (d.tensor(B, P + kept, D), d.whole(B, L, most=L), d.tensor(D), position), dict(
        num_prefix_tokens=P)  # fmt: skip


def color_attention(d):
    B, h, w, D = d.size(0, 2), d.size(1, 3), d.size(1, 3), d.size(1)
    frames = d.size(1, 2)
    grid, radius = d.one((None, None), ((h, w), d.size(0, 3)))
    return (d.tensor(B, h * w, D), d.tensor(B, frames * h * w, D),
            d.tensor(B, frames * h * w, d.size(1))), dict(
        grid=grid, radius=radius, topk=d.one(None, d.size(0, 20)),
        temperature=d.number(1.0, 0.07))  # fmt: skip


def color_attention_loss(d):
    B, N, M, D = d.size(0, 2), d.size(), d.size(), d.size(1)
    return (d.tensor(B, N, D), d.tensor(B, M, D), d.whole(B, N, most=4),
            d.whole(B, M, most=4)), dict(temperature=d.number(1.0, 0.07),
                                         reduction=d.one("mean", "sum", "none"))  # fmt: skip


def dino_loss(d):
    S, N, K = d.size(1, 4), d.size(), d.size(1)
    return (d.tensor(S, N, K), d.tensor(d.size(1, S), N, K)), dict(
        center=d.one(None, d.tensor(K)), weights=d.one(None, d.tensor(S, N)),
        student_temperature=d.number(0.1, 1.0), reduction=d.one("mean", "sum", "none"),
        teacher_temperature=d.one(None, 0.04), skip_same_view=d.one(True, False))  # fmt: skip


def updated_center(d):
    K = d.size(1)
    return (d.tensor(K), d.tensor(d.size(), K), d.number(0.9, 0.0)), {}


def sinkhorn_knopp(d):
    return (d.tensor(d.size(), d.size()), d.number(0.1, 1e-3)), dict(iterations=d.number(1, 3))


def koleo(d):
    lead = d.one((), (d.size(0, 3),))
    return (d.tensor(*lead, d.size(), d.size(1)),), dict(reduction=d.one("mean", "sum", "none"))


def augment(d):
    B, C, H, W, S = d.size(0, 4), d.one(1, 3), d.size(1, 12), d.size(1, 12), d.size(1)
    spec = sslops.ViewSpec(size=S, mean=(0.5,) * C, std=(0.5,) * C, blur=0.5, solarize=0.5,
                           posterize=0.5, erase=0.5, rotate=20.0)  # fmt: skip
    index = torch.arange(B)
    drawn = sslops.sample_parameters(spec, d.size(), 0, index, height=H, width=W)
    wild = {name: d.tensor(*value.shape) * d.one(1, 10, 1e9) for name, value in drawn.items()}
    chosen = {name: d.mostly(value, st.just(wild[name])) for name, value in drawn.items()}
    images = torch.randint(0, 256, (B, C, H, W), dtype=torch.uint8)
    return (images, chosen, d.mostly(S, st.integers(-1, 40))), dict(
        mean=spec.mean, std=spec.std, interpolation=d.one("bilinear", "bicubic"),
        grayscale_first=d.one(True, False), blur_kernel=d.mostly(0, st.integers(-1, 30)),
    )  # fmt: skip


def enqueue_(d):
    size, width = d.size(1), d.size(1)

    def call(keys, more):
        queue = sslops.KeyQueue(size, width, normalize=normalize)
        for batch in (keys, more, keys):
            queue.enqueue_(batch)
        return queue.keys

    normalize = d.one(True, False)
    return (call, d.tensor(d.size(0, 12), width), d.tensor(d.size(0, 30), width)), {}


CALLS = {
    function.__name__: function
    for function in (
        info_nce, nt_xent, random_masking, sample_mask, gather_tokens, gather_patches,
        restore_tokens, color_attention, color_attention_loss, dino_loss, updated_center,
        sinkhorn_knopp, koleo, augment, enqueue_,
    )
}  # fmt: skip


def attempt(name, data):
    """Call an op forwards and backwards; whether it took its arguments."""
    args, options = CALLS[name](Draw(data))
    op = args[0] if name == "enqueue_" else getattr(sslops, name)
    args = args[name == "enqueue_" :]
    inputs = [x.requires_grad_() if isinstance(x, torch.Tensor) and x.is_floating_point()
              and name != "enqueue_" else x for x in args]  # fmt: skip
    try:
        found = op(*inputs, **options)
        found = found[0] if isinstance(found, tuple) else found
        if found.requires_grad:
            found.sum().backward()
    except DOCUMENTED as error:
        assert str(error)
        return False
    except RuntimeError as error:  # of ids, in float64
        assert name in BY_IDS and "out of bounds" in str(error)
        return False
    assert isinstance(found, torch.Tensor)
    return True


@pytest.mark.slow
@pytest.mark.parametrize("name", CALLS)
def test_random_arguments_give_results_or_documented_errors(name):
    taken = []

    @SMALL
    @given(st.data())
    def check(data):
        taken.append(attempt(name, data))

    check()
    assert sum(taken) > 5, "nearly all arguments were refused: nothing was tried"


def test_every_registered_op_is_tried():
    across_ranks = {
        "block_statistics",
        "block_gradients",
    }  # not public; tests/ops/test_logit_blocks
    assert set(registry.OPS) <= set(CALLS) | across_ranks
