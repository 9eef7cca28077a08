"""Bad arguments of color_attention and color_attention_loss: a clear error before any kernel."""

import doctest
import importlib

import pytest
import torch

import sslops


def rows(*shape, **options):
    return torch.zeros(*shape, **options)


GOOD = {"target": rows(2, 6, 8), "reference": rows(2, 12, 8), "values": rows(2, 12, 3)}
LABELS = {"target_labels": rows(2, 6, dtype=int), "reference_labels": rows(2, 12, dtype=int)}

BAD = [
    ({"target": 1.0}, TypeError, "target must be a tensor"),
    ({"target": rows(2, 6, 8, dtype=int)}, TypeError, "target must have a floating-point dtype"),
    ({"target": rows(6, 8)}, ValueError, r"target must be \[B, N, D\]"),
    ({"reference": rows(1, 2, 12, 8)}, ValueError, r"reference must be \[B, N, D\]"),
    ({"reference": rows(2, 12, 8).half()}, TypeError, "reference must have the dtype of target"),
    ({"reference": rows(2, 12, 8, device="meta")}, ValueError, "on the device of target"),
    ({"reference": rows(3, 12, 8)}, ValueError, "B = 2 and D = 8"),
    ({"reference": rows(2, 12, 9)}, ValueError, "B = 2 and D = 8"),
    ({"temperature": 0.0}, ValueError, "temperature must be positive"),
    ({"temperature": "warm"}, TypeError, "temperature must be"),
    ({"temperature": torch.ones(2)}, ValueError, "temperature must be"),
    ({"backend": "fast"}, ValueError, "backend must be one of"),
]
BAD_ATTENTION = [
    ({"values": None}, TypeError, "values must be a tensor"),
    ({"values": rows(2, 12, 3, dtype=int)}, TypeError, "values must have a floating-point dtype"),
    ({"values": rows(2, 12, 3).half()}, TypeError, "values must have the dtype of target"),
    ({"values": rows(2, 12, 3, device="meta")}, ValueError, "values must be on the device"),
    ({"values": rows(2, 11, 3)}, ValueError, r"\(B, Nr\) = \(2, 12\)"),
    ({"values": rows(12, 3)}, ValueError, r"\(B, Nr\) = \(2, 12\)"),
    ({"values": rows(2, 12, 0)}, ValueError, "C of 1 to 64"),
    ({"values": rows(2, 12, 65)}, ValueError, "C of 1 to 64"),
    ({"topk": 13}, ValueError, "topk must be 1 to the number of reference cells, 12; got 13"),
    ({"topk": 0}, ValueError, "topk must be 1 to"),
    ({"topk": 2.0}, TypeError, "topk must be None or an int"),
    ({"topk": True}, TypeError, "topk must be None or an int"),
    ({"grid": 6}, TypeError, r"grid must be \(H, W\)"),
    ({"grid": (2, 3.0)}, TypeError, r"grid must be \(H, W\)"),
    ({"grid": (2, 4)}, ValueError, "H W = Nt = 6"),
    ({"grid": (-2, -3)}, ValueError, "H W = Nt = 6"),
    ({"grid": (2, 3), "reference": rows(2, 13, 8), "values": rows(2, 13, 3)}, ValueError,
     "Nr = 13 must be a multiple"),
    ({"radius": 1}, ValueError, "radius needs grid"),
    ({"radius": 1.5, "grid": (2, 3)}, TypeError, "radius must be None, an int"),
    ({"radius": (1, "2"), "grid": (2, 3)}, TypeError, "radius must be None, an int"),
    ({"radius": (1,), "grid": (2, 3)}, ValueError, "each of the 2 reference frames"),
]  # fmt: skip
BAD_LOSS = [
    ({"target_labels": [0]}, TypeError, "target_labels must be a tensor"),
    ({"target_labels": rows(2, 6)}, TypeError, "target_labels must have an integer dtype"),
    ({"reference_labels": rows(2, 12).bool()}, TypeError, "reference_labels must have an integer"),
    ({"target_labels": rows(2, 7, dtype=int)}, ValueError, r"target_labels must be \(2, 6\)"),
    ({"reference_labels": rows(2, 12, 1, dtype=int)}, ValueError, r"must be \(2, 12\)"),
    ({"target_labels": rows(2, 6, dtype=int, device="meta")}, ValueError, "on the device of"),
    ({"reduction": "average"}, ValueError, "reduction must be one of"),
]  # fmt: skip


@pytest.mark.parametrize("change, error, message", BAD + BAD_ATTENTION)
def test_color_attention_names_the_bad_argument(change, error, message):
    with pytest.raises(error, match=message):
        sslops.color_attention(**{**GOOD, **change})


@pytest.mark.parametrize("change, error, message", BAD + BAD_LOSS)
def test_color_attention_loss_names_the_bad_argument(change, error, message):
    embeddings = {name: GOOD[name] for name in ("target", "reference")}
    with pytest.raises(error, match=message):
        sslops.color_attention_loss(**{**embeddings, **LABELS, **change})


def test_examples_of_the_docstrings_run():
    module = importlib.import_module("sslops.ops.color_attention")
    result = doctest.testmod(module)
    assert result.attempted >= 8 and result.failed == 0
