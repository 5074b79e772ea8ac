"""Conversations as people have them, drawn at random, to be compared with those of models without a past."""

from __future__ import annotations

import random
from collections.abc import Callable

from kamado.engine.generation import Generation
from kamado.engine.model import Model
from kamado.engine.piece import Piece

from .fakes import FOREVER
from .state_programs import answer
from .test_scheduler import wait_for

Talk = list[dict[str, str]]

SYSTEM = {"role": "system", "content": "You speak of rivers and of nothing else. " * 4}
DEEDS = ("goes on", "again", "edited", "new", "stopped", "left in the prompt", "left", "together")
DRAWN = {"max_tokens": 24, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "logprobs": 2}


def question(rng: random.Random) -> dict[str, str]:
    return {"role": "user", "content": "".join(rng.choices("abcdefgh \n", k=rng.choice((3, 30, 300))))}


class Life:
    """What is asked of a model, drawn at random, and what it answered."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.talks: list[Talk] = [[SYSTEM]]
        self.answers: list[tuple[list[int], dict, list[Piece]]] = []
        self.num_asked = 0

    def ask(self, model: Model, talk: Talk, **more) -> tuple[Generation, list[int], dict]:
        self.num_asked += 1
        options = {**DRAWN, **FOREVER, "seed": self.num_asked, **more}
        return model.chat(talk, **options), model.encode_chat(talk), options

    def hear(self, talk: Talk, asked: tuple[Generation, list[int], dict], most: int = 1000) -> None:
        """Takes so many pieces and notes the answer, which becomes part of the talk."""
        generation, prompt, options = asked
        pieces = [piece for piece, _ in zip(generation, range(most), strict=False)]
        generation.close()
        self.answers.append((prompt, options, pieces))
        talk.append({"role": "assistant", "content": "".join(piece.text for piece in pieces)})

    def do(self, model: Model, deed: str) -> None:
        rng = self.rng
        talk = rng.choice(self.talks)
        if deed == "new" or len(talk) < 3:
            talk = [SYSTEM]
            self.talks.append(talk)
        elif deed == "again":
            del talk[-1]
            return self.hear(talk, self.ask(model, talk))
        elif deed == "edited":
            del talk[rng.randrange(1, len(talk), 2) :]
        talk.append(question(rng))
        if deed == "together":
            others = [[SYSTEM, question(rng)] for _ in range(2)]
            self.talks += others
            asked = [self.ask(model, one) for one in (talk, *others)]
            for one, question_asked in zip((talk, *others), asked, strict=True):
                self.hear(one, question_asked)
            return None
        if deed == "left in the prompt":
            self.ask(model, [*talk[:-1], {"role": "user", "content": "Read this. " * 60}])[0].close()
        more = {"stop": rng.choice("etaoin")} if deed == "stopped" else {}
        return self.hear(talk, self.ask(model, talk, **more), 3 if deed == "left" else 1000)

    def live(self, make: Callable[[], Model]) -> int:
        """Everything once, in any order; the tokens that were reused."""
        with make() as model:
            for deed in self.rng.sample(DEEDS, len(DEEDS)):
                self.do(model, deed)
            wait_for(lambda: model.stats.requests["live"] == 0)
            stats = model.stats
            assert stats.kv_pages["lost"] == 0
            assert stats.records["used"] > 0
            return stats.tokens["reused"]

    def check(self, make: Callable[[], Model]) -> None:
        """`make`: a model that has computed nothing yet."""
        for prompt, options, pieces in self.answers:
            with make() as model:
                fresh = model.generate(prompt, **options)
                assert answer(piece for piece, _ in zip(fresh, pieces, strict=False)) == answer(pieces)
                fresh.close()
