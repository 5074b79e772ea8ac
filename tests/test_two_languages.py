"""A page and its Japanese translation say the same, section by section: headings, commands, names, links and figures.

A number in digits on one page has to stand on the other, in the same section and with the same unit. Small counts that
are no figures are words in both ("three commands", 三つのコマンド).
"""

from __future__ import annotations

import posixpath
import re
from collections import Counter
from collections.abc import Callable

import pytest
from pages import ROOT, Section, sections, without_comment

PAIRS = {
    "README.ja.md": "README.md",
    **{
        f"docs/ja/{path.name}": f"docs/{path.name}"
        for path in sorted((ROOT / "docs" / "ja").glob("*.md"))
    },
}  # fmt: skip
# One spelling of each unit; a longer word stands before one that it begins with.
UNITS = {
    "トークン/秒": "tokens/s", "tokens/s": "tokens/s", "tokens": "tokens", "トークン": "tokens", "GB/s": "GB/s",
    "KiB": "KiB", "MiB": "MiB", "GiB": "GiB", "MB": "MB", "GB": "GB", "bits": "bits", "bit": "bits", "ビット": "bits",
    "threads": "threads", "スレッド": "threads", "processors": "processors", "プロセッサー": "processors",
    "experts": "experts", "個のエキスパート": "experts", "layers": "layers", "層": "layers", "minutes": "min",
    "分後": "min", "分": "min", "seconds": "s", "秒": "s", "×": "times", "倍": "times", "%": "%",
}  # fmt: skip
SCALES = {"billion": 10**9, "億": 10**8, "million": 10**6, "万": 10**4}
MONTHS = {"November": "11"}
NUMBER = re.compile(
    rf"(?P<word>[A-Za-z_]*[.]?\d+(?:[.,]\d+)*[A-Za-z_0-9]*)(?:[ -]?(?P<scale>{'|'.join(SCALES)}))?"
    rf"(?:[ -]?(?P<unit>{'|'.join(map(re.escape, UNITS))}))?",
    re.ASCII,
)


def figures(section: Section) -> Counter[str]:
    """The numbers of a section's text with their units; a name with a digit (Q4_K, SmolLM2) counts as one."""
    text = re.sub(r"\]\([^)]*\)|`[^`]*`", "] ", "\n".join(section.prose))  # links and names have checks of their own
    text = re.sub("|".join(MONTHS), lambda month: MONTHS[month[0]], text)
    found: Counter[str] = Counter()
    for match in NUMBER.finditer(text):
        word = match["word"]
        if match["scale"]:
            word = str(int(word) * SCALES[match["scale"]])
        found[f"{word} {UNITS[match['unit']]}" if match["unit"] else word] += 1
    return found


def names(section: Section) -> Counter[str]:
    """What stands between backticks."""
    return Counter(re.findall(r"`([^`]+)`", " ".join(section.prose)))


def links(section: Section, page: str) -> Counter[str]:
    """Where its links lead: a Japanese page counts as the one it translates, a heading of the page itself as #."""
    found: Counter[str] = Counter()
    for target in re.findall(r"\]\(([^)]+)\)", " ".join(section.prose)):
        if target.startswith("#"):
            target = "#"
        elif not target.startswith(("http:", "https:")):
            target = posixpath.normpath(posixpath.join(posixpath.dirname(page), target))
            target = PAIRS.get(target, target)
        found[target] += 1
    return found


def code(section: Section) -> list[tuple[str, str]]:
    """Its fenced blocks without comments, which may be translated."""
    return [
        (block.language, "\n".join(without_comment(line) for line in block.text.splitlines()))
        for block in section.blocks
    ]


def shape(section: Section) -> tuple[int, int, int]:
    """How many lines are of tables, of lists without and with numbers."""
    lines = section.prose
    return tuple(sum(bool(re.match(start, line)) for line in lines) for start in (r"\|", r"- ", r"\d+\. "))  # type: ignore[return-value]


def is_switch(target: str, page: str) -> bool:
    """Whether a link is the one from a page to itself in the other language."""
    return target in (page, PAIRS.get(page))


