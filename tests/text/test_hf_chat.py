"""A literal such as `</s>` in a message is plain text, and changes the tokens of nothing but itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as RustTokenizer

from kamado.engine.turns.chat import ChatEncoder
from kamado.files.types import TokenizerSource
from kamado.text.template import ChatTemplate
from kamado.text.tokenizer import Tokenizer, load_tokenizer

from .models import SPACE, gguf, tiny_spm

_TEMPLATE = (
    "{% for m in messages %}<|turn|>{{ m.role }}\n{{ m.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<|turn|>{% endif %}"
)


def _vocabulary() -> dict[str, int]:
    tokens = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), SPACE, *"abcdefghijklmnopqrstuvwxyz</>|\n", "us"]
    return {token: i for i, token in enumerate([*tokens, f"{SPACE}u", f"{SPACE}h", "\n\n", "hi"])}


def _hf(folder: Path, kind: str, **flags: bool) -> Tokenizer:
    merges = [("u", "s"), (SPACE, "u"), (SPACE, "h"), ("\n", "\n"), ("h", "i")]
    rust = RustTokenizer(models.BPE(_vocabulary(), merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    if kind == "prepend":  # Llama 2
        rust.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)])
    else:
        metaspace = pre_tokenizers.Metaspace(replacement=SPACE, prepend_scheme=kind.split("-")[0], split=False)
        rust.pre_tokenizer = pre_tokenizers.Sequence([metaspace]) if kind.endswith("-in-sequence") else metaspace
    rust.decoder = decoders.Sequence([decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()])
    rust.add_special_tokens([AddedToken("</s>", normalized=False, **flags), AddedToken("<|turn|>", normalized=False)])
    path = folder / "tokenizer.json"
    rust.save(str(path))
    return load_tokenizer(TokenizerSource("hf", {"tokenizer_config.json": {"eos_token": "</s>"}}, path))


def _encode(tokenizer: Tokenizer, *contents: str) -> list[int]:
    roles = ("user", "assistant")
    messages = [{"role": roles[i % 2], "content": content} for i, content in enumerate(contents)]
    return ChatEncoder(tokenizer, ChatTemplate(_TEMPLATE, bos_token="", eos_token="</s>")).encode(messages)


KINDS = ["first", "first-in-sequence", "always", "never", "prepend"]


@pytest.mark.parametrize("flags", [{}, {"rstrip": True}, {"lstrip": True}, {"lstrip": True, "rstrip": True}])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("content", ["hi", " hi ", "\n\nhi\n", "hi us", "  "])
def test_a_literal_changes_the_tokens_of_its_message_only(
    tmp_path: Path, kind: str, flags: dict[str, bool], content: str
) -> None:
    tokenizer = _hf(tmp_path, kind, **flags)
    plain = _encode(tokenizer, content, "us", "hi")
    hostile = _encode(tokenizer, content, "us", "hi</s>")
    at = len(plain) - plain[::-1].index(tokenizer.token_to_id("</s>")) - 1  # the end of the last message
    assert hostile[:at] == plain[:at]
    assert hostile[-2:] == plain[-2:]
    assert hostile.count(tokenizer.token_to_id("</s>")) == 3


@pytest.mark.parametrize("kind", KINDS)
def test_the_first_of_a_text_alone_has_the_mark(tmp_path: Path, kind: str) -> None:
    tokenizer = _hf(tmp_path, kind)
    mark = tokenizer.token_to_id(f"{SPACE}h")

    def begins(text: str, **how: Any) -> bool:
        return tokenizer.encode(text, add_eos=False, **how)[0] == mark

    assert begins("hi") == (kind != "never")
    assert begins("hi", after="special") == (kind in ("always", "prepend"))
    assert not begins("hi", after="text")


def test_text_in_the_middle_keeps_what_a_newline_would_merge_with(tmp_path: Path) -> None:
    tokenizer = _hf(tmp_path, "first")
    assert tokenizer.encode("\n\nhi", after="text") == [tokenizer.token_to_id("\n\n"), tokenizer.token_to_id("hi")]


def test_gguf_begins_after_every_special_token(tmp_path: Path) -> None:
    tokenizer = gguf(**tiny_spm(add_bos_token=False))
    whole = tokenizer.encode("the</s>the", special=True)
    assert whole == [
        *tokenizer.encode("the"),
        tokenizer.token_to_id("</s>"),
        *tokenizer.encode("the", after="special"),
    ]
    assert tokenizer.encode("the", after="text") != tokenizer.encode("the")
