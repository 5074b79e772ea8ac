"""JSON Schema to a grammar, by way of what each schema allows.

    document.py   what is a schema, what is data, what a reference names
    expand.py     one schema's keywords        normal.py   conjunctions and complements of schemas
    shapes.py     what they allow, by type     emit.py     from that to rules     rules.py   written down
    pattern.py, trees.py, charset.py, formats.py, numbers.py    texts and numbers as regular languages
    tagged.py     objects whose members stand between tags     keywords.py, python.py, bare.py    other ways to write
    values.py     whether a finished value matches

Every shape is a set that the schema's own set contains (declared keys only, whole numbers of 64 bits), except where a
note says that a keyword was left open: there it may be larger, and the finished answer is checked.
"""

from .compiled import KEPT_BYTES, CompiledSchema, OpenKeyword, compile_schema, kept_bytes, open_schema
from .python import single_quoted
from .tagged import EVERY_KIND, Bare, Keywords, Tagged
from .values import Checker, CheckError

__all__ = [
    "EVERY_KIND",
    "KEPT_BYTES",
    "Bare",
    "CheckError",
    "Checker",
    "CompiledSchema",
    "Keywords",
    "OpenKeyword",
    "Tagged",
    "compile_schema",
    "kept_bytes",
    "open_schema",
    "single_quoted",
]
