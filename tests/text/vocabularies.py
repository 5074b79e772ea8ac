"""Small vocabularies in which a wrong cut shows: one set of merges that reach across every cut, and PLaMo's kind."""

from __future__ import annotations

import collections
import contextlib
import hashlib
import json
import math
import tempfile
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Regex, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as RustTokenizer

from kamado.text.tokenizer.pieces import byte_alphabet
from kamado.text.tokenizer.pretokenizers import PRE_TOKENIZERS

from .corpus import DECOMPOSED, TEXTS
from .models import BYTE, CONTROL, NORMAL, SPACE, UNKNOWN, USER_DEFINED

# Beside the corpus: what the ways of cutting words differ in.
PROBES: dict[str, str] = {
    "digits_by_length": "1 12 123 1234 12345 123456 1234567 a1b22c333d4444e55555 12.345,678 x1234567y ×12345",
    "digits_after_blanks": "a  12  345 6\t789\n 10\n\n 1112",
    "other_digits": "٣٤٥٦٧ ½1234 ⅧⅨ ①②③④ १२३४५ 1²3³",
    "contractions": "it's IT'S we've WE'VE you'll don't 'tis x's'd 's 'Re I'm rock'n'roll ’s",
    "cases": "camelCase PascalCase XMLHttpRequest ДокументПродажи ТоваровУслуг ÀÉÎõü ǅungla ʰmod",
    "han_and_latin": "Hello中文abc你好World漢字かなカナ한국어Latin々〆〇",
    "scripts_touching": "ไทยລາວខ្មែរမြန်မာ한글かな漢字abc ไทย123ລາວ",
    "marks": "e\u0301x n\u0303o ก็ กำ हिन्दी দুঃখ \u0301start a\u0301\u0302b !\u0301",
    "punctuation_then_lines": "end.\nnext!?\n\nlast;\r\n\r\nx /* a */\n// b\n---\n\t}\n",
    "punctuation_and_letters": "(word) #include <std.h> $HOME @user a_b_c x=y+z [i]->j ~/path .NET 'q' \"p\" ¡hola!",
    "blanks": "a b  c   d    e\n  f\n\n  g \n h\t\ti \t j   ",
    "slashes": "a/b//c/// https://x.y/z\n/\n//\n x/\n",
    "code": "def f(a, b=10):\n\tif a >= 0xFF:\n\t\treturn a<<2, {'k': [1,2]}\n\n\nclass C: pass\n",
}
# Control tokens of a family and, by name, which of them a converted file says to be what.
_END_TOKENS: dict[str, tuple[str, dict[str, str]]] = {
    "glm": (
        "[gMASK] <sop> <|endoftext|> <|system|> <|user|> <|assistant|> <|observation|> <|code_prefix|>",
        {"bos": "[gMASK]", "eos": "<|endoftext|>", "eot": "<|user|>", "eom": "<|observation|>"},
    ),
    "minimax": ("]~!b[ ]~b] [e~[ <fim_prefix>", {"bos": "]~!b[", "eos": "[e~["}),
    "solar": (
        "<|startoftext|> <|endoftext|> <|begin|> <|content|> <|end|> <|flush|> <|calls|> <|think|>",
        {"bos": "<|startoftext|>", "eos": "<|endoftext|>", "eot": "<|endoftext|>"},
    ),
    "gpt-oss": (
        "<|startoftext|> <|endoftext|> <|return|> <|constrain|> <|channel|> <|start|> <|end|> <|message|> <|call|>",
        {"bos": "<|startoftext|>", "eos": "<|return|>"},
    ),
    "seed": ("<seed:bos> <seed:eos> <seed:pad> <seed:think>", {"bos": "<seed:bos>", "eos": "<seed:eos>"}),
    "phi": ("<|endoftext|> <|im_start|> <|im_sep|> <|im_end|>", {"bos": "<|endoftext|>", "eos": "<|im_end|>"}),
    "phi mini": ("<|endoftext|> <|user|> <|assistant|> <|end|>", {"bos": "<|endoftext|>", "eos": "<|endoftext|>"}),
    "exaone": ("[|endofturn|] [|system|] [|user|] <unk>", {"eos": "[|endofturn|]"}),
    "hunyuan": ("<|startoftext|> <|bos|> <|eos|> <|extra_0|>", {"bos": "<|bos|>", "eos": "<|eos|>"}),
    "kimi": ("[BOS] [EOS] <|im_end|> <|im_user|> [EOT]", {"bos": "[BOS]", "eos": "[EOS]"}),
    "granite": ("<|end_of_text|> <|start_of_role|> <|end_of_role|>", {"eos": "<|end_of_text|>"}),
    "tekken": ("<unk> <s> </s> [INST] [/INST]", {"bos": "<s>", "eos": "</s>"}),
    "deepseek": (
        "<\uff5cbegin\u2581of\u2581sentence\uff5c> <\uff5cend\u2581of\u2581sentence\uff5c> <\uff5cUser\uff5c>",
        {"eos": "<\uff5cend\u2581of\u2581sentence\uff5c>"},
    ),
}
SPECIALS = ("<|endoftext|>", "<|im_end|>")
WHOLE_WORD = "Ġrock"  # a token that no merge makes: some ways look words up first


