"""README.zh-CN.md says what README.md says: the same sections, commands, links and numbers.

Both change together. `python benchmarks/pages.py` writes the measured blocks of both; everything
else is by hand, and a message here names the section and what differs.
"""

import difflib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ENGLISH, CHINESE = ROOT / "README.md", ROOT / "README.zh-CN.md"
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
MEASURED = re.compile(r"<!-- measured: .+? -->")
NUMBER = re.compile(r"\d+(?:\.\d+)?")
COMMENT = re.compile(r"\s+#\s.*")


def sections(path):
    """The texts between second-level headings; headings inside blocks of code do not count."""
    parts, inside = [""], False
    for line in path.read_text().splitlines(keepends=True):
        inside ^= line.startswith("```")
        if line.startswith("## ") and not inside:
            parts.append("")
        parts[-1] += line
    return parts


def title(section):
    return section.strip().splitlines()[0]


def commands(section):
    """What is to be typed, without comments; of the map, which is prose in columns, the names."""
    for line in (line for _, block in FENCE.findall(section) for line in block.splitlines()):
        if re.match(r"\S+/ {2,}", line):
            yield line.split()[0]
        elif not line.startswith(8 * " "):
            yield COMMENT.sub("", line).rstrip()


def code_words(section):
    return sorted(re.findall(r"`([^`\n]+)`", FENCE.sub("", section)))


def links(section):
    """Their targets; that to the other language is tested apart."""
    return sorted(set(re.findall(r"\]\(([^)\s]+)\)", section)) - {ENGLISH.name, CHINESE.name})


def places(section):
    """Every figure with the line it stands in."""
    return [(number, line.strip()) for line in section.splitlines()
            for number in NUMBER.findall(line)]  # fmt: skip


def differing_numbers(english, chinese):
    """What stands in one and not in the other, each with its line."""
    pairs = places(english), places(chinese)
    match = difflib.SequenceMatcher(None, *([n for n, _ in p] for p in pairs), autojunk=False)
    for kind, a, b, c, d in match.get_opcodes():
        if kind != "equal":
            yield from (f"README.md        {n}  in: {line}" for n, line in pairs[0][a:b])
            yield from (f"README.zh-CN.md  {n}  in: {line}" for n, line in pairs[1][c:d])


def difference(english, chinese):
    """A short list of what one has and the other has not, in order."""
    lines = difflib.unified_diff(english, chinese, "README.md", "README.zh-CN.md", "", "", 1, "")
    return "\n".join(lines)


def pairs():
    return zip(sections(ENGLISH), sections(CHINESE), strict=False)


def test_both_have_the_same_sections():
    english, chinese = ([title(s) for s in sections(path)] for path in (ENGLISH, CHINESE))
    assert len(english) == len(chinese), (
        "a section was added to or taken from one README only:\n"
        f"README.md {english}\nREADME.zh-CN.md {chinese}"
    )


@pytest.mark.parametrize("what", [commands, code_words, links, MEASURED.findall])
def test_both_have_the_same(what):
    name = getattr(what, "__name__", "measured blocks")
    for english, chinese in pairs():
        found = difference([*what(english)], [*what(chinese)])
        assert not found, f"{name} differ below {title(english)!r} / {title(chinese)!r}:\n{found}"


def test_both_have_the_same_numbers_in_the_same_order():
    for english, chinese in pairs():
        found = "\n".join(differing_numbers(english, chinese))
        assert not found, (
            f"numbers differ below {title(english)!r} / {title(chinese)!r}; measured blocks of "
            f"both are written by `python benchmarks/pages.py`:\n{found}"
        )


def test_each_links_to_the_other():
    assert f"({CHINESE.name})" in ENGLISH.read_text() and f"({ENGLISH.name})" in CHINESE.read_text()


def test_a_changed_number_command_or_link_is_found():
    """The comparison sees what it is for."""
    assert [n for n, _ in places("3.10 or 4, 2N x 2N")] == ["3.10", "4", "2", "2"]
    assert [*differing_numbers("a 1\nb 2", "a 1\nb 3")] == [
        "README.md        2  in: b 2", "README.zh-CN.md  3  in: b 3"]  # fmt: skip
    block = "```\nsslzoo list   # names\nsslops/    the ops\n```\n"
    assert [*commands(block)] == ["sslzoo list", "sslops/"]
    assert [*commands(block.replace("list", "lists"))] == ["sslzoo lists", "sslops/"]
    assert difference(["a", "b"], ["a", "c"]).endswith("-b\n+c")
