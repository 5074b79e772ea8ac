"""Each form of pre-tokenizer that families ship in `tokenizer.json`: the package's ids, and those of the same
vocabulary in GGUF under the name that llama.cpp gives the form."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, decoders, models
from tokenizers import Tokenizer as RustTokenizer

from kamado.files.types import TokenizerSource
from kamado.text.tokenizer import Tokenizer, load_tokenizer
from kamado.text.tokenizer.hf_steps import TRINITY_DIGITS, in_linear_time, steps_of

from . import vocabularies as small
from .models import SPACE, gguf

_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
_QWEN = _LLAMA3.replace("{1,3}", "")
_SEED = _QWEN.replace(r"\p{N}|", r"\p{N}{1}|", 1).replace(r"\p{N}]+[\r\n]*", r"\p{N}\r\n]+")
_O200K = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_TEKKEN = _O200K.replace("(?i:'s|'t|'re|'ve|'m|'ll|'d)?", "").replace("{1,3}", "")
_KIMI = (
    r"[\p{Han}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+"
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*"
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_DEEPSEEK3 = (
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*"""
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_TRINITY_SCRIPTS = (
    r"(?:[\u4E00-\u9FFF\u3040-\u309F\u30A0-\u30FF\u3400-\u4DBF\uf900-\uFAFF\uFF65-\uFF9F\u2F00-\u2FDF]+"
    r"|[\u0E00-\u0E7F]+|[\u0E80-\u0EFF]+|[\u1780-\u17FF]+|[\u1000-\u109F\uAA60-\uAA7F\uA9E0-\uA9FF]+"
    r"|[\uAC00-\uD7AF\u1100-\u11FF]+)"
)
_BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
_BYTES_AND_WORDS = _BYTES | {"use_regex": True}


def _split(pattern: str, behavior: str = "Isolated", *, invert: bool = False) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": behavior, "invert": invert}


# Name of llama.cpp -> normalizer, steps, whether whole words are looked up first.
_FORMS: dict[str, tuple[Any, list[dict[str, Any]], bool]] = {
    "llama-bpe": (None, [_split(_LLAMA3), _BYTES], True),  # SmolLM3, Arcee
    "midm-2.0": (None, [_split(_LLAMA3, "Removed", invert=True), _BYTES], True),
    "dbrx": (None, [_split(_LLAMA3), _BYTES], False),  # Phi-4, OLMo 2 and 3, Granite 4
    "glm4": (None, [_split(_LLAMA3), _BYTES], True),  # GLM-4 to 5
    "qwen2": ({"type": "NFC"}, [_split(_QWEN), _BYTES], False),
    "hunyuan": (None, [_split(_QWEN), _BYTES], False),
    "solar-open": (None, [_split(_QWEN), _BYTES], False),
    "seed-coder": (None, [_split(_SEED), _BYTES], False),
    "minimax-m2": (None, [_split(_O200K), _BYTES], False),
    "gpt-4o": (None, [_split(_O200K), _BYTES], False),  # Phi-4-mini
    "tekken": (None, [_split(_TEKKEN), _BYTES], True),  # Mistral Small 3, Devstral, Ministral 3
    "kimi-k2": (None, [_split(_KIMI), _BYTES], False),
    "refact": (None, [{"type": "Digits", "individual_digits": True}, _BYTES_AND_WORDS], False),  # Granite 3 and small 4
    "exaone4": (None, [_BYTES_AND_WORDS], False),
    "deepseek-v3": (  # Step 3.5
        None,
        [
            _split(r"\p{N}{1,3}"),
            _split("[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"),
            _split(_DEEPSEEK3),
            _BYTES,
        ],
        False,
    ),
    "afmoe": (  # Trinity
        None,
        [*map(_split, TRINITY_DIGITS), _split(_TRINITY_SCRIPTS), _split(_DEEPSEEK3), _BYTES],
        False,
    ),
}


def _load(state: dict[str, Any], folder: Path) -> tuple[Tokenizer, RustTokenizer]:
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(state))
    return load_tokenizer(TokenizerSource("hf", {}, path)), RustTokenizer.from_file(str(path))


