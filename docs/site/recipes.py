"""Writes the options of recipes into the methods' pages.

python docs/site/recipes.py

A page holds the names of recipes between two comments; the table below them is made here:

    <!-- recipes: simclr_cifar10, simclr_imagenet -->
    <!-- end -->
"""

import re
import sys
from dataclasses import fields
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))  # a checkout that is not installed

from sslzoo import registry  # noqa: E402
from sslzoo.training_config import TrainingConfig  # noqa: E402

PAGES = sorted((ROOT / "docs" / "methods").glob("*.md"))
BLOCK = re.compile(r"<!-- recipes: (.+?) -->\n.*?<!-- end -->", re.DOTALL)
# What says where and how a run goes, not what is learned.
LEFT_OUT = {"method", "data", "download", "out", "device", "workers", "memory_limit_mib", "timeout",
            "max_unreadable", "log_every", "checkpoint_every", "knn_every", "linear_every",
            "test_every", "pictures_every", "probe_data", "probe_layer"}  # fmt: skip


def refreshed(text):
    """The text of a page with every table as the recipes are now."""

    def block(match):
        lines = table(match[1].split(", "))
        return "\n".join([f"<!-- recipes: {match[1]} -->", *lines, "<!-- end -->"])

    return BLOCK.sub(block, text)


def table(names):
    """A line for every option that one of the recipes sets; where one does not, its default."""
    recipes = [yaml.safe_load(Path(registry.recipe(name)).read_text()) for name in names]
    defaults = options_of(recipes[0]["method"])
    shown = [option for option in dict.fromkeys(o for recipe in recipes for o in recipe)
             if option not in LEFT_OUT]  # fmt: skip
    lines = ["| option | " + " | ".join(f"`{name}`" for name in names) + " |",
             "|---" * (len(names) + 1) + "|"]  # fmt: skip
    for option in shown:
        cells = [written(recipe.get(option, defaults[option])) for recipe in recipes]
        lines.append(f"| `{option}` | " + " | ".join(cells) + " |")
    return lines


def options_of(method):
    """Every option of a method with its default."""
    module = registry.method(method)
    defaults = {f.name: f.default for cls in (TrainingConfig, module.Config) for f in fields(cls)}
    return defaults | module.DEFAULTS


def written(value):
    """A value as one types it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(written(v) for v in value) + "]"
    return f"{value:g}" if isinstance(value, float) else str(value)


def main():
    for page in PAGES:
        old = page.read_text()
        if refreshed(old) != old:
            page.write_text(refreshed(old))
            print(f"wrote {page.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
