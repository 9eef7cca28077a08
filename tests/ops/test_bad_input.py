"""Wrong arguments: an error that names the argument, what was expected and what came."""

import pytest
import torch

import sslops

z, wide, half = torch.randn(4, 8), torch.randn(4, 9), torch.randn(4, 8).half()
meta = torch.empty(4, 8, device="meta")
negatives, own = torch.randn(5, 8), torch.randn(4, 5, 8)

# Error, words of its message (the argument, what was expected, what came), arguments, options.
# fmt: off
INFO_NCE = {
    "query is a list": (TypeError, "query|tensor|list", ([[1.0]], z), {}),
    "query has integers": (TypeError, "query|floating-point|torch.int64", (z.long(), z), {}),
    "query has one dimension": (ValueError, "query|at least 2 dimensions|(8,)", (z[0], z[0]), {}),
    "key is missing": (TypeError, "positive_key|tensor|NoneType", (z, None), {}),
    "key has another width": (ValueError, "positive_key|(4, 8)|(4, 9)", (z, wide), {}),
    "key has fewer rows": (ValueError, "positive_key|(4, 8)|(3, 8)", (z, z[:3]), {}),
    "key has another dtype": (TypeError, "positive_key|torch.float32|torch.float16", (z, half), {}),
    "key is on another device": (ValueError, "positive_key|cpu|meta", (z, meta), {}),
    "negatives are a number": (TypeError, "negative_keys|tensor|float", (z, z, 1.0), {}),
    "negatives have another width":
        (ValueError, "negative_keys|[M, D]|(4, 8)|(4, 9)", (z, z, wide), {}),
    "negatives have another dtype":
        (TypeError, "negative_keys|torch.float32|torch.float16", (z, z, half), {}),
    "negatives are on another device": (ValueError, "negative_keys|cpu|meta", (z, z, meta), {}),
    "paired negatives without their mode":
        (ValueError, "negative_keys|[M, D]|unpaired|(4, 5, 8)", (z, z, own), {}),
    "unpaired negatives as paired":
        (ValueError, "negative_keys|[..., N, M, D]|paired|(5, 8)",
         (z, z, negatives), {"negative_mode": "paired"}),
    "paired negatives of fewer rows":
        (ValueError, "negative_keys|(4, 8)|(3, 5, 8)",
         (z, z, own[:3]), {"negative_mode": "paired"}),
    "negative_mode is unknown":
        (ValueError, "negative_mode|'unpaired'|'paired'|'all'", (z, z), {"negative_mode": "all"}),
    "symmetric with negatives":
        (ValueError, "symmetric|negative_keys=None", (z, z, negatives), {"symmetric": True}),
    "unknown exchange":
        (ValueError, "exchange|'gather'|'star'", (z, z), {"exchange": "star"}),
}
NT_XENT = {
    "z0 is an array": (TypeError, "z0|tensor|ndarray", (z.numpy(), z), {}),
    "z0 has three dimensions": (ValueError, "z0|[N, D]|(4, 5, 8)", (own, own), {}),
    "z1 has integers": (TypeError, "z1|floating-point|torch.int64", (z, z.long()), {}),
    "z1 has another shape": (ValueError, "z1|(4, 8)|(4, 9)", (z, wide), {}),
    "z1 has another dtype": (TypeError, "z1|torch.float32|torch.float16", (z, half), {}),
    "z1 is on another device": (ValueError, "z1|cpu|meta", (z, meta), {}),
}
OPTIONS = {
    "reduction": (ValueError, "reduction|'mean'|'sum'|'none'|'avg'", "avg"),
    "backend": (ValueError, "backend|reference|'fast'", "fast"),
    "temperature": (ValueError, "temperature|positive|0.0", 0.0),
    "temperature below zero": (ValueError, "temperature|positive|-0.1", -0.1),
    "temperature without bound": (ValueError, "temperature|finite|inf", float("inf")),
    "temperature without value": (ValueError, "temperature|finite|nan", float("nan")),
    "temperature as a word": (TypeError, "temperature|float|'0.1'", "0.1"),
    "temperature as a truth": (TypeError, "temperature|float|True", True),
    "temperature of each row": (ValueError, "temperature|0-d|(4,)", torch.ones(4)),
    "temperature of integers": (ValueError, "temperature|floating|torch.int64", torch.tensor(1)),
}
# fmt: on
BOTH = {
    name: (error, words, (z, z), {name.split()[0]: value})
    for name, (error, words, value) in OPTIONS.items()
}
RUNS = [
    pytest.param(op, *case, id=f"{op.__name__}: {name}")
    for op, cases in (
        (sslops.info_nce, {**INFO_NCE, **BOTH}),
        (sslops.nt_xent, {**NT_XENT, **BOTH}),
    )
    for name, case in cases.items()
]


@pytest.mark.parametrize("op, error, words, args, options", RUNS)
def test_a_wrong_argument_is_named(op, error, words, args, options):
    with pytest.raises(error) as found:
        op(*args, **options)
    for word in words.split("|"):
        assert word in str(found.value)
    assert "\n" not in str(found.value)


def test_wrong_arguments_are_found_before_any_backend_runs(monkeypatch):
    """A kernel that reads by pointer would read outside the array."""

    def run(*args, **options):
        raise AssertionError("a backend was asked")

    for op in (sslops.registry.OPS["info_nce"], sslops.registry.OPS["nt_xent"]):
        monkeypatch.setattr(op, "backends", {"cpu": (run, run)})
    for cases, op in ((INFO_NCE, sslops.info_nce), (NT_XENT, sslops.nt_xent)):
        for error, _, args, options in cases.values():
            with pytest.raises(error):
                op(*args, **options)
