"""Stop strings: what is passed on does not depend on how the text was cut, and never holds a part of one."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kamado.engine.forms.stops import MAX_STOPS, StopMatcher, check_stops
from kamado.errors import UsageError


def run(stops: list[str], pieces: list[str]) -> tuple[str, bool, int]:
    matcher = StopMatcher(stops)
    shown, longest = "", 0
    for i, piece in enumerate(pieces):
        shown += matcher.push(piece)
        if matcher.is_stopped:
            return shown, True, longest
        longest = max(longest, len("".join(pieces[: i + 1])) - len(shown))
    return shown + matcher.flush(), False, longest


def test_a_stop_string_across_three_pieces() -> None:
    assert run(["<end>"], ["one <", "en", "d> two"])[:2] == ("one ", True)


def test_what_only_looked_like_one_is_given_back() -> None:
    matcher = StopMatcher(["<end>"])
    assert matcher.push("a <en") == "a "
    assert matcher.push("emy") == "<enemy"
    assert matcher.push("<e") == ""
    assert matcher.flush() == "<e"


def test_the_first_to_be_complete_wins() -> None:
    assert run(["abcd", "bc"], ["xabcd"])[:2] == run(["abcd", "bc"], list("xabcd"))[:2] == ("xa", True)


@given(
    stops=st.lists(st.text("ab", min_size=1, max_size=5), max_size=3),
    text=st.text("abc", max_size=30),
    cuts=st.lists(st.integers(0, 30), max_size=10),
)
def test_cutting_the_text_changes_nothing(stops: list[str], text: str, cuts: list[int]) -> None:
    edges = sorted({0, len(text), *(min(cut, len(text)) for cut in cuts)})
    pieces = [text[a:b] for a, b in pairwise(edges)]
    shown, stopped, held = run(stops, pieces)
    by_character = run(stops, list(text))
    assert (shown, stopped) == by_character[:2]
    assert not any(stop in shown for stop in stops)
    assert held < max(map(len, stops), default=1)
    if not stopped:
        assert shown == text


@pytest.mark.parametrize("bad", ["", ["ok", ""], [3], ["x" * 513], ["x"] * (MAX_STOPS + 1)])
def test_impossible_stop_strings(bad: object) -> None:
    with pytest.raises(UsageError):
        check_stops(bad)  # type: ignore[arg-type]
