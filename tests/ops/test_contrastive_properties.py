"""Every backend of both losses against the float64 specification on inputs that nobody chose."""

import pytest
import torch
from backends import LAYOUTS
from hypothesis import HealthCheck, given, reject, settings
from hypothesis import strategies as st

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
# The interpreter of Triton is slow: fewer and smaller examples.
CHECKS = [HealthCheck.function_scoped_fixture, HealthCheck.filter_too_much]
FULL = settings(max_examples=40, suppress_health_check=CHECKS)
FEW = settings(max_examples=4, suppress_health_check=CHECKS)


def settings_of(loss):
    return FEW if loss.is_interpreted else FULL


def assert_agrees(loss, arguments, layout):
    """As Forced.assert_agrees; a call that the backend refuses is no example."""
    tensors, options = arguments
    try:
        loss.assert_agrees(*tensors, layout=LAYOUTS[layout], **options)
    except pytest.skip.Exception:
        reject()


def sizes(largest):
    """Any size, and often one near a power of two, where blocks end."""
    edges = [n + d for n in (16, 32, 64, 128) for d in (-1, 0, 1)]
    return st.integers(1, largest) | st.sampled_from([n for n in edges if n <= largest] or [1])


@st.composite
def options(draw):
    """Keyword arguments of both losses."""
    normalize = draw(st.booleans())
    # Logits up to about 50: beyond, float16 itself rounds them by more than the losses.
    temperature = draw(st.floats(0.02, 2.0) if normalize else st.floats(1.0, 20.0))
    if draw(st.booleans()):
        temperature = torch.tensor(temperature, dtype=draw(st.sampled_from(DTYPES[:2])))
    return {
        "reduction": draw(st.sampled_from(["mean", "sum", "none"])),
        "normalize": normalize,
        "temperature": temperature,
    }


@st.composite
def similar(draw, shape, dtype):
    """Two tensors of a shape, the second like the first to a degree that is drawn."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    first, noise = torch.randn(2, *shape, generator=generator).unbind()
    second = draw(st.sampled_from([1.0, 0.0, -1.0])) * first + draw(st.floats(0.1, 2.0)) * noise
    scale = draw(st.sampled_from([1.0, 0.125, 30.0]))
    return (scale * first).to(dtype), second.to(dtype)


@st.composite
def info_nce_arguments(draw, largest):
    N, M, D = draw(sizes(largest)), draw(sizes(largest)), draw(sizes(largest))
    lead = tuple(draw(st.lists(st.integers(1, 3), max_size=2)))
    dtype = draw(st.sampled_from(DTYPES))
    found = draw(options())
    if not found["normalize"]:
        found["temperature"] = found["temperature"] * D**0.5
    q, k = draw(similar((*lead, N, D), dtype))
    if not found["normalize"]:
        q, k = q.clamp(-3, 3), k.clamp(-3, 3)
    negatives = draw(st.sampled_from(["in-batch", "symmetric", "unpaired", "batched", "paired"]))
    if negatives in ("in-batch", "symmetric"):
        return [q, k], {**found, "symmetric": negatives == "symmetric"}
    shape = {"unpaired": (M, D), "batched": (*lead, M, D), "paired": (*lead, N, M, D)}[negatives]
    n, _ = draw(similar(shape, dtype))
    n = n if found["normalize"] else n.clamp(-3, 3)
    return [q, k, n], {**found, "negative_mode": "paired" if negatives == "paired" else "unpaired"}


@st.composite
def nt_xent_arguments(draw, largest):
    N, D = draw(sizes(largest)), draw(sizes(largest))
    found = draw(options())
    z = draw(similar((N, D), draw(st.sampled_from(DTYPES))))
    if not found["normalize"]:
        z = [x.clamp(-3, 3) for x in z]
        found["temperature"] = found["temperature"] * D**0.5
    return list(z), found


def test_info_nce_agrees_with_the_specification(info_nce):
    @settings_of(info_nce)
    @given(info_nce_arguments(20 if info_nce.is_interpreted else 70), st.sampled_from([*LAYOUTS]))
    def agrees(arguments, layout):
        assert_agrees(info_nce, arguments, layout)

    agrees()


def test_nt_xent_agrees_with_the_specification(nt_xent):
    @settings_of(nt_xent)
    @given(nt_xent_arguments(20 if nt_xent.is_interpreted else 130), st.sampled_from([*LAYOUTS]))
    def agrees(arguments, layout):
        assert_agrees(nt_xent, arguments, layout)

    agrees()
