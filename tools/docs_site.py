#!/usr/bin/env python3
"""Makes a site of the documentation: python3 tools/docs_site.py OUT

The pages are README, docs/ and their neighbours as they stand. OUT holds plain HTML that needs no server and no
network: it can be opened from a disk, and its search is a script beside it. A link that leads nowhere ends the program.
"""

from __future__ import annotations

import html
import json
import posixpath
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).resolve().parent.parent
ASSETS = ROOT / "docs" / "site"
# The pages of the menu's first part, in this order; the rest is sorted by title.
FOR_USERS = (
    "README.md", "docs/quickstart.md", "docs/install.md", "docs/models.md", "docs/plan.md",
    "docs/larger-than-memory.md", "docs/one-server.md", "docs/config.md", "docs/which.md", "docs/serve.md",
    "docs/clients.md", "docs/compatibility.md", "docs/tools-and-structure.md", "docs/embeddings.md", "docs/kv.md",
    "docs/cli.md", "docs/api.md",
)  # fmt: skip
BESIDE = ("README.md", "README.ja.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")
POLICY = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; base-uri 'none'; form-action 'none'"
WORDS = {  # of the frame around a page
    "en": {"search": "Search", "skip": "To the text", "use": "Use it", "how": "How it works", "ja": "日本語"},
    "ja": {"search": "検索", "skip": "本文へ", "use": "使う（英語）", "how": "仕組み（英語）", "ja": "日本語"},
}


class SiteError(Exception):
    """A page that cannot become part of the site; the message says which and why."""


@dataclass(slots=True)
class Heading:
    """A heading and the text below it, for the search."""

    slug: str
    title: str
    text: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Page:
    """A page of the repository: where it is, what it is called, and what it consists of."""

    path: str  # below the root
    tokens: list[Token]
    headings: list[Heading]

    @property
    def url(self) -> str:
        """Its place below the site."""
        folder, name = posixpath.split(self.path)
        name = "index" if name == "README.md" else name.removesuffix(".md")
        return posixpath.join(folder, f"{name}.html")

    @property
    def title(self) -> str:
        return self.headings[0].title

    @property
    def language(self) -> str:
        return "ja" if self.path == "README.ja.md" or self.path.startswith("docs/ja/") else "en"


def parser() -> MarkdownIt:
    """CommonMark with tables; HTML of a page is not taken over, comments are left out."""
    markdown = MarkdownIt("commonmark").enable("table")

    def plain(renderer: object, tokens: Sequence[Token], i: int, options: object, env: object) -> str:
        content = tokens[i].content.strip()
        return "" if re.fullmatch(r"<!--.*?-->", content, re.DOTALL) else html.escape(content)

    markdown.add_render_rule("html_block", plain)
    markdown.add_render_rule("html_inline", plain)
    return markdown


def plain_text(tokens: Sequence[Token]) -> str:
    """The words of inline tokens."""
    return "".join(
        token.content if token.type in ("text", "code_inline") else " " if token.type.endswith("break") else ""
        for token in tokens
    )


def slug_of(title: str, taken: dict[str, int]) -> str:
    """A heading's address as GitHub makes it: links between pages count on that."""
    base = re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")
    count = taken.get(base, 0)
    taken[base] = count + 1
    return f"{base}-{count}" if count else base


def read_page(path: str, markdown: MarkdownIt) -> Page:
    """Parses a page and gives its headings their addresses."""
    tokens = markdown.parse((ROOT / path).read_text(encoding="utf-8"))
    headings: list[Heading] = []
    taken: dict[str, int] = {}
    for before, token in zip([None, *tokens], tokens, strict=False):
        if before is not None and before.type == "heading_open":
            title = plain_text(token.children or [])
            headings.append(Heading(slug_of(title, taken), title))
            before.attrSet("id", headings[-1].slug)
        elif headings and token.type in ("inline", "fence", "code_block"):
            headings[-1].text.append(plain_text(token.children or []) or token.content)
    if not headings or not tokens or tokens[0].type != "heading_open":
        raise SiteError(f"{path} does not begin with a title")
    return Page(path, tokens, headings)