def end_case(tokens: str, **named: str) -> dict[str, Any]:
    """A byte-level vocabulary with these control tokens, some of which have a name in the file's keys."""
    words = [*byte_alphabet().values(), "ab", *tokens.split(" ")]
    return {
        "model": "gpt2",
        "pre": "gpt-2",
        "tokens": words,
        "token_type": [NORMAL] * 257 + [CONTROL] * (len(words) - 257),
        "merges": ["a b"],
    } | {f"{name}_token_id": words.index(token) for name, token in named.items()}


# Tokens of the ends of families' turns, with the keys that llama.cpp's converters write for them.
END_CASES: dict[str, dict[str, Any]] = {name: end_case(tokens, **keys) for name, (tokens, keys) in _END_TOKENS.items()}


def texts() -> dict[str, str]:
    """Every text, by name."""
    return PROBES | TEXTS | DECOMPOSED


def ways() -> dict[str, str]:
    """The first name of each way of cutting words -> the other names of the same way."""
    names: dict[tuple[Any, ...], list[str]] = {}
    for name, way in PRE_TOKENIZERS.items():
        names.setdefault((way.patterns, way.ignore_merges), []).append(name)
    return {first: " ".join(others) for first, *others in names.values()}


def train_merges(num_merges: int = 1400) -> list[str]:
    """Merges of a byte-level vocabulary whose words were not cut: they join letters with blanks, digits and lines."""
    rust = RustTokenizer(models.BPE())
    rust.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    trainer = trainers.BpeTrainer(
        vocab_size=256 + num_merges,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        max_token_length=8,
        show_progress=False,
    )
    rust.train_from_iterator(_pieces([*texts().values(), *list(PROBES.values()) * 4], 24), trainer)
    return [" ".join(merge) for merge in json.loads(rust.to_str())["model"]["merges"]]


def byte_level(merges: Sequence[str], pre: str) -> dict[str, Any]:
    """A GGUF vocabulary of all bytes and `merges`."""
    merged = dict.fromkeys(merge.replace(" ", "") for merge in merges)
    tokens = [*byte_alphabet().values(), *merged, WHOLE_WORD, *SPECIALS]
    return {
        "model": "gpt2",
        "pre": pre,
        "tokens": tokens,
        "token_type": [NORMAL] * (len(tokens) - len(SPECIALS)) + [CONTROL] * len(SPECIALS),
        "merges": list(merges),
        "bos_token_id": len(tokens) - 2,
        "eos_token_id": len(tokens) - 1,
        "add_bos_token": False,
    }


def marked_pairs(trained: Mapping[str, list[str]]) -> dict[str, Any]:
    """A GGUF vocabulary of Gemma 4's kind."""
    specials = ["<pad>", "<eos>", "<bos>", "<unk>", "<turn|>"]
    tokens = [*specials, *(f"<0x{byte:02X}>" for byte in range(256)), *trained["tokens"], "</s>", "<|tool_call>"]
    return {
        "model": "gemma4",
        "pre": "default",
        "tokens": tokens,
        "scores": [0.0] * len(tokens),
        "token_type": [CONTROL] * len(specials)
        + [BYTE] * 256
        + [NORMAL] * (len(trained["tokens"]) + 1)
        + [USER_DEFINED],
        "merges": trained["merges"],
        "bos_token_id": 2,
        "eos_token_id": 1,
        "unknown_token_id": 3,
        "add_bos_token": True,
        "add_space_prefix": False,
    }


