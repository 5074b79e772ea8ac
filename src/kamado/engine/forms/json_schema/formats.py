"""Formats of texts that can be enforced, each as a pattern; dates have their months' lengths, leap years included.

Any other format is a remark, as JSON Schema says.
"""

from __future__ import annotations

from functools import cache

from .pattern import language
from .trees import Tree

_LONG = r"(0[13578]|1[02])-(0[1-9]|[12]\d|3[01])"
_SHORT = r"(0[469]|11)-(0[1-9]|[12]\d|30)"
_YEAR = r"(000[1-9]|00[1-9]\d|0[1-9]\d\d|[1-9]\d{3})"
_LEAP = r"(\d\d(0[48]|[2468][048]|[13579][26])|(0[48]|[2468][048]|[13579][26])00)"
_DATE = rf"({_YEAR}-({_LONG}|{_SHORT}|02-(0[1-9]|1\d|2[0-8]))|{_LEAP}-02-29)"
_TIME = r"([01]\d|2[0-3]):[0-5]\d:[0-5]\d(\.\d{1,9})?([Zz]|[+-]([01]\d|2[0-3]):[0-5]\d)"
_BYTE = r"(25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)"
_IPV4 = rf"({_BYTE}\.){{3}}{_BYTE}"
_H = "[0-9A-Fa-f]{1,4}"
_LOW = f"({_H}:{_H}|{_IPV4})"
_IPV6 = "|".join([
    f"({_H}:){{6}}{_LOW}", f"::({_H}:){{5}}{_LOW}", f"({_H})?::({_H}:){{4}}{_LOW}",
    f"(({_H}:){{0,1}}{_H})?::({_H}:){{3}}{_LOW}", f"(({_H}:){{0,2}}{_H})?::({_H}:){{2}}{_LOW}",
    f"(({_H}:){{0,3}}{_H})?::{_H}:{_LOW}", f"(({_H}:){{0,4}}{_H})?::{_LOW}",
    f"(({_H}:){{0,5}}{_H})?::{_H}", f"(({_H}:){{0,6}}{_H})?::",
])  # fmt: skip
_LABEL = "[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_ATOM = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+"
_P = r"([A-Za-z0-9._~!$&'()*+,;=:@-]|%[0-9A-Fa-f]{2})"
_AUTHORITY = rf"(([A-Za-z0-9._~!$&'()*+,;=:-]|%[0-9A-Fa-f]{{2}})*@)?([A-Za-z0-9._~-]*|\[({_IPV6})\])(:\d{{0,5}})?"
_TAIL = rf"(\?({_P}|[/?])*)?(#({_P}|[/?])*)?"
_PATH = f"(/{_P}*)*"
_HIER = f"(//{_AUTHORITY}{_PATH}|/({_P}+{_PATH})?|{_P}+{_PATH}|)"
_URI = f"[A-Za-z][A-Za-z0-9+.-]*:{_HIER}{_TAIL}"
_NO_COLON = r"([A-Za-z0-9._~!$&'()*+,;=@-]|%[0-9A-Fa-f]{2})"
_RELATIVE = f"(//{_AUTHORITY}{_PATH}|/({_P}+{_PATH})?|{_NO_COLON}+{_PATH}|){_TAIL}"
_POINTER = r"(/([^~/]|~[01])*)*"
_N = r"\d{1,9}"

_PATTERNS = {
    "date": _DATE,
    "time": _TIME,
    "date-time": f"{_DATE}[Tt]{_TIME}",
    "duration": rf"P({_N}W|({_N}D|{_N}M({_N}D)?|{_N}Y({_N}M({_N}D)?)?)(T({_N}S|{_N}M({_N}S)?|{_N}H({_N}M({_N}S)?)?))?"
    rf"|T({_N}S|{_N}M({_N}S)?|{_N}H({_N}M({_N}S)?)?))",
    "email": rf"{_ATOM}(\.{_ATOM})*@({_LABEL}\.)+[A-Za-z]([A-Za-z0-9-]{{0,61}}[A-Za-z0-9])",
    "hostname": rf"{_LABEL}(\.{_LABEL})*",
    "ipv4": _IPV4,
    "ipv6": _IPV6,
    "uuid": "[0-9A-Fa-f]{8}-[0-9A-Fa-f]{4}-[0-9A-Fa-f]{4}-[0-9A-Fa-f]{4}-[0-9A-Fa-f]{12}",
    "uri": _URI,
    "uri-reference": f"{_URI}|{_RELATIVE}",
    "json-pointer": _POINTER,
    "relative-json-pointer": rf"(0|[1-9]\d{{0,8}})(#|{_POINTER})",
}
# Formats of the specification that nothing here enforces; all other names are their author's own.
OPEN = frozenset({"idn-email", "idn-hostname", "iri", "iri-reference", "uri-template", "regex"})
FORMATS = tuple(_PATTERNS)
_MOST = {"hostname": 253, "email": 254}


@cache
def format_language(name: str) -> Tree | None:
    """Texts of a format; None for one that is not enforced."""
    body = _PATTERNS.get(name)
    if body is None:
        return None
    most = rf"(?=[\x00-\u{{10FFFF}}]{{0,{_MOST[name]}}}$)" if name in _MOST else ""
    return language(f"^{most}(?:{body})$")
