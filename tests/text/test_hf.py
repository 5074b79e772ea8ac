"""Tokenizers from a `tokenizer.json`: ids are the package's own, text and special tokens follow our rules."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as RustTokenizer

from kamado.errors import TokenizerError, UnsupportedError
from kamado.files.types import TokenizerSource
from kamado.text.tokenizer import Tokenizer, load_tokenizer

from .corpus import DECOMPOSED, INVALID_BYTES, TEXTS
from .models import SPACE, trained_bpe


def _load(rust: RustTokenizer, folder: Path, **files: dict[str, Any]) -> Tokenizer:
    path = folder / "tokenizer.json"
    rust.save(str(path))
    return load_tokenizer(TokenizerSource("hf", {f"{name}.json": data for name, data in files.items()}, path))


def _llama(folder: Path, **files: dict[str, Any]) -> Tokenizer:
    """A Llama 2 kind of file: normalizer with a space prefix, byte fallback, BOS by post-processor."""
    tokens = [
        "<unk>",
        "<s>",
        "</s>",
        *(f"<0x{byte:02X}>" for byte in range(256)),
        SPACE,
        *"helo",
        "he",
        "ll",
        f"{SPACE}he",
    ]
    vocab = {token: i for i, token in enumerate(tokens)}
    merges = [("h", "e"), ("l", "l"), (SPACE, "he")]
    rust = RustTokenizer(models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    rust.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)])
    rust.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    rust.add_special_tokens([AddedToken(t, normalized=False) for t in ("<unk>", "<s>", "</s>")])
    rust.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return _load(rust, folder, **files)


def test_byte_level_ids_and_text(tmp_path: Path) -> None:
    rust = trained_bpe("llama-bpe")
    ours = _load(rust, tmp_path, tokenizer_config={"eos_token": "<|im_end|>"})
    for special in (False, True):
        rust.encode_special_tokens = not special
        for name, text in (TEXTS | DECOMPOSED).items():
            ids = ours.encode(text, special=special)
            assert ids == rust.encode(text).ids, name
            assert ours.decode(ids, skip_special=False) == text, name
    for data in INVALID_BYTES.values():
        assert b"".join(map(ours.token_bytes, ours.encode(data))) == data
    assert ours.eos_id == ours.token_to_id("<|im_end|>")
    assert ours.stop_ids == {ours.eos_id, ours.token_to_id("<|endoftext|>")}
    assert not ours.add_bos


def test_llama_kind(tmp_path: Path) -> None:
    names = {"bos_token": {"content": "<s>"}, "eos_token": "</s>"}
    ours = _llama(tmp_path, tokenizer_config=names, generation_config={"eos_token_id": [2, 0]})
    assert (ours.bos_id, ours.eos_id, ours.add_bos, ours.add_eos) == (1, 2, True, False)
    assert ours.stop_ids == {2, 0}
    ids = ours.encode("hello日")
    assert ids[0] == 1
    assert ours.decode(ids) == "hello日"
    stream = ours.stream()
    assert "".join(map(stream.push, ids)) + stream.flush() == "hello日"
    assert ours.encode("hello", add_bos=False) == ids[1:][:3]
    assert ours.encode("<s>hello", special=True) == [1, *ours.encode("hello", add_bos=False)]


def test_no_second_space_after_invalid_bytes(tmp_path: Path) -> None:
    ours = _llama(tmp_path)
    assert b"".join(map(ours.token_bytes, ours.encode(b"he\xffhe\xfehe", add_bos=False))) == b" he\xffhe\xfehe"


def test_settings_beat_the_post_processor(tmp_path: Path) -> None:
    names = {"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": False, "add_eos_token": True}
    ours = _llama(tmp_path, tokenizer_config=names)
    assert (ours.add_bos, ours.add_eos) == (False, True)
    assert ours.encode("he")[-1] == 2


def test_truncation_and_padding_of_the_file_are_ignored(tmp_path: Path) -> None:
    rust = trained_bpe("gpt-2")
    rust.enable_truncation(4)
    rust.enable_padding(length=64)
    assert len(_load(rust, tmp_path).encode("Hello, world! It rests. " * 3)) not in (4, 64)


def test_special_tokens_inside_the_model_are_spelled_out(tmp_path: Path) -> None:
    vocab = [("<unk>", 0.0), ("</s>", 0.0), (SPACE, -2.0), *((char, -3.0) for char in "</s>ab")]
    rust = RustTokenizer(models.Unigram(vocab, unk_id=0))
    rust.pre_tokenizer = pre_tokenizers.Metaspace(replacement=SPACE, prepend_scheme="never", split=False)
    rust.decoder = decoders.Metaspace(replacement=SPACE, prepend_scheme="never")
    rust.add_special_tokens(["</s>"])
    ours = _load(rust, tmp_path)
    assert ours.encode("a</s>b", special=True, add_bos=False) == [7, 1, 8]
    plain = ours.encode("a</s>b", add_bos=False)
    assert 1 not in plain
    assert ours.decode(plain) == "a</s>b"


def test_without_a_decoder_tokens_are_words(tmp_path: Path) -> None:
    rust = RustTokenizer(models.WordLevel({"one": 0, "two": 1, "?": 2}, unk_token="?"))
    rust.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    ours = _load(rust, tmp_path)
    assert ours.decode(ours.encode("one two three")) == "one two ?"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no valid tokenizer"),
        ("{}", "no valid tokenizer"),
        ("[1, 2", "no valid tokenizer"),
        ('{"model": {"type": "Nonsense"}}', "no valid tokenizer"),
        (json.dumps({"model": {"type": "BPE", "vocab": {"a": 0}, "merges": ["a b"]}}), "no valid tokenizer"),
        ("{" * 100_000, "no valid tokenizer"),
    ],
)
def test_damaged_files(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(text)
    with pytest.raises(TokenizerError, match=message):
        load_tokenizer(TokenizerSource("hf", {}, path))


def test_missing_file_and_bytes_that_are_no_text(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    with pytest.raises(TokenizerError, match=r"tokenizer\.json: cannot be read: No such file"):
        load_tokenizer(TokenizerSource("hf", {}, path))
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(TokenizerError, match="not valid UTF-8"):
        load_tokenizer(TokenizerSource("hf", {}, path))


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"tokenizer_config": {"eos_token": "<nope>"}}, r"tokenizer_config\.json: key 'eos_token' names '<nope>'"),
        ({"tokenizer_config": {"eos_token": 7}}, r"tokenizer_config\.json: key 'eos_token' is no token"),
        ({"tokenizer_config": {"add_bos_token": "yes"}}, "'add_bos_token' is not a boolean"),
        ({"special_tokens_map": {"bos_token": ["<s>"]}}, r"special_tokens_map\.json: key 'bos_token'"),
        ({"generation_config": {"eos_token_id": [1, 10**9]}}, r"generation_config\.json: key 'eos_token_id'"),
        ({"generation_config": {"eos_token_id": "</s>"}}, r"generation_config\.json: key 'eos_token_id'"),
        ({"generation_config": []}, r"generation_config\.json: not a JSON object"),
    ],
)
def test_files_that_contradict_the_vocabulary(tmp_path: Path, files: dict[str, Any], message: str) -> None:
    with pytest.raises(TokenizerError, match=message):
        _llama(tmp_path, **files)


def test_unsupported_decoder(tmp_path: Path) -> None:
    rust = trained_bpe("gpt-2")
    rust.decoder = decoders.CTC()
    with pytest.raises(UnsupportedError, match="CTC"):
        _load(rust, tmp_path)
