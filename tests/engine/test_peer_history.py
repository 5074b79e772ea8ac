"""Templates that write earlier turns otherwise than they were generated, and a program that keeps a record: what the
next turn computes again, in memory, after a restart and in a fork. The templates are those that llama.cpp ships of
hybrid families, and of Coder."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from kamado.engine.cache.prefix_store import PrefixStore
from kamado.engine.cache.prefix_tree import common_prefix
from kamado.engine.cache.turn_starts import NEAR_TOKENS
from kamado.engine.turns import chat_types as ct
from kamado.engine.turns.chat import ChatEncoder
from kamado.engine.turns.tool_format.syntax import Call

from .fakes import IM_END
from .peer_templates import TrustedTemplate
from .spelling import Speller
from .test_peer_templates import TEMPLATES, sources
from .test_scheduler import wait_for

pytestmark = pytest.mark.slow

SYSTEM = ct.Message("system", (ct.TextPart("You know all about rivers. " * 12),))
TOOL = ct.Tool("depth", "Depth of a river " * 12, {"type": "object", "properties": {"river": {"type": "string"}}})
WORDS = "water under the bridge " * 10
HEADER = 1 + len(("as", "si", "st", "an", "t", "\n"))  # <|im_start|>assistant, two letters a token


@dataclass(frozen=True)
class Expected:
    """Of tokens that were computed before, those that are computed again: in the second and third turn, in the second
    and third answer of a tool loop, and in the user's turn after it."""

    talk: tuple[int, int]
    loop: tuple[int, int]
    after: int
    stored: int = 0  # more for each call and its result, after restarts: they have no place on disk to go on from


NAMES = {
    "Qwen3-Coder": Expected((0, 0), (0, 0), 0),
    # The letter that <think> and <tool_call> begin with is no header.
    "Qwen3.5-4B": Expected((HEADER, HEADER), (0, 0), HEADER + 1),
    "LFM2-8B-A1B": Expected((0, 0), (0, 0), 0),
    "LFM2.5-8B-A1B": Expected((HEADER, HEADER), (0, 0), HEADER),
    # It leaves reasoning out at once, so that even a loop goes on from the user's message.
    "LFM2.5-Instruct": Expected((HEADER, HEADER), (HEADER, HEADER), HEADER, stored=187),
}


class Talk:
    """One conversation with a model that thinks where its template can, and says what it is told."""

    def __init__(self, name: str, tools: tuple[ct.Tool, ...] = ()) -> None:
        self.name = name
        self.tools = tools
        self.messages: list[ct.Message] = [SYSTEM]
        self.held: list[tuple[list[int], tuple[int, ...], int]] = []  # tokens of each turn, its starts, its answer

    def voice(self, **kwargs) -> Speller:
        expected = TEMPLATES[self.name]
        voice = Speller(sources()[self.name], expected.specials, keeps_record=True, context=16384, **kwargs)
        prompts = voice.model._prompts
        template = TrustedTemplate(sources()[self.name])
        prompts.encoder = ChatEncoder(voice.tokenizer, template, finds_turns=True)
        return voice

    def ask(self, voice: Speller, *more: ct.Message, call: str = "") -> tuple[int, int]:
        """The prompt's tokens that were computed before and are computed again, and those that are reused."""
        self.messages += more
        chat = voice.model.chat_format
        turn = voice.model.prepare_chat(self.messages, tools=self.tools)
        num = turn.num_prompt_tokens
        spoken = ""
        if chat.tags is not None:
            gap = "\n" if turn.is_reasoning else ""  # as the templates write it
            spoken = f"Hm {len(self.messages)}, {WORDS}{gap}{chat.tags.close}{2 * gap}"
            spoken = spoken if turn.is_reasoning else chat.tags.open + spoken
        said = f"It is {len(self.messages)}: {WORDS[:-1]}."
        spoken += chat.syntax.render([Call("depth", {"river": call})]) if call else said
        voice.say(spoken, num, IM_END)
        stream = voice.model.chat(turn, temperature=0)
        list(stream)
        message = stream.message
        assert bool(message.reasoning) == (chat.tags is not None)
        assert [c.arguments for c in message.tool_calls] == ([f'{{"river": "{call}"}}'] if call else [])
        assert call or message.text == said
        reused = stream.usage.num_reused_tokens
        shared = max((common_prefix(tokens, list(turn.tokens)) for tokens, _, _ in self.held), default=0)
        wait_for(lambda: voice.model.stats.requests["live"] == 0)
        held = [tokens for tokens, _ in voice.executor.sequences.values() if tuple(tokens[:num]) == turn.tokens]
        self.held.append((list(max(held, key=len)), turn.starts, turn.answer_at))
        self.messages.append(message)
        return shared - reused, reused