def plamo(pieces: Mapping[str, float]) -> dict[str, Any]:
    """A GGUF vocabulary of PLaMo's kind with these pieces and their scores."""
    specials = ["<|plamo:unk|>", "<|plamo:bos|>", "<|plamo:eos|>", "<|plamo:pad|>", "<|plamo:op|>"]
    tokens = [*specials, *(f"<0x{byte:02X}>" for byte in range(256)), *pieces]
    return {
        "model": "plamo2",
        "pre": "default",
        "tokens": tokens,
        # What control tokens cost is nothing to us; llama.cpp would make them of plain text if they were cheap.
        "scores": [-1999.0] * len(specials) + [0.0] * 256 + list(pieces.values()),
        "token_type": [UNKNOWN] + [CONTROL] * (len(specials) - 1) + [BYTE] * 256 + [NORMAL] * len(pieces),
        "bos_token_id": 1,
        "eos_token_id": 2,
        "eot_token_id": 4,
        "add_space_prefix": False,
    }


def train_marked(num_tokens: int = 900) -> dict[str, list[str]]:
    """Tokens and merges of characters, spaces as marks; some characters stay without a token."""
    rust = RustTokenizer(models.BPE())
    rust.pre_tokenizer = pre_tokenizers.Split(Regex(r"\n+"), "isolated")
    trainer = trainers.BpeTrainer(vocab_size=num_tokens, limit_alphabet=300, max_token_length=8, show_progress=False)
    rust.train_from_iterator([text.replace(" ", SPACE) for text in _pieces(texts().values(), 48)], trainer)
    vocab = rust.get_vocab()
    merges = json.loads(rust.to_str())["model"]["merges"]
    return {"tokens": sorted(vocab, key=vocab.__getitem__), "merges": [" ".join(merge) for merge in merges]}


def sentence_piece() -> dict[str, Any]:
    """The vocabulary that SentencePiece trained for test_spm.py."""
    recorded = json.loads((Path(__file__).parent / "golden" / "sentencepiece.json").read_text())
    keys: dict[str, Any] = recorded["models"]["plain"]["metadata"]
    return {"pre": "default"} | keys


def train_pieces(num_pieces: int = 900) -> dict[str, float]:
    """The commonest pieces of the texts with scores of a hundredth each, so that many ways cost the same."""
    counts: collections.Counter[str] = collections.Counter()
    for text in _pieces(texts().values(), 200):
        for length in range(1, 7):
            counts.update(text[i : i + length] for i in range(len(text) - length + 1))
    worth = {piece: count * len(piece) for piece, count in counts.items() if count > 1 and piece.isprintable()}
    best = sorted(worth, key=lambda piece: (-worth[piece], piece))[:num_pieces]
    total = sum(counts[piece] for piece in best)
    return {piece: round(math.log(counts[piece] / total), 2) for piece in best}


def peer_ids(keys: Mapping[str, Any]) -> dict[str, Any]:
    """llama.cpp's ids of every text; of texts that our tokenizer composes first, composed."""
    from .peer_program import reference

    way = PRE_TOKENIZERS.get(keys["pre"])
    composes = keys["model"] == "gpt2" and way is not None and way.nfc
    given = [unicodedata.normalize("NFC", text) if composes else text for text in texts().values()]
    with written(keys) as path:
        found = reference(path, given).ids
    return {name: compact(ids) for name, ids in zip(texts(), found, strict=True)}


def peer_ends(keys: Mapping[str, Any]) -> list[int]:
    """Ids that llama.cpp takes for the end of an answer."""
    from .peer_program import reference

    with written(keys) as path:
        return reference(path, []).ends


def compact(ids: Sequence[int]) -> Any:
    """Short lists as they are, long ones as a digest."""
    if len(ids) <= 64:
        return list(ids)
    return f"{len(ids)}:{hashlib.sha256(','.join(map(str, ids)).encode()).hexdigest()[:24]}"


@contextlib.contextmanager
def written(keys: Mapping[str, Any]) -> Iterator[Path]:
    """A GGUF file with these keys of `tokenizer.ggml.`, by the package that llama.cpp's converters use."""
    import gguf

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "vocabulary.gguf"
        writer = gguf.GGUFWriter(path, "llama")
        for name, value in keys.items():
            add = {str: writer.add_string, bool: writer.add_bool, int: writer.add_uint32, list: writer.add_array}
            add[type(value)](f"tokenizer.ggml.{name}", value)  # type: ignore[operator]
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.close()
        yield path


def _pieces(whole: Iterable[str], size: int) -> list[str]:
    """Long texts in pieces, so that repetition does not take all places of a vocabulary."""
    return [text[i : i + size] for text in whole for i in range(0, min(len(text), 2000), size)]