def page_paths() -> list[str]:
    """The pages of the site, those of the menu's first part first."""
    found = [path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md")]
    every = {path for path in (*BESIDE, *found) if (ROOT / path).is_file()}
    first = [path for path in FOR_USERS if path in every]
    return [*first, *sorted(every - set(first))]


class Site:
    """All pages, and what they need beside them."""

    def __init__(self) -> None:
        self.markdown = parser()
        self.pages = {path: read_page(path, self.markdown) for path in page_paths()}
        self.files: set[str] = set()  # pictures and texts that pages lead to

    def write(self, out: Path) -> None:
        """Writes the site into a folder. Raises SiteError for a link that leads nowhere."""
        texts = {page.url: self.html(page) for page in self.pages.values()}
        sections = list(self.sections())
        index = json.dumps({"sections": sections}, ensure_ascii=False, separators=(",", ":"))
        texts["search-index.js"] = f"globalThis.kamadoIndex = {index};\n"
        for name, text in texts.items():
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            (out / name).write_text(text, encoding="utf-8")
        for path in sorted(self.files):
            (out / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / path, out / path)
        for asset in ("search.js", "style.css"):
            shutil.copyfile(ASSETS / asset, out / asset)

    def sections(self) -> Iterator[tuple[str, str, str, str]]:
        """(address, title of the page, heading, text) of every section: what is searched."""
        for page in self.pages.values():
            for heading in page.headings:
                text = " ".join(" ".join(heading.text).split())
                yield f"{page.url}#{heading.slug}", page.title, heading.title, text

    # --- links --------------------------------------------------------------------------------------------------------

    def target(self, page: Page, link: str) -> str:
        """Where a link of a page leads on the site. Raises SiteError when there is nothing."""
        if re.match(r"(https?|mailto):", link):
            return link
        path, _, anchor = unquote(link).partition("#")
        place = posixpath.normpath(posixpath.join(posixpath.dirname(page.path), path)) if path else page.path
        if (ROOT / place).is_dir():
            place = posixpath.join(place, "README.md")
        other = self.pages.get(place)
        if other is None:
            if place.startswith("..") or not (ROOT / place).is_file():
                raise SiteError(f"{page.path}: a link leads to {link}, which is not there")
            self.files.add(place)
            return self.relative(page, place)
        if anchor and anchor not in {heading.slug for heading in other.headings}:
            raise SiteError(f"{page.path}: a link leads to {link}, and {other.path} has no such heading")
        return self.relative(page, other.url) + (f"#{anchor}" if anchor else "")

    @staticmethod
    def relative(page: Page, url: str) -> str:
        return posixpath.relpath(url, posixpath.dirname(page.url) or ".")

    # --- HTML ---------------------------------------------------------------------------------------------------------

    def html(self, page: Page) -> str:
        """The whole document of a page."""
        words = WORDS[page.language]
        root = "../" * page.url.count("/")
        return f"""<!doctype html>
<html lang="{page.language}" data-root="{root}">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{html.escape(page.title)}</title>
<link rel="stylesheet" href="{root}style.css">
<script src="{root}search.js" defer></script>
</head>
<body>
<a class="skip" href="#frame-text">{words["skip"]}</a>
<header><a class="name" href="{root}index.html">Kamado</a>
<search><input id="frame-query" type="search" placeholder="{words["search"]}" aria-label="{words["search"]}"
autocomplete="off">
<ul id="frame-results" hidden></ul></search></header>
<div class="columns">
<nav aria-label="Kamado">{self.menu(page)}</nav>
<main id="frame-text">
{self.body(page)}</main>
</div>
</body>
</html>
"""

    def menu(self, page: Page) -> str:
        """Links to all pages, in three parts."""
        words = WORDS[page.language]
        japanese = [other for other in self.pages.values() if other.language == "ja"]
        users = [self.pages[path] for path in FOR_USERS if path in self.pages]
        rest = [other for other in self.pages.values() if other not in users and other not in japanese]
        parts = {"use": users, "ja": japanese, "how": sorted(rest, key=lambda other: other.title)}
        order = ("ja", "use", "how") if page.language == "ja" else ("use", "ja", "how")
        text = ""
        for name in order:
            items = "".join(
                f'<li><a href="{self.relative(page, other.url)}"{" aria-current=page" if other is page else ""}>'
                f"{html.escape(other.title)}</a></li>"
                for other in parts[name]
            )
            text += f"<h2>{words[name]}</h2><ul>{items}</ul>"
        return text

    def body(self, page: Page) -> str:
        """The page's own text. Styles inside the text would be refused by the policy: alignment becomes a class."""
        for token in walk(page.tokens):
            for name in ("href", "src"):
                if isinstance(link := token.attrGet(name), str):
                    token.attrSet(name, self.target(page, link))
            if isinstance(style := token.attrGet("style"), str):
                del token.attrs["style"]
                token.attrSet("class", style.removeprefix("text-align:"))
            if token.type == "image":
                token.attrSet("loading", "lazy")
        env: dict[str, Any] = {}
        text = self.markdown.renderer.render(page.tokens, self.markdown.options, env)
        return text.replace("<table>", '<div class="table"><table>').replace("</table>", "</table></div>")


def walk(tokens: Sequence[Token]) -> Iterator[Token]:
    """All tokens and those inside them."""
    for token in tokens:
        yield token
        yield from walk(token.children or [])


def main(arguments: Sequence[str]) -> int:
    if len(arguments) != 1 or arguments[0].startswith("-"):
        print(__doc__, file=sys.stderr)
        return 2
    out = Path(arguments[0])
    try:
        site = Site()
        site.write(out)
    except SiteError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{len(site.pages)} pages in {out}: open {out / 'index.html'}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
