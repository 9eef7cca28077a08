"""The bar of long loops: on a terminal only, one at a time."""

import pytest

from sslzoo import progress
from sslzoo.progress import with_bar


@pytest.fixture
def terminal(monkeypatch):
    """rich takes any stream for a terminal."""
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")


@pytest.fixture
def no_terminal(monkeypatch):
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)


def test_a_loop_shows_how_far_it_is_and_then_nothing(terminal, capsys):
    assert list(with_bar(iter("abc"), 3, "letters")) == ["a", "b", "c"]
    out, err = capsys.readouterr()
    assert not out and "letters" in err
    assert err.rstrip().endswith("\x1b[2K")  # the line is wiped in the end


def test_a_log_file_has_no_bar(no_terminal, capsys):
    assert list(with_bar(range(3), 3, "numbers")) == [0, 1, 2]
    assert capsys.readouterr() == ("", "")


def test_a_loop_within_another_shows_none(terminal, capsys):
    rows = [list(with_bar(range(2), 2, "inner")) for _ in with_bar(range(2), 2, "outer")]
    assert rows == [[0, 1]] * 2
    assert "inner" not in capsys.readouterr().err


def test_a_loop_that_fails_leaves_the_place_to_the_next(terminal, capsys):
    def broken():
        yield 1
        raise ValueError("no more")

    with pytest.raises(ValueError, match="no more"):
        list(with_bar(broken(), 2, "broken"))
    assert not progress._has_bar
    list(with_bar(range(2), 2, "next"))
    assert "next" in capsys.readouterr().err
