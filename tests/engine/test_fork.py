"""A forked child says that the model it inherited is its parent's, instead of waiting for threads that it has not."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")

_FORK = """
import json, os, signal, sys
from kamado.engine.turns.chat_types import Message, TextPart
from kamado.errors import KamadoError, UsageError
signal.alarm(60)
if sys.argv[1] == "fake":
    from engine.fakes import make_model
    model = make_model()
else:
    import kamado
    model = kamado.load(sys.argv[1], context=256)
list(model.generate("Q", max_tokens=2))
running = model.generate("Q", max_tokens=100, seed=1)  # another seed may draw the end early
next(running)
turn = model.prepare_chat([Message("user", (TextPart("Q"),))])
entries = {
    "generate": lambda: list(model.generate("Q", max_tokens=2)),
    "generate tokens": lambda: list(model.generate([1, 2], max_tokens=2, schema=True)),
    "chat": lambda: list(model.chat([{"role": "user", "content": "Q"}], max_tokens=2)),
    "prepare_form": lambda: model.prepare_form(regex="a"),
    "prepare_chat": lambda: model.prepare_chat([Message("user", (TextPart("Q"),))]),
    "chat_of_turn": lambda: model.chat(turn, max_tokens=2),
    "logits": lambda: model.logits([1, 2]),
    "visit_logits": lambda: model.visit_logits([1, 2], print),
    "embed": lambda: model.embed(["Q"]),
    "score": lambda: model.score([1, 2, 3]),
    "prompt_logprobs": lambda: model.prompt_logprobs([1, 2, 3]),
    "score_prompts": lambda: list(model.score_prompts([[1, 2, 3]])),
    "perplexity": lambda: model.perplexity(list(range(1, 9)), window=4),
    "stats": lambda: model.stats,
    "a running answer": lambda: next(running),
}
# Another thread may hold any of them when the process is forked.
for lock in (model._scheduler._lock, model._transcripts._lock):
    lock.acquire()
child = os.fork()
if not child:
    signal.alarm(30)  # of what never ends, the parent sees the signal
    said = {}
    for name, call in entries.items():
        try:
            call()
            said[name] = "no error"
        except UsageError as error:
            said[name] = str(error)
    ids = model.tokenize("still works")
    assert model.detokenize(ids)
    running.close()
    model.close()
    print(json.dumps(said), flush=True)
    sys.exit(0)  # with everything that Python does at the end
for lock in (model._scheduler._lock, model._transcripts._lock):
    lock.release()
code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
print(code, os.getpid(), len(list(running)) > 10, len(list(model.generate("Q", max_tokens=2))), flush=True)
model.close()
"""


def check(name: str) -> None:
    import json

    environment = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    done = subprocess.run(
        [sys.executable, "-c", _FORK, name], env=environment, capture_output=True, text=True, check=False, timeout=90
    )
    lines = done.stdout.splitlines()
    assert len(lines) == 2, done.stderr[-3000:]
    code, parent, goes_on, num_pieces = lines[1].split()
    for entry, said in json.loads(lines[0]).items():
        assert f"belongs to process {parent}" in said, entry
        assert "load it again in the child" in said
    assert (code, goes_on, num_pieces) == ("0", "True", "2")


def test_every_entry_of_an_inherited_model_says_whose_it_is() -> None:
    check("fake")


@pytest.mark.real
def test_a_child_of_the_native_engine_ends_too(real_model) -> None:
    check(str(real_model("smollm2:135m")))
