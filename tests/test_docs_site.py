"""The site of the documentation: every link leads somewhere, nothing comes from elsewhere, and its search finds pages.

The search is the site's own script, run by node; without node that part is skipped.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urldefrag

import pytest
from pages import ROOT, pages

sys.path.insert(0, str(ROOT / "tools"))
docs_site = pytest.importorskip("docs_site", reason="no markdown-it-py")

# A query and the address of a section that has to be among the first three.
QUERIES = {
    "quick start": "docs/quickstart.html",
    "exit code": "docs/cli.html",
    "decayed use counts": "docs/streaming.html",
    "larger than mem": "docs/larger-than-memory.html",  # the last word is not typed to its end
    "KV CACHE preset": "docs/kv.html",
    "クイックスタート": "docs/ja/quickstart.html",
    "キャッシュを小さく": "docs/ja/plan.html",
    "メモリーより大きいモデル": "docs/ja/larger-than-memory.html",
    "グラフィックボード": "docs/ja/which.html",
    "竈": "index.html",
    "Ollama 画像": "docs/ja/which.html",
}
NOTHING = ["", "   ", "zzzzqqq", "streaming zzzzqqq", "龘龘", "___proto__ constructor zz", "*&^%"]


class Elements(HTMLParser):
    """Identifiers and addresses of a document, and whatever the policy would refuse."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.sources: list[str] = []
        self.refused: list[str] = []
        self.language = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.ids += [values["id"]] if "id" in values else []
        self.language = values.get("lang", self.language)
        if tag in ("a", "link"):
            self.links.append(values["href"])
        if tag in ("img", "script"):
            self.sources += [values["src"]] if "src" in values else []
        if "style" in values or tag in ("style", "iframe", "object", "form") or any(n.startswith("on") for n in values):
            self.refused.append(self.get_starttag_text() or tag)
        if tag == "script" and "src" not in values:
            self.refused.append("a script inside the page")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("site")
    docs_site.Site().write(out)
    return out


@pytest.fixture(scope="module")
def documents(site: Path) -> dict[Path, Elements]:
    return {path: Elements(path.read_text(encoding="utf-8")) for path in sorted(site.rglob("*.html"))}


def test_every_page_is_there(site: Path, documents: dict[Path, Elements]) -> None:
    wanted = set(docs_site.page_paths())
    assert set(pages()) <= wanted
    assert len(documents) == len(wanted)
    for name, language in (("index.html", "en"), ("README.ja.html", "ja"), ("docs/ja/plan.html", "ja")):
        assert documents[site / name].language == language


def test_every_link_leads_somewhere(site: Path, documents: dict[Path, Elements]) -> None:
    lost = []
    for path, document in documents.items():
        for link in (*document.links, *document.sources):
            if re.match(r"(https?|mailto):", link):
                continue
            name, anchor = urldefrag(unquote(link))
            target = (path.parent / name).resolve() if name else path
            assert target.is_relative_to(site.resolve())
            ids = documents[target].ids if target in documents else []
            if not target.is_file() or (anchor and anchor not in ids):
                lost.append(f"{path.relative_to(site)}: {link}")
    assert lost == []


def test_nothing_comes_from_elsewhere_or_runs_inside_a_page(documents: dict[Path, Elements]) -> None:
    for path, document in documents.items():
        assert document.refused == [], path
        assert not [source for source in document.sources if ":" in source], path
        assert docs_site.POLICY in path.read_text(encoding="utf-8")
        assert len(document.ids) == len(set(document.ids)), path


def test_comments_and_html_of_pages_are_no_html(site: Path) -> None:
    text = (site / "docs" / "streaming.html").read_text(encoding="utf-8")
    assert "streaming-figures" not in text
    assert 'class="right"' in (site / "docs" / "which.html").read_text(encoding="utf-8")


def test_a_link_that_leads_nowhere_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    monkeypatch.setattr(docs_site, "ROOT", tmp_path)
    (tmp_path / "docs" / "a.md").write_text("# A\n\n## B c\n", encoding="utf-8")
    for link, is_there in (("docs/a.md", True), ("docs/a.md#b-c", True), ("docs/a.md#b", False), ("docs/b.md", False),
                           ("../a.md", False), ("docs/", False), ("https://example.com", True)):  # fmt: skip
        (tmp_path / "README.md").write_text(f"# T\n\n[x]({link})\n", encoding="utf-8")
        if is_there:
            docs_site.Site().write(tmp_path / "out")
        else:
            with pytest.raises(docs_site.SiteError):
                docs_site.Site().write(tmp_path / "out")


SCRIPT = """
const [folder, queries] = JSON.parse(process.argv[1]);
require(folder + "/search-index.js");
require(folder + "/search.js");
const found = queries.map((query) => kamadoSearch.find(kamadoIndex, query).map((section) => section[0]));
const excerpts = ["クイックスタート", "Expert"].map((query) => {
  const section = kamadoSearch.find(kamadoIndex, query)[0];
  return kamadoSearch.excerpt(section[3], query);
});
console.log(JSON.stringify({ found, excerpts, terms: kamadoSearch.terms("Ａ4つのKVキャッシュ、q4_0") }));
"""


@pytest.fixture(scope="module")
def searched(site: Path) -> Any:
    node = shutil.which("node")
    if node is None:
        pytest.skip("no node")
    arguments = json.dumps([str(site), [*QUERIES, *NOTHING]])
    done = subprocess.run([node, "-e", SCRIPT, arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_the_search_finds_pages_in_both_languages(searched: Any) -> None:
    for query, found in zip(QUERIES, searched["found"], strict=False):
        first = [url.partition("#")[0] for url in found[:3]]
        assert QUERIES[query] in first, (query, found[:5])


def test_what_is_nowhere_is_not_found(searched: Any) -> None:
    assert searched["found"][len(QUERIES) :] == [[]] * len(NOTHING)


def test_terms_and_excerpts(searched: Any) -> None:
    assert searched["terms"] == ["a4", "つの", "kv", "キャ", "ャッ", "ッシ", "シュ", "q4_0"]
    assert all(0 < len(text) <= 162 for text in searched["excerpts"])


@pytest.mark.browser
def test_the_search_works_from_a_disk(site: Path) -> None:
    """Chromium opens the file itself, under the page's policy."""
    from serve.browsing import launched

    with launched() as browser:
        page = browser.new_page()
        faults: list[str] = []
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
        page.goto((site / "docs" / "ja" / "plan.html").as_uri())
        page.fill("#frame-query", "クイックスタート")
        page.locator("#frame-results a").first.wait_for()
        page.press("#frame-query", "Enter")
        page.wait_for_url("**/quickstart.html*")
        assert page.locator("h1").inner_text() == "クイックスタート"
        assert faults == []
