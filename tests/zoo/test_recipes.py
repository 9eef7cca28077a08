"""Recipes: every one can be read, says what it is, and shows its pictures while it runs."""

from pathlib import Path

import pytest
import timm

from sslzoo import backbones, options, registry

RECIPES = Path(options.__file__).parent / "recipes"
PRETEXT = ("rotation", "relative_patch", "jigsaw", "context_encoder", "colorization",
           "split_brain", "video_colorization", "mae")  # fmt: skip


@pytest.mark.parametrize("name", registry.recipes())
def test_a_recipe_can_be_read_and_opens_with_what_it_is(name):
    chosen = options.parse_pretrain(["--config", name])
    assert chosen.training.backbone in backbones.OWN or timm.is_model(chosen.training.backbone)
    head = (RECIPES / f"{name}.yaml").read_text().split("\nmethod:")[0]
    for word in ("# Paper", "# Command", "# Cost", "# Expected"):
        assert word in head, word
    assert f"--config {name}" in head


@pytest.mark.parametrize("method", PRETEXT)
def test_a_method_has_a_recipe_of_the_paper_and_a_small_one(method):
    chosen = [options.parse_pretrain(["--config", name]) for name in registry.recipes()
              if name.startswith(method)]  # fmt: skip
    assert all(c.name == method for c in chosen)
    sizes = [c.training.image_size for c in chosen]
    assert min(sizes) <= 64 and max(sizes) >= 128
    assert all(c.training.pictures_every for c in chosen)
