"""A tokenizer that writes two letters as one token, and a model that generates them one by one: what it says never has
the ids that its text is tokenized to."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from string import ascii_lowercase

import numpy as np

from kamado.engine.model import Model

from .chat_families import FamilyTokenizer
from .fakes import EOS, FakeExecutor, make_model


class PairTokenizer(FamilyTokenizer):
    """FamilyTokenizer in whose texts two lowercase letters in a row are one token, from the left."""

    def __init__(self, specials: tuple[str, ...] = ()) -> None:
        super().__init__(specials)
        self.first_pair = self.vocab_size
        self.pairs = {pair: self.first_pair + i for i, pair in enumerate(product(ascii_lowercase.encode(), repeat=2))}
        self.pair_bytes = [bytes(pair) for pair in self.pairs]
        self.vocab_size += len(self.pairs)

    def encode(self, text, *, special=False, add_bos=None, add_eos=None, after="nothing") -> list[int]:
        ids = super().encode(text, special=special, add_bos=add_bos, add_eos=add_eos)
        out: list[int] = []
        for token in ids:
            pair = self.pairs.get((out[-1], token)) if out else None
            if pair is None:
                out.append(token)
            else:
                out[-1] = pair
        return out

    def decode(self, ids, *, skip_special=True) -> str:
        parts = [self.token_bytes(i) for i in ids if not skip_special or i not in self.special_ids]
        return b"".join(parts).decode("utf-8", "replace")

    def token_bytes(self, token: int) -> bytes:
        return self.pair_bytes[token - self.first_pair] if token >= self.first_pair else super().token_bytes(token)

    def stream(self, *, continuation=False):
        inner = super().stream(continuation=continuation)
        push = inner.push

        def push_each(token: int) -> str:
            return push(token) if self.size_of(token) == 1 else "".join(map(push, self.token_bytes(token)))

        inner.push = push_each
        return inner

    def size_of(self, token: int) -> int:
        """Letters of a pair, 1 for any other."""
        return 2 if token >= self.first_pair else 1


class Speller:
    """A model that says what it is told, a byte a token. `say` before each answer."""

    def __init__(self, template: str, specials: tuple[str, ...] = (), *, keeps_record: bool = False, **kwargs) -> None:
        self.tokenizer = PairTokenizer(specials)
        self.executor = FakeExecutor(
            vocab_size=self.tokenizer.vocab_size, logits_of=self._logits, keeps_record=keeps_record, num_points=64
        )
        self.answer: list[int] = []
        self.begin = 0
        plan = {"context": 4096, **kwargs}
        self.model: Model = make_model(self.executor, tokenizer=self.tokenizer, template=template, **plan)

    def say(self, answer: str | bytes | Sequence[int], num_prompt: int, end: int | None = EOS) -> None:
        """The next answer; special tokens in a text are meant. `end` None: it goes on for ever."""
        if isinstance(answer, str):
            plain = FamilyTokenizer.encode(self.tokenizer, answer, special=True)
        else:
            plain = list(answer)
        self.answer = plain + ([] if end is None else [end])
        self.begin = num_prompt

    def _logits(self, tokens: Sequence[int]) -> np.ndarray:
        row = np.zeros(self.tokenizer.vocab_size, np.float32)
        size_of = self.tokenizer.size_of
        i = sum(size_of(token) for token in tokens[self.begin :])
        row[self.answer[i] if i < len(self.answer) else ord("z")] = 10.0
        pair = self.tokenizer.pairs.get(tuple(self.answer[i : i + 2]))
        if pair is not None:
            row[pair] = 9.0  # said only where a form leaves nothing else
        return row

    def chat(self, messages: list[dict[str, str]], answer, *, end: int | None = EOS, **kwargs):
        """The answer's text, the prompt's ids, and how many of them were reused."""
        prompt = self.model.encode_chat(messages, owner=kwargs.get("owner", ""))
        self.say(answer, len(prompt), end)
        generation = self.model.chat(messages, temperature=0, **kwargs)
        text = "".join(piece.text for piece in generation)
        return text, prompt, generation.usage
