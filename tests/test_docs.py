"""The documentation holds: pages and links exist, commands parse, the site builds."""

import re
import shlex
import sys
import urllib.parse
from itertools import pairwise
from pathlib import Path

import pytest
import yaml

import sslops.registry
from sslzoo import registry

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
TEXTS = [*sorted(ROOT.glob("README*.md")), ROOT / "CONTRIBUTING.md", *PAGES,
         *sorted((ROOT / "sslops").rglob("README.md"))]  # fmt: skip
FENCE = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\]\(([^)\s]+)\)")


def name_of(path):
    return path.relative_to(ROOT).as_posix()


def nav():
    """Paths of all pages in the navigation of mkdocs.yml."""

    def leaves(entry):
        if isinstance(entry, str):
            return [entry]
        children = entry.values() if isinstance(entry, dict) else entry
        return [leaf for child in children for leaf in leaves(child)]

    return leaves(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"])


def test_every_page_is_in_the_navigation_once():
    """Mended in: mkdocs.yml."""
    assert sorted(nav()) == [page.relative_to(DOCS).as_posix() for page in PAGES]


# Links


def anchors(page):
    """What may follow # in a link to a page: its headings, as GitHub and MkDocs name them."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text()), re.MULTILINE)
    plain = (re.sub(r"[`*]", "", heading).strip().lower() for heading in headings)
    return {re.sub(r"[^\w\- ]", "", heading).replace(" ", "-") for heading in plain}


def faults_of_links(page):
    prose = re.sub(r"`[^`\n]+`", "", FENCE.sub("", page.read_text()))
    for link in LINK.findall(prose):
        parts = urllib.parse.urlsplit(link)
        target = page.parent / parts.path if parts.path else page
        if parts.scheme:
            continue
        if not target.exists():
            yield f"{link}: there is no such file"
        elif parts.fragment and urllib.parse.unquote(parts.fragment) not in anchors(target):
            yield f"{link}: the page has no such heading"


@pytest.mark.parametrize("page", TEXTS, ids=name_of)
def test_links_lead_somewhere(page):
    assert not [*faults_of_links(page)]


# Everything has its page

OF_OPS = {
    "color_attention_loss": "color_attention",
    "enqueue_": "key_queue",
    **dict.fromkeys(("random_masking", "gather_tokens", "gather_patches", "restore_tokens"),
                    "masking"),
    # Inside the contrastive losses of several processes; not public.
    **dict.fromkeys(("block_statistics", "block_gradients"), ""),
}  # fmt: skip
PARTS = {
    "ops": ["../pictures/", "## Limits", "README.md)", "<!-- measured:"],
    "methods": [
        "\n    ",
        "sslzoo pretrain",
        "## Configuration",
        "easured",
        "## Expected curve",
        "## Signs of failure",
        "## Deviations",
    ],
    "evaluation": ["sslzoo evaluate", "(index.md#the-encoder-of-the-examples)", "Version"],
}
# Pages that show their command and output in another form.
OTHER_FORM = {"index", "report", "tracking"}


def things():
    for op in sslops.registry.OPS:
        if page := OF_OPS.get(op, op):
            yield f"ops/{page}"
    yield from (f"methods/{name}" for name in registry.methods())
    yield from (f"evaluation/{name}" for name in registry.evaluators())


@pytest.mark.parametrize("thing", sorted(set(things())))
def test_every_op_method_and_protocol_has_its_page(thing):
    page = DOCS / f"{thing}.md"
    assert page.exists(), f"write docs/{thing}.md and name it in mkdocs.yml"
    folder, name = thing.split("/")
    missing = [part for part in PARTS[folder] if part not in page.read_text()]
    assert name in OTHER_FORM or not missing, f"docs/{thing}.md lacks {missing}"


# Commands

STANDS_FOR = {"METHOD": "simclr", "PROTOCOL": "knn", "RUN...": "RUN"}
LEFT_OUT = re.compile(r"\.\.\.(?= |$)|\$|COMMAND|\[options\]")  # in outlines and scripts
SHOWN = re.compile(r"(?:[ $]*)(?:(?:srun |torchrun |accelerate )?(?:\S+ )*-m )?sslzoo (\S.*)")


def command_lines(page):
    """Every `sslzoo ...` of a page: of its blocks, of indented lines and of the running text.

    A line that begins with options goes on with the command above it; [--option X] is optional.
    """
    text = page.read_text().replace("\\\n", " ")
    above = None
    for line in text.splitlines():
        line = re.sub(r"\s#\s.*", "", line)
        if above and re.match(r"\s+--\w", line):
            yield f"{above} {line.strip()}"
        shown = SHOWN.match(line)
        if shown and "`" not in line and "|" not in line:
            above = shown[1].strip()
            yield above
        yield from (match.strip() for match in re.findall(r"`sslzoo (\w[^`]*)`", line))


def words_of(command):
    words = shlex.split(re.sub(r"\[(--[^\]]*(?:\[[^\]]*\][^\]]*)*)\]", r"\1", command))
    return [method_file(word) if word.endswith(".py") else STANDS_FOR.get(word, word)
            for word in words]  # fmt: skip


def method_file(word):
    """The file of a method that a page names, or one that stands for it."""
    named = ROOT / word
    return str(named if named.exists() else ROOT / "examples" / "barlow_twins.py")


def all_commands():
    found = {}
    for page in TEXTS:
        for command in command_lines(page):
            found.setdefault(command, name_of(page))
    return sorted(found.items())


def parse(words):
    """Parse a command line as `sslzoo` does, without carrying it out."""
    from sslzoo import cli, options

    command, *rest = words
    assert command in cli.COMMANDS, f"there is no command {command!r}"
    parsers = {
        "pretrain": options.parse_pretrain,
        "evaluate": options.parse_evaluate,
        "report": options.parse_report,
        "propagate": options.parse_propagate,
        "import": options.parse_import,
        "export": options.parse_export,
    }
    if command == "evaluate" and len(rest) == 1:
        rest = [*rest, "RUN"]
    if command in parsers and rest and "--help" not in rest:
        parsers[command](rest)


def make_files(words):
    """The configuration files that a command line wants to read."""
    method = next((word for word in words if word.endswith(".py")), "simclr")
    for option, value in pairwise(words):
        if option == "--resume":
            Path(value).mkdir(parents=True, exist_ok=True)
            Path(value, "config.yaml").write_text(f"method: {method}\n")
        if option == "--config" and value.endswith(".yaml"):
            Path(value).write_text("method: simclr\n")


@pytest.mark.parametrize("page", sorted({page for _, page in all_commands()}))
def test_commands_parse(page, tmp_path, monkeypatch):
    """Commands, methods, protocols, recipes and options exist, and values have their type."""
    monkeypatch.chdir(tmp_path)
    faults = []
    for command in (command for command, of in all_commands() if of == page):
        words = words_of(command)
        if LEFT_OUT.search(command):
            continue
        make_files(words)
        try:
            parse(words)
        except (ValueError, AssertionError) as error:
            faults.append(f"sslzoo {command}\n    {error}")
    assert not faults, "\n".join(["", *faults])


def test_commands_are_found():
    """A page whose commands the search overlooks would pass with anything in it."""
    found = [command for command, _ in all_commands()]
    for expected in ("pretrain --config mae_cifar10", "doctor", "evaluate semi",
                     "evaluate knn run --k [20,200]"):  # fmt: skip
        assert expected in found
    assert len(found) > 100


@pytest.mark.parametrize("page", sorted((DOCS / "ops").glob("*.md")), ids=name_of)
def test_examples_of_ops_run(page):
    for block in re.findall(r"^```python\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE):
        exec(compile(block, page.name, "exec"), {})


# Numbers and pictures


def test_the_comparison_of_methods_quotes_their_pages():
    lines = (DOCS / "choosing.md").read_text().splitlines()
    rows = [line.strip("| ").split(" | ") for line in lines if line.startswith("| [")]
    rows = [row for row in rows if len(row) == 7]
    assert len(rows) >= 16
    for method, _, _, untrained, trained, gain, _ in rows:
        page = (DOCS / LINK.search(method)[1]).read_text()
        assert untrained in page and trained in page, method
        assert round(float(trained) - float(untrained), 1) == float(gain), method


def test_pictures_are_those_of_the_script(monkeypatch):
    """Mended by: python docs/pictures/draw.py"""
    monkeypatch.setattr(sys, "path", [str(DOCS / "pictures"), *sys.path])
    import draw

    drawn = draw.pictures()
    assert drawn == {path.name: path.read_text() for path in (DOCS / "pictures").glob("*.svg")}


def test_methods_show_their_recipes_as_they_are(monkeypatch):
    """Mended by: python docs/site/recipes.py"""
    monkeypatch.setattr(sys, "path", [str(DOCS / "site"), *sys.path])
    import recipes

    shown = []
    for page in recipes.PAGES:
        text = page.read_text()
        assert recipes.refreshed(text) == text, page.name
        shown += [name for names in recipes.BLOCK.findall(text) for name in names.split(", ")]
    assert sorted(shown) == sorted(registry.recipes()), "a page lacks a recipe, or has it twice"


# The site


def test_the_site_builds_without_a_warning_and_needs_no_network(tmp_path):
    """What `make docs` does; a link to a server in a page's head or scripts would be a request."""
    pytest.importorskip("mkdocs")
    pytest.importorskip("material", reason="mkdocs-material is not installed")
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    config = load_config(str(ROOT / "mkdocs.yml"), site_dir=str(tmp_path), strict=True)
    config.plugins.on_startup(command="build", dirty=False)
    build(config)
    page = (tmp_path / "ops" / "info_nce.html").read_text()
    assert not re.findall(r'<(?:script|img|link rel="stylesheet")[^>]*(?:src|href)="http', page)
    assert "../repository/benchmarks/results/" in page and "../pictures/info_nce.svg" in page
    assert (tmp_path / "repository/sslops/ops/info_nce/index.html").exists()
