"""docs/migration.md: every block runs, and both sides of a pair give the same value."""

import re
from dataclasses import fields
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from sslzoo import options, registry
from sslzoo.training_config import TrainingConfig

PAGE = (Path(__file__).parent.parent / "docs/migration.md").read_text()
BLOCK = r"\*\*(Before|After)\*\*\n\n```python\n(.*?)```"
PACKAGES = {"lightly": "lightly", "solo-learn": "solo", "open_clip": "open_clip"}


def sections():
    """(library, title, before or None, [after, ...]) of each heading that has code."""
    for part in re.split(r"^## From ", PAGE, flags=re.MULTILINE)[1:]:
        library = part.split("\n")[0]
        for section in re.split(r"^### ", part, flags=re.MULTILINE)[1:]:
            blocks = re.findall(
                r"\*\*(Before|After)\*\*\n\n```python\n(.*?)```", section, re.DOTALL
            )
            before = [code for kind, code in blocks if kind == "Before"]
            after = [code for kind, code in blocks if kind == "After"]
            if blocks:
                yield library, section.split("\n")[0], *before, after


SECTIONS = [pytest.param(*s[2:], PACKAGES[s[0]], id=f"{s[0]}: {s[1]}") for s in sections()]


def inputs():
    """What the blocks of the page take for granted; the same at each call."""
    draw = torch.Generator().manual_seed(0)

    def randn(*shape):
        return torch.randn(*shape, generator=draw)

    def unit(*shape):
        return F.normalize(randn(*shape), dim=-1)

    encoder = torch.nn.Linear(3, 2, bias=False)
    encoder.weight.data = randn(2, 3)
    train, test = randn(200, 6), randn(50, 6)
    return {
        "z0": randn(12, 16), "z1": randn(12, 16),
        "query": randn(8, 16), "key": randn(8, 16), "keys": unit(12, 16),
        "batches": [(randn(4, 16).requires_grad_(), randn(4, 16)) for _ in range(5)],
        "tokens": randn(4, 17, 8), "features": randn(20, 8),
        "student": randn(6, 5, 32), "teacher": randn(2, 5, 32), "encoder": encoder,
        "train": train, "test": test, "train_labels": train[:, :5].argmax(1),
        "test_labels": test[:, :5].argmax(1),
        "image_features": unit(9, 16), "text_features": unit(9, 16),
        "logit_scale": torch.tensor(14.3),
    }  # fmt: skip


def outcome(code):
    """What a block leaves in `result`, and in `center` where it has one."""
    names = inputs()
    exec(code, names)
    return [
        torch.as_tensor(names[n]).detach().squeeze() for n in ("result", "center") if n in names
    ]


def assert_same(found, expected):
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a.double(), b.double(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("before, after, package", SECTIONS)
def test_after_runs_and_all_its_forms_agree(before, after, package):
    first, *others = map(outcome, after)
    assert all(value.isfinite().all() for value in first)
    for other in others:
        assert_same(other, first)


@pytest.mark.parametrize("before, after, package", SECTIONS)
def test_before_and_after_give_the_same_value(before, after, package):
    pytest.importorskip(package, reason=f"{package} is not installed", exc_type=ImportError)
    assert_same(outcome(after[0]), outcome(before))


def test_every_section_is_found():
    libraries = [section[0] for section in sections()]
    assert {name: libraries.count(name) for name in PACKAGES} == {
        "lightly": 7, "solo-learn": 3, "open_clip": 1,
    }  # fmt: skip


def test_options_that_the_tables_name_exist():
    """Every --option in the tables is one of some command."""
    known = set()
    for name in registry.methods():
        module = registry.method(name)
        for config in (module.Config, TrainingConfig):
            known |= {field.name for field in fields(config)}
    known |= {"resume", "config", "data", "k", "siglip", "nproc_per_node"}
    rows = [line for line in PAGE.splitlines() if line.startswith("|")]
    named = set(re.findall(r"--(\w+)", "\n".join(rows)))
    assert named and named <= known, named - known


def test_commands_parse():
    for line in PAGE.splitlines():
        words = line.split("#")[0].split()
        if words[:2] == ["sslzoo", "pretrain"]:
            assert options.parse_pretrain(words[2:]).name
