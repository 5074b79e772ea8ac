"""`add_eos_token`: vectors are of the text with its end, answers begin after the text without one."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np

from .fakes import BOS, EOS, ByteTokenizer, make_model


class Ending(ByteTokenizer):
    """A file with add_eos_token."""

    add_eos = True

    def encode(self, text: str, *, add_eos: bool | None = None, **how: Any) -> list[int]:
        return super().encode(text, **how) + ([EOS] if self.add_eos and add_eos is not False else [])


def test_a_prompt_gets_no_end_before_its_answer() -> None:
    with make_model(tokenizer=Ending(add_bos=True)) as model:
        assert model.tokenize("ab") == [BOS, 97, 98]
        generation = model.generate("ab", max_tokens=1)
        list(generation)
        assert generation.usage.num_prompt_tokens == 3


def test_a_vector_is_of_the_text_with_its_end() -> None:
    seen: list[list[int]] = []
    with make_model(tokenizer=Ending(add_bos=True)) as model:
        model.__dict__["_embedder"] = SimpleNamespace(embed=lambda ids: seen.extend(ids) or np.ones((len(ids), 4)))
        assert model.embed_counted(["ab", [97, 98]]).num_tokens == (4, 2)
    assert seen == [[BOS, 97, 98, EOS], [97, 98]]
