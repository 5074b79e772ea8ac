"""WordPiece and unigram from GGUF metadata, held against the packages that made the vocabulary."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers import Tokenizer as RustTokenizer

from kamado.errors import TokenizerError
from kamado.text.tokenizer import Tokenizer

from .corpus import DECOMPOSED, INVALID_BYTES, TEXTS
from .models import BYTE, CONTROL, NORMAL, SPACE, UNKNOWN, gguf, training_texts


def _bert() -> tuple[Tokenizer, RustTokenizer]:
    rust = RustTokenizer(models.WordPiece(unk_token="[UNK]", max_input_chars_per_word=100))
    rust.normalizer = normalizers.BertNormalizer(lowercase=True)
    rust.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    rust.decoder = decoders.WordPiece()
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(vocab_size=600, special_tokens=specials, show_progress=False)
    rust.train_from_iterator(training_texts(), trainer)
    vocab = rust.get_vocab()
    tokens = sorted(vocab, key=vocab.__getitem__)

    def as_gguf(token: str) -> str:
        if token in specials:
            return token
        return token[2:] if token.startswith("##") else SPACE + token

    keys: dict[str, Any] = {
        "model": "bert",
        "tokens": [as_gguf(token) for token in tokens],
        "token_type": [UNKNOWN if t == "[UNK]" else CONTROL if t in specials else NORMAL for t in tokens],
        "unknown_token_id": 1,
        "bos_token_id": 2,
        "eos_token_id": 3,
        "cls_token_id": 2,
        "seperator_token_id": 3,
    }
    return gguf(**keys), rust


def test_wordpiece_ids_and_text() -> None:
    ours, rust = _bert()
    rust.encode_special_tokens = True
    for name, text in (TEXTS | DECOMPOSED).items():
        ids = rust.encode(text).ids
        assert ours.encode(text) == [2, *ids, 3], name
        assert ours.decode(ids) == rust.decode(ids), name
        stream = ours.stream()
        assert "".join(map(stream.push, ids)) + stream.flush() == ours.decode(ids), name
    assert ours.encode("a[SEP]", special=True)[-2:] == [*ours.encode("a", add_bos=False, add_eos=False), 3]
    assert 3 not in ours.encode("[SEP]", add_eos=False)
    assert (ours.bos_id, ours.eos_id, ours.add_bos, ours.add_eos) == (2, 3, True, True)


def test_wordpiece_has_no_bytes() -> None:
    ours, _ = _bert()
    assert ours.encode(b"a\xffb", add_bos=False, add_eos=False).count(1) == 1


@functools.cache
def _trained_unigram() -> RustTokenizer:
    rust = RustTokenizer(models.Unigram())
    rust.normalizer = normalizers.Sequence(
        [normalizers.Replace(Regex(r"\A +| +\z"), ""), normalizers.Replace(Regex(" {2,}"), " ")]
    )
    rust.pre_tokenizer = pre_tokenizers.Metaspace(replacement=SPACE, prepend_scheme="first", split=False)
    trainer = trainers.UnigramTrainer(
        vocab_size=1400, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>", show_progress=False
    )
    rust.train_from_iterator(training_texts(), trainer)
    return rust


def _unigram() -> tuple[dict[str, Any], RustTokenizer]:
    rust = _trained_unigram()
    vocab = json.loads(rust.to_str())["model"]["vocab"]
    keys = {
        "model": "t5",
        "tokens": [piece for piece, _ in vocab],
        "scores": [float(score) for _, score in vocab],
        "token_type": [CONTROL, CONTROL, UNKNOWN] + [NORMAL] * (len(vocab) - 3),
        "eos_token_id": 1,
        "unknown_token_id": 2,
    }
    return keys, rust


def test_unigram_ids() -> None:
    keys, rust = _unigram()
    ours = gguf(**keys)
    for name, text in TEXTS.items():
        # The package reads "</s>" in plain text as the token, and forgets the mark of a text that began with spaces.
        if "special" in name or name == "html" or text.startswith((" ", SPACE)):
            continue
        assert ours.encode(text) == [*rust.encode(text).ids, 1], name
    assert 1 not in ours.encode("a</s>b", add_eos=False)
    assert 1 in ours.encode("a</s>b", special=True, add_eos=False)


def test_unigram_against_sentencepiece(tmp_path: Path) -> None:
    spm = pytest.importorskip("sentencepiece")
    corpus = tmp_path / "c.txt"
    corpus.write_text("\n".join(training_texts()), encoding="utf-8")
    spm.SentencePieceTrainer.train(
        input=str(corpus), model_prefix=str(tmp_path / "m"), model_type="unigram", vocab_size=380, minloglevel=2,
        num_threads=1, normalization_rule_name="identity", max_sentence_length=1 << 20, character_coverage=0.98,
    )  # fmt: skip
    model = spm.SentencePieceProcessor(model_file=str(tmp_path / "m.model"))
    kinds = [UNKNOWN if model.is_unknown(i) else CONTROL if model.is_control(i) else NORMAL for i in range(380)]
    ours = gguf(
        model="t5",
        tokens=[model.id_to_piece(i) for i in range(380)],
        scores=[model.get_score(i) for i in range(380)],
        token_type=kinds,
        unknown_token_id=0,
        add_eos_token=False,
    )
    for name in ("sentence", "word", "python", "japanese", "numbers", "latex", "long_spaces", "url", "mixed_scripts"):
        text = TEXTS[name].replace("\u3000", " ")
        assert ours.encode(text) == model.encode(text), name


def test_a_lying_charsmap_is_refused() -> None:
    keys, _ = _unigram()
    for table in ([0], [255, 255, 255, 127, 0], [4, 0, 0, 0], [3, 0, 0, 0, 1, 2, 3, 4]):
        with pytest.raises(TokenizerError, match="precompiled_charsmap"):
            gguf(**keys, precompiled_charsmap=table)


def test_bytes_in_unigram() -> None:
    keys, _ = _unigram()
    keys["tokens"] = [*keys["tokens"], *(f"<0x{byte:02X}>" for byte in range(256))]
    keys["scores"] = [*keys["scores"], *[-50.0] * 256]
    keys["token_type"] = [*keys["token_type"], *[BYTE] * 256]
    ours = gguf(**keys)
    assert ours.decode(ours.encode("𓀀")) == "𓀀"


@pytest.mark.parametrize("name", INVALID_BYTES)
def test_no_invalid_bytes_crash(name: str) -> None:
    keys, _ = _unigram()
    assert isinstance(gguf(**keys).encode(INVALID_BYTES[name]), list)
