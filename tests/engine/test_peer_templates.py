"""The chat templates that llama.cpp ships, of the families that Kamado names: prompts render, the right form of calls
is found, a call and its result go round, reasoning is found and goes back."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import cache

import peer
import pytest

from kamado.engine.turns import chat_types as ct
from kamado.engine.turns.chat import ChatEncoder
from kamado.engine.turns.tool_format import choose_format
from kamado.engine.turns.tool_format.syntax import Call
from kamado.engine.turns.tool_format.template_turns import call_id
from kamado.engine.turns.turn import TurnMaker

from .chat_families import GEMMA4_TOKENS, HARMONY_TOKENS, SOLAR_TOKENS, Family, FamilyTokenizer
from .peer_templates import TrustedTemplate
from .test_tagged_calls import SCHEMAS, Bound, check_walks
from .test_turn import NO_SAMPLING, REQUIRED, TOOLS, calls_of, check_arguments, family_model, run

pytestmark = pytest.mark.slow

THINK = ("<think>", "</think>")


@dataclass(frozen=True)
class Expected:
    form: str
    tags: tuple[str, str] | None = None
    stops: tuple[str, ...] = ("<|im_end|>",)
    is_open: bool = False  # the prompt has opened reasoning
    goes_back: bool = False  # reasoning of a message with calls is in the next prompt
    off: str = ""  # what the prompt has when reasoning is switched off
    result: str = "<tool_response>"  # what stands before a result
    specials: tuple[str, ...] = ()
    is_refused: bool = False
    num_calls: int = 2  # of a message


GEMMA4 = Expected(
    "gemma4", ("<|channel>thought\n", "<channel|>"), ("<|tool_response>", "<turn|>"), goes_back=True,
    off="<|turn>model\n<|channel>thought\n<channel|>", result="<|tool_response>",
    specials=tuple(text for text in GEMMA4_TOKENS if text not in ("<|tool_response>", "<turn|>")),
)  # fmt: skip
TEMPLATES = {
    "Qwen3-Coder": Expected("qwen_xml"),
    "Qwen3.5-4B": Expected("qwen_xml", THINK, is_open=True, goes_back=True, off="<think>\n\n</think>\n\n"),
    "NVIDIA-Nemotron-3-Nano-30B-A3B-BF16": Expected(
        "qwen_xml", THINK, is_open=True, goes_back=True, off="<think></think>"
    ),
    "StepFun3.5-Flash": Expected("qwen_xml", THINK, is_open=True, goes_back=True),
    "ByteDance-Seed-OSS": Expected(
        "seed", ("<seed:think>", "</seed:think>"), ("<seed:eos>",), goes_back=True, off="thinking budget is 0",
        result="<seed:bos>tool", specials=("<seed:bos>", "<seed:tool_call>", "</seed:tool_call>"),
    ),
    "GLM-4.6": Expected(
        "glm", THINK, ("<|user|>", "<|observation|>"), goes_back=True, off="/nothink", result="<|observation|>"
    ),
    "GLM-4.7-Flash": Expected(
        "glm", THINK, ("<|user|>", "<|observation|>"), is_open=True, goes_back=True, off="<|assistant|></think>",
        result="<|observation|>",
    ),
    "tencent-Hy3": Expected(
        "glm", ("<think:opensource>", "</think:opensource>"), ("<｜hy_eos:opensource｜>",), goes_back=True,
        result="<tool_response:opensource>",
    ),
    "MiniMax-M2": Expected("minimax", THINK, ("[e~[",), is_open=True, goes_back=True, result="]~b]tool"),
    "Mistral-Small-3.2-24B-Instruct-2506": Expected(
        "mistral", result="[TOOL_RESULTS]", specials=("[TOOL_CALLS]", "[CALL_ID]", "[ARGS]")
    ),
    "unsloth-mistral-Devstral-Small-2507": Expected(
        "mistral", result="[TOOL_RESULTS]", specials=("[TOOL_CALLS]", "[ARGS]")
    ),
    "mistralai-Mistral-Nemo-Instruct-2407": Expected("mistral", result="[TOOL_RESULTS]", specials=("[TOOL_CALLS]",)),
    "mistralai-Ministral-3-14B-Reasoning-2512": Expected(
        "mistral", ("[THINK]", "[/THINK]"), goes_back=True, result="[TOOL_RESULTS]",
        specials=("[TOOL_CALLS]", "[ARGS]", "[THINK]", "[/THINK]"),
    ),
    "HuggingFaceTB-SmolLM3-3B": Expected("generic", THINK, off="<think>\n\n</think>\n"),
    "ibm-granite-granite-4.0": Expected("hermes", stops=("<|end_of_text|>",)),
    "ibm-granite-granite-4.1": Expected("hermes", stops=("<|end_of_text|>",)),
    "microsoft-Phi-3.5-mini-instruct": Expected("generic", stops=("<|end|>",)),
    "Qwen-Qwen3-0.6B": Expected("hermes", THINK, goes_back=True, off="<think>\n\n</think>\n\n"),
    "Qwen-QwQ-32B": Expected("hermes", THINK),
    "NVIDIA-Nemotron-Nano-v2": Expected("lists", THINK, ("<SPECIAL_12>",), is_open=True, result="<TOOL_RESPONSE>"),
    "poolside-Laguna-S-2.1": Expected("glm", THINK, ("</assistant>",), is_open=True, goes_back=True),
    "Spark2.5": Expected("glm", THINK, ("<｜end▁of▁sentence｜>",), is_open=True, goes_back=True),
    "LFM2.5-8B-A1B": Expected(
        "pythonic", THINK, goes_back=True, result="<|im_start|>tool",
        specials=("<|tool_call_start|>", "<|tool_call_end|>"),
    ),
    "LFM2-8B-A1B": Expected(
        "pythonic", result="<|tool_response_start|>", specials=("<|tool_call_start|>", "<|tool_call_end|>")
    ),
    "LFM2.5-Instruct": Expected(
        "pythonic", THINK, result="<|im_start|>tool", specials=("<|tool_call_start|>", "<|tool_call_end|>")
    ),
    "ibm-granite-granite-3.3-2B-Instruct": Expected(
        "granite", THINK, ("<|end_of_text|>",), result="<|start_of_role|>tool", specials=("<|tool_call|>",)
    ),
    "upstage-Solar-Open-100B": Expected(
        "solar", ("<|think|>", "<|end|>"), ("<|calls|>", "<|flush|>"), goes_back=True,
        off="<|begin|>assistant<|think|><|end|><|begin|>assistant", result="<|tool_response:begin|>",
        specials=tuple(text for text in SOLAR_TOKENS if text not in ("<|calls|>", "<|flush|>")),
    ),
    "openai-gpt-oss-120b": Expected(
        "harmony", ("<|channel|>analysis<|message|>", "<|end|>"), ("<|call|>", "<|return|>"), goes_back=True,
        off="Reasoning: low", result="<|start|>functions.get_weather to=assistant", num_calls=1,
        specials=tuple(text for text in HARMONY_TOKENS if text not in ("<|call|>", "<|return|>")),
    ),
    "google-gemma-4-31B-it": GEMMA4,
    "google-gemma-4-31B-it-interleaved": GEMMA4,
}  # fmt: skip

CITY = 'Zürich \\ "x"\n</a> [1]'
ARGUMENTS = {"city": CITY, "days": 3, "share": 0.5, "is_new": True, "list": ["a", 1, None], "more": {"b": {"c": []}}}
WEATHER = ct.Tool(
    "get_weather",
    "Weather of a city",
    {
        "type": "object",
        "properties": {
            "city": {"type": "string", "description": "where"},
            "days": {"type": "integer"},
            "share": {"type": "number"},
            "is_new": {"type": "boolean"},
            "list": {"type": "array"},
            "more": {"type": "object"},
        },
        "required": ["city"],
    },
)
ASK = ct.Message("user", (ct.TextPart("How is the weather?"),))
WITH_CALLS = [name for name, expected in TEMPLATES.items() if not expected.is_refused]
WITH_BOTH = [name for name in WITH_CALLS if TEMPLATES[name].tags is not None]


class StopTokenizer(FamilyTokenizer):
    """FamilyTokenizer with named tokens that end an answer."""

    def __init__(self, expected: Expected) -> None:
        specials = tuple(text for text in expected.stops if text != "<|im_end|>") + expected.specials
        super().__init__(specials)
        self.stop_ids = self.stop_ids | {260 + i for i, text in enumerate(specials) if text in expected.stops}


@cache
def sources() -> dict[str, str]:
    return peer.templates()


def maker_of(name: str) -> TurnMaker:
    expected = TEMPLATES[name]
    tokenizer = StopTokenizer(expected)
    template = TrustedTemplate(sources()[name])
    return TurnMaker(ChatEncoder(tokenizer, template), choose_format(template, tokenizer), template.source)


def prepared(maker: TurnMaker, *messages: ct.Message, tools=(), think=None):
    think = think or ct.Think()
    turn = maker.prepare(
        messages, tools=tools, tool_choice=ct.ToolChoice(), output=ct.OutputFormat(), think=think, continue_last=False,
        options={}, most_tokens=None, compile_form=lambda grammar: None, respell=lambda tokens, names: tokens,
    )  # fmt: skip
    return turn, maker._encoder._tokenizer.decode(turn.tokens, skip_special=False)


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_form_and_the_tags_are_found(name) -> None:
    expected = TEMPLATES[name]
    chat = maker_of(name).format
    assert (chat.name, bool(chat.refusal)) == (expected.form, expected.is_refused)
    assert (chat.tags and (chat.tags.open, chat.tags.close)) == expected.tags
    assert chat.is_parallel is (expected.num_calls > 1 and not expected.is_refused)


@pytest.mark.parametrize("name", TEMPLATES)
def test_prompts_render_and_open_reasoning_or_not(name) -> None:
    expected = TEMPLATES[name]
    maker = maker_of(name)
    turn, text = prepared(maker, ASK)
    assert "How is the weather?" in text
    assert turn.is_reasoning == expected.is_open
    turn, text = prepared(maker, ASK, think=ct.Think(enabled=False))
    assert not turn.is_reasoning
    assert expected.off in text
    system = ct.Message("system", (ct.TextPart("Be brief, please."),))
    assert "Be brief, please." in prepared(maker, system, ASK)[1]
    if not expected.is_refused:
        assert "Weather of a city" in prepared(maker, system, ASK, tools=(WEATHER,))[1]


@pytest.mark.parametrize("name", WITH_CALLS)
def test_calls_of_every_type_go_round_and_results_are_told(name) -> None:
    expected = TEMPLATES[name]
    maker = maker_of(name)
    chat = maker.format
    answer = ct.Message(
        "assistant",
        reasoning="Because of reasons.",
        tool_calls=(
            ct.ToolCall("a1B2c3D4e", "get_weather", json.dumps(ARGUMENTS)),
            ct.ToolCall("f5G6h7I8j", "get_weather", '{"city": "Bern"}'),
        ),
    )
    results = [
        ct.Message("tool", (ct.TextPart(f"It rains {i}."),), tool_call_id=call.id, name="get_weather")
        for i, call in enumerate(answer.tool_calls)
    ]
    turn, text = prepared(maker, ASK, answer, *results, tools=(WEATHER,))
    ids = [call_id(call.id, chat.tools) if expected.form == "solar" else call.id for call in answer.tool_calls]
    calls = [Call("get_weather", ARGUMENTS, ids[0]), Call("get_weather", {"city": "Bern"}, ids[1])]
    if expected.num_calls == 1:
        assert chat.syntax.render(calls[1:]) in text
        calls = calls[:1]
    written = chat.syntax.render(calls)
    assert written in text
    parser = replace(chat, tags=None).parser(has_tools=True, names=turn.names, kinds=turn.kinds)
    events = [e for c in chat.marks.encode(written) for e in parser.push(c)] + parser.finish()
    assert not [e for e in events if isinstance(e, ct.TextDelta | ct.ReasoningDelta)]
    read = ["", ""]
    for event in events:
        if isinstance(event, ct.ToolCallDelta):
            read[event.index] += event.arguments
    assert [json.loads(arguments) for arguments in read if arguments] == [call.arguments for call in calls]
    after = text[text.index(written) + len(written) :]
    assert after.index(expected.result) < after.index("It rains 0.") < after.index("It rains 1.")
    assert ("Because of reasons." in text) == expected.goes_back
    assert after.lstrip().startswith((*expected.stops, "<|eos|>"))


def peer_model(name: str, answer: str | None = None):
    """A model that says `answer` after prompts by the template."""
    expected, template = TEMPLATES[name], sources()[name]
    tokenizer = StopTokenizer(expected)
    ids = None if answer is None else tokenizer.encode(answer, special=True)
    model = family_model(Family(expected.form, template), ids, tokenizer=tokenizer, context=32768)
    model._prompts.encoder = ChatEncoder(tokenizer, TrustedTemplate(template))
    return model


@pytest.mark.parametrize("name", WITH_CALLS)
def test_whatever_the_logits_required_calls_are_whole_and_fit_their_schema(name) -> None:
    with peer_model(name) as model:
        for seed in range(2):
            turn = model.prepare_chat((ASK,), tools=TOOLS, tool_choice=REQUIRED, think=ct.Think(enabled=False))
            found = run(model, turn, seed=seed, temperature=2.0, top_k=0, top_p=1.0, max_tokens=4000)
            assert found[-1].reason == "tool_calls"
            calls = calls_of(found)
            assert calls
            for called, arguments in calls:
                check_arguments(called, arguments)


@pytest.mark.parametrize("name", ["Qwen3-Coder", "Qwen3.5-4B", "LFM2-8B-A1B", "LFM2.5-8B-A1B", "LFM2.5-Instruct"])
def test_what_the_grammar_lets_through_is_read_back_and_matches(name) -> None:
    with peer_model(name) as model:
        syntax, specials = model.chat_format.syntax, TEMPLATES[name].specials
        check_walks(SCHEMAS, lambda schema: Bound(syntax, schema, specials=specials, tools=1))


@pytest.mark.parametrize("name", WITH_BOTH)
@pytest.mark.parametrize("is_closed", [True, False])
@pytest.mark.parametrize("text", ["", "I look.\n\n"])
def test_calls_come_after_reasoning_that_is_closed_or_left_open(name, is_closed, text) -> None:
    with peer_model(name) as model:
        chat = model.chat_format
        opened = "" if model.prepare_chat((ASK,), tools=TOOLS).is_reasoning else chat.tags.open
        written = chat.syntax.render([Call("add", {"a": 7}, "a1b2c3d4e5" if chat.syntax.id_first else "")])
        if not is_closed and (text or not chat.syntax.ends_reasoning):
            pytest.skip("nothing says that the reasoning is over")
    answer = f"{opened}Because.{chat.tags.close * is_closed}\n\n{text}{written}"
    if chat.channels is not None:
        said = f"{(*chat.channels.asides, *chat.channels.finals)[0]}{text}{chat.channels.end}{chat.channels.start}"
        answer = f"{opened}Because.{chat.channels.end}{chat.channels.start}{said if text else ''}{written}"
    with peer_model(name, answer) as model:
        turn = model.prepare_chat((ASK,), tools=TOOLS)
        found = run(model, turn, **NO_SAMPLING)
        assert found[0] == ct.ReasoningDelta("Because.")
        assert calls_of(found) == [("add", {"a": 7})]
        assert "".join(e.text for e in found if isinstance(e, ct.TextDelta)).strip() == text.strip()
        assert found[-1] == ct.Finish("tool_calls")


@pytest.mark.parametrize("name", WITH_BOTH)
def test_an_answer_without_reasoning_is_text_where_it_is_switched_off(name) -> None:
    with peer_model(name) as model:
        channels = model.chat_format.channels
    with peer_model(name, f"{'' if channels is None else channels.finals[0]}It rains.") as model:
        turn = model.prepare_chat((ASK,), tools=TOOLS, think=ct.Think(enabled=False))
        assert run(model, turn, **NO_SAMPLING) == [ct.TextDelta("It rains."), ct.Finish("stop")]


def test_seed_is_told_its_budget() -> None:
    _, text = prepared(maker_of("ByteDance-Seed-OSS"), ASK, think=ct.Think(max_tokens=512))
    assert "thinking budget, which is 512" in text
    assert "every 128 tokens" in text