def user(text: str) -> ct.Message:
    return ct.Message("user", (ct.TextPart(f"{text} {WORDS}?"),))


def result(talk: Talk) -> ct.Message:
    call = talk.messages[-1].tool_calls[0]
    return ct.Message("tool", (ct.TextPart(f"{call.name} {WORDS}"),), tool_call_id=call.id, name=call.name)


@pytest.fixture(params=["in memory", "after restarts"])
def voice_of(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[Talk], Speller]]:
    """A model to say the next turn: always the same one, or each time a new one, which finds what they stored."""
    with ExitStack() as stack:
        made: list[Speller] = []

        def voice(talk: Talk) -> Speller:
            if request.param == "in memory":
                if not made:
                    made.append(talk.voice())
                    stack.enter_context(made[0].model)
                return made[0]
            while made:
                made.pop().model.close()
            made.append(talk.voice(store=PrefixStore(tmp_path)))
            stack.enter_context(made[0].model)
            return made[0]

        yield voice


@pytest.mark.parametrize("name", NAMES)
def test_a_conversation_goes_on_where_the_template_still_agrees(name, voice_of) -> None:
    talk = Talk(name)
    assert talk.ask(voice_of(talk), user("First")) == (0, 0)
    for nth, expected in zip(("Second", "Third"), NAMES[name].talk, strict=True):
        again, reused = talk.ask(voice_of(talk), user(nth))
        assert again == expected
        tokens, _, answer_at = talk.held[-2]
        assert reused == (answer_at if expected else len(tokens))


@pytest.mark.parametrize("name", NAMES)
def test_a_tool_loop_goes_on_and_so_does_the_user_after_it(name, voice_of, request) -> None:
    talk = Talk(name, (TOOL,))
    stored = NAMES[name].stored if "restarts" in request.node.name else 0
    assert talk.ask(voice_of(talk), user("First"), call="Rhine") == (0, 0)
    found = [talk.ask(voice_of(talk), result(talk), call=call)[0] for call in ("Aare", "")]
    assert (found[0], found[1] - stored) == NAMES[name].loop
    assert talk.ask(voice_of(talk), user("Second"))[0] == NAMES[name].after + 2 * stored
    assert talk.ask(voice_of(talk), user("Third"))[0] == NAMES[name].talk[0]


@pytest.mark.parametrize("name", NAMES)
def test_a_fork_and_an_edit_begin_where_the_turn_did(name) -> None:
    talk = Talk(name)
    voice = talk.voice()
    with voice.model as model:
        talk.ask(voice, user("First"))
        first = list(talk.messages)
        talk.ask(voice, user("Second"))
        again, _ = talk.ask(voice, user("Third"))
        assert again == NAMES[name].talk[1]
        told = list(talk.messages)
        for second in ("Other", "Another"):  # in the place of the second question
            talk.messages = list(first)
            again, reused = talk.ask(voice, user(second))
            places = [at for tokens, starts, _ in talk.held[:-1] for at in (*starts, len(tokens))]
            best = max(at for at in places if at <= reused + again)
            assert reused == best or (best - reused < NEAR_TOKENS and reused in places)
            assert again <= 9, "what users' turns begin with, and the first letters of the question"
        talk.messages = told  # and the one that was left goes on
        again, _ = talk.ask(voice, user("Fourth"))
        assert again == NAMES[name].talk[1]
        assert model.stats.kv_pages["lost"] == 0


@pytest.mark.parametrize("name", NAMES)
def test_where_turns_begin_is_where_the_template_begins_them(name) -> None:
    talk = Talk(name, (TOOL,))
    voice = talk.voice()
    with voice.model as model:
        talk.ask(voice, user("First"), call="Rhine")
        talk.ask(voice, result(talk))
        for messages in (talk.messages[:2], talk.messages[:4], [*talk.messages, user("Second")]):
            turn = model.prepare_chat(messages, tools=talk.tools)
            begun = [model._tokenizer.decode(turn.tokens[at : at + 7], skip_special=False) for at in turn.starts]
            assert begun[-1] == "<|im_start|>assistant\n"
            role = "tool" if messages[-1].role == "tool" and name.startswith("LFM") else "user"
            # A template that refuses a system message alone has its end as the place.
            assert begun[-2].removeprefix("<|im_end|>\n").startswith(f"<|im_start|>{role[:2]}")
            after = model._tokenizer.decode(turn.tokens[turn.answer_at :], skip_special=False)
            assert after.startswith("<|im_start|>assistant")
            last = max(i for i, message in enumerate(messages) if message.role == "user")
            before = model._tokenizer.decode(turn.tokens[: turn.answer_at], skip_special=False)
            assert before.count(WORDS[:-1]) == sum(WORDS[:-1] in message.text for message in messages[: last + 1])
