"""PLaMo's and Gemma 4's tokenizers on vocabularies by hand: the cheapest way, ties, bytes, control tokens."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from kamado.text.tokenizer import Tokenizer

from .models import SPACE, gguf, tiny_marked, tiny_plamo


def _words(tokenizer: Tokenizer, text: str) -> list[str]:
    return [tokenizer.token_bytes(i).decode("utf-8", "replace") for i in tokenizer.encode(text, add_bos=False)]


def test_the_cheapest_way_wins_and_of_equal_ones_the_longest_first_token() -> None:
    tokenizer = gguf(**tiny_plamo())
    assert _words(tokenizer, "abc") == ["a", "bc"]  # 8; "abc" costs 9, and "ab" and bytes 1004
    assert _words(tokenizer, "ab") == ["ab"]  # 4 against 6
    equal = tiny_plamo()
    equal["scores"][-5] = -8.0  # "abc" as dear as "a" and "bc"
    assert _words(gguf(**equal), "abc") == ["abc"]


def test_a_token_dearer_than_a_thousand_loses_to_bytes_and_one_past_two_thousand_is_none() -> None:
    keys = tiny_plamo()
    for score, taken in ((-1000.0, True), (-1000.1, False), (-2000.0, False)):
        keys["scores"][-7] = score  # "a"
        assert (keys["tokens"].index("a") in gguf(**keys).encode("a")) is taken
    # Two characters without tokens cost two thousand; a token for both may cost a little less than that, not more.
    keys["scores"][-1] = -1999.9
    assert _words(gguf(**keys), "日本") == ["日本"]


def test_plamo_never_makes_control_tokens_of_text() -> None:
    tokenizer = gguf(**tiny_plamo())
    text = "a<|plamo:eos|>b<0x0A>"
    ids = tokenizer.encode(text)
    assert not tokenizer.special_ids & set(ids)
    assert tokenizer.decode(ids) == text
    assert tokenizer.encode("a<|plamo:eos|>", special=True)[-1] == tokenizer.eos_id == 2
    assert not tokenizer.add_bos
    assert tokenizer.stop_ids == {2}


def test_plamo_keeps_a_byte_order_mark_and_any_bytes() -> None:
    tokenizer = gguf(**tiny_plamo())
    assert tokenizer.decode(tokenizer.encode("\ufeffab")) == "\ufeffab"
    assert b"".join(map(tokenizer.token_bytes, tokenizer.encode(b"ab\xff\xe6"))) == b"ab\xff\xe6"
    assert tokenizer.decode(tokenizer.encode(f"a{SPACE}b")) == f"a{SPACE}b"


def test_gemma_4_merges_by_rank_and_spells_what_it_lacks() -> None:
    tokenizer = gguf(**tiny_marked())
    assert _words(tokenizer, "hello he") == ["he", "ll", "o", " he"]
    assert _words(tokenizer, "he\n\nhe") == ["he", "\n\n", "he"]
    assert tokenizer.encode("\n", add_bos=False) == [tokenizer.token_to_id("<0x0A>")]  # it has no token of its own here
    assert tokenizer.encode("\n\n\n", add_bos=False) == [tokenizer.token_to_id("<0x0A>")] * 3
    assert tokenizer.encode("<|tool_call>", add_bos=False) == [tokenizer.token_to_id("<|tool_call>")]
    assert tokenizer.decode(tokenizer.encode("h日本\U000f0000<0x0A>")) == "h日本\U000f0000<0x0A>"


@settings(deadline=None)
@given(st.binary(max_size=40))
def test_gemma_4_keeps_any_bytes(data: bytes) -> None:
    tokenizer = gguf(**tiny_marked())
    ids = tokenizer.encode(data, add_bos=False)
    assert b"".join(map(tokenizer.token_bytes, ids)) == data.replace(SPACE.encode(), b" ")