def differences(page: str, original: str, text: str, text_of_original: str) -> list[str]:
    """What the two say differently, a line for each section and kind."""
    ours, theirs = sections(text), sections(text_of_original)
    if [section.level for section in ours] != [section.level for section in theirs]:
        return [f"headings: {[s.title for s in ours]} and {[s.title for s in theirs]}"]
    found = []
    checks: list[tuple[str, Callable[[Section, str], object]]] = [
        ("figures", lambda section, _: figures(section)),
        ("names", lambda section, _: names(section)),
        ("code", lambda section, _: code(section)),
        ("lines of tables and lists", lambda section, _: shape(section)),
        ("links", lambda section, of: Counter({t: n for t, n in links(section, of).items() if not is_switch(t, page)})),
    ]
    for mine, other in zip(ours, theirs, strict=True):
        for kind, of in checks:
            a, b = of(mine, page), of(other, original)
            if a != b:
                detail = f"{a - b} and {b - a}" if isinstance(a, Counter) and isinstance(b, Counter) else f"{a} and {b}"
                found.append(f"{mine.title or 'the beginning'}: {kind}: {detail}")
    return found


@pytest.mark.parametrize("page", PAIRS)
def test_a_page_and_its_translation_say_the_same(page: str) -> None:
    text, original = ((ROOT / name).read_text(encoding="utf-8") for name in (page, PAIRS[page]))
    assert differences(page, PAIRS[page], text, original) == []


@pytest.mark.parametrize("page", PAIRS)
def test_each_leads_to_the_other(page: str) -> None:
    for one, other in ((page, PAIRS[page]), (PAIRS[page], page)):
        first = sections((ROOT / one).read_text(encoding="utf-8"))[1]
        targets = re.findall(r"\]\(([^)]+)\)", " ".join(first.prose))
        assert other in {posixpath.normpath(posixpath.join(posixpath.dirname(one), target)) for target in targets}


@pytest.mark.parametrize("page", PAIRS)
def test_it_is_japanese(page: str) -> None:
    """Every paragraph has Japanese in it, in its polite form; none was left in English."""
    text = (ROOT / page).read_text(encoding="utf-8")
    prose = "\n".join(line for section in sections(text) for line in (section.title, *section.prose))
    for paragraph in re.split(r"\n\s*\n", prose):
        plain = re.sub(r"\]\([^)]*\)|`[^`]*`|^\|[-:| ]+\|$", "", paragraph, flags=re.MULTILINE)
        if len(re.findall(r"[A-Za-z]{3,}", plain)) > 3:
            assert re.search(r"[\u3040-\u30ff]", plain), paragraph
    assert not re.search(r"((?<![でま])した|である|する|だ|ない)。", prose), "です・ます in all sentences"


WALKS = [
    ("# A\n\n5 GB", "# A\n\n5 GB", []),
    ("# A\n\n5 GB", "# A\n\n5 MB", ["figures"]),
    ("# A\n\n50 億、2.5 倍、1.5 トークン/秒", "# A\n\n5 billion, 2.5×, 1.5 tokens/s", []),
    ("# A\n\n64 ビット", "# A\n\n64-bit", []),
    ("# A\n\n2026 年 11 月", "# A\n\nNovember 2026", []),
    ("# A\n\n+.02 %", "# A\n\n+.03 %", ["figures"]),
    ("# A\n\nQ4_0", "# A\n\nQ4_1", ["figures"]),
    ("# A\n\n`a`", "# A\n\n`b`", ["names"]),
    ("# A\n\n```sh\na # x\n```", "# A\n\n```sh\na # y\n```", []),
    ("# A\n\n```sh\na\n```", "# A\n\n```sh\nb\n```", ["code"]),
    ("# A\n\n- x\n- y", "# A\n\n- x", ["lines of tables and lists"]),
    ("# A\n\n[x](../cli.md)", "# A\n\n[x](cli.md)", []),
    ("# A\n\n[x](plan.md)", "# A\n\n[x](cli.md)", ["links"]),
    ("# A\n\n## B", "# A\n\n# B", ["headings"]),
]


@pytest.mark.parametrize(("text", "original", "kinds"), WALKS)
def test_a_difference_is_found(text: str, original: str, kinds: list[str]) -> None:
    found = differences("docs/ja/plan.md", "docs/plan.md", text, original)
    assert len(found) == len(kinds)
    assert all(kind in said for kind, said in zip(kinds, found, strict=True))
