"""Tool calls in each family's own form: how tools go into the prompt, and how calls come out of the answer.

choose.py            which format a model has, proved by a round trip through its template
template_turns.py    messages and tools as templates read them
call_grammar.py      what an answer may be, so that every call is whole and fits its schema
parser.py            from output to events          argument_readers.py   arguments, JSON or between tags, to JSON
reasoning.py         tags of reasoning, and how a template takes it back
hermes, qwen_xml, glm, minimax, mistral, lists, granite, llama3, gemma, generic: one family each, in syntax.py's terms
"""

from __future__ import annotations

from .choose import ChatFormat, choose_format
from .parser import AnswerParser

__all__ = ["AnswerParser", "ChatFormat", "choose_format"]