@pytest.mark.parametrize("pre", _FORMS)
def test_the_same_ids_from_json_from_gguf_and_from_the_package(pre: str, tmp_path: Path) -> None:
    recorded = json.loads((Path(__file__).parent / "golden" / "ways.json").read_text())
    keys = small.byte_level(recorded["merges"], pre)
    normalizer, steps, ignore_merges = _FORMS[pre]
    model = models.BPE(
        {token: i for i, token in enumerate(keys["tokens"])},
        [tuple(merge.split(" ")) for merge in keys["merges"]],
        ignore_merges=ignore_merges,
    )
    rust = RustTokenizer(model)
    rust.decoder = decoders.ByteLevel()
    rust.add_special_tokens([AddedToken(token, normalized=False) for token in small.SPECIALS])
    state = json.loads(rust.to_str())
    state["normalizer"] = normalizer
    state["pre_tokenizer"] = steps[0] if len(steps) == 1 else {"type": "Sequence", "pretokenizers": steps}
    from_json, rust = _load(state, tmp_path)
    rust.encode_special_tokens = True
    from_gguf = gguf(**keys)
    for name, text in small.texts().items():
        ids = from_json.encode(text)
        assert ids == rust.encode(text, add_special_tokens=False).ids, name
        assert ids == from_gguf.encode(text, add_bos=False), name
        if normalizer is None:
            assert from_json.decode(ids) == text, name


@pytest.mark.parametrize("scheme", ["always", "first", "never"])
@pytest.mark.parametrize("split", [True, False])
def test_metaspace_forms(scheme: str, split: bool, tmp_path: Path) -> None:
    """Nanbeige, IQuest and ERNIE: SentencePiece in the package's words, with bytes for what has no token."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), SPACE, *"abehlot", f"{SPACE}a", "he"]
    vocab = {token: i for i, token in enumerate(pieces)}
    rust = RustTokenizer(models.BPE(vocab, [(SPACE, "a"), ("h", "e")], unk_token="<unk>", byte_fallback=True))
    rust.add_special_tokens([AddedToken(token, normalized=False) for token in pieces[:3]])
    state = json.loads(rust.to_str())
    space = {"type": "Metaspace", "replacement": SPACE, "prepend_scheme": scheme, "split": split}
    state["pre_tokenizer"] = space
    state["decoder"] = {
        "type": "Sequence",
        "decoders": [
            {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
            {"type": "ByteFallback"},
            {"type": "Fuse"},
            *([] if scheme == "never" else [{"type": "Strip", "content": " ", "start": 1, "stop": 0}]),
        ],
    }
    ours, rust = _load(state, tmp_path)
    rust.encode_special_tokens = True
    for name, text in small.texts().items():
        ids = ours.encode(text)
        assert ids == rust.encode(text, add_special_tokens=False).ids, name
        assert ours.decode(ids) == rust.decode(ids), name


def test_trinitys_digits_are_cut_in_threes_in_linear_time() -> None:
    from tokenizers import Regex, pre_tokenizers

    own = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in TRINITY_DIGITS])
    quick = in_linear_time(own)
    assert [step["pattern"]["Regex"] for step in steps_of(own)] == list(TRINITY_DIGITS)
    assert steps_of(quick) != steps_of(own)
    for length in (1, 2, 3, 4, 509, 510, 511, 512, 513, 1019, 1020, 1021, 1531):
        for text in ("7" * length, f"x{'7' * length}y", f"a {'٣' * length} {'1' * length}½", f"{'1' * length}\n22"):
            assert quick.pre_tokenize_str(text) == own.pre_tokenize_str(text), (length, text[:9])
    other = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(TRINITY_DIGITS[0]), "isolated")])
    assert in_linear_time(other) is other


@pytest.mark.slow
def test_a_million_digits_for_trinity(tmp_path: Path) -> None:
    """As long as other text takes; with the file's own steps it would be minutes, past the suite's limit of time."""
    keys = small.byte_level([], "afmoe")
    rust = RustTokenizer(models.BPE({token: i for i, token in enumerate(keys["tokens"])}, []))
    rust.decoder = decoders.ByteLevel()
    state = json.loads(rust.to_str())
    state["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": _FORMS["afmoe"][1]}
    ours, _ = _load(state, tmp_path)
    assert len(ours.encode("7" * 3_000_000)) == 3_000_000
