#!/usr/bin/env python3
"""Takes the README's picture of the page, docs/page.png: python3 tools/page_picture.py

A real `kamado serve smollm2:135m` answers in headless Chromium (requirements/page.txt; KAMADO_CHROMIUM names another
browser). The picture says inside of which sources of the page it was taken; tests/test_page_picture.py compares.
"""

from __future__ import annotations

import hashlib
import sys
import zlib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PICTURE = ROOT / "docs" / "page.png"
MODEL = "smollm2:135m"
QUESTION = "Why is the sky blue?"
SIZE = {"width": 1200, "height": 800}
KEYWORD = b"kamado-page-sources"  # of the text chunk in the file
SIGNATURE = b"\x89PNG\r\n\x1a\n"


def sources_digest() -> str:
    """One hash over the files that the page consists of."""
    from kamado.serve.web.page import web_files

    total = hashlib.sha256()
    for name, file in sorted(web_files().items()):
        total.update(f"{name}\0{len(file.content)}\0".encode() + file.content)
    return total.hexdigest()


def chunks(png: bytes) -> list[tuple[bytes, bytes]]:
    """(kind, content) of the chunks of a PNG file, their checksums checked."""
    if not png.startswith(SIGNATURE):
        raise ValueError("this is no PNG file")
    found, position = [], len(SIGNATURE)
    while position < len(png):
        length = int.from_bytes(png[position : position + 4])
        kind, content = png[position + 4 : position + 8], png[position + 8 : position + 8 + length]
        if zlib.crc32(kind + content) != int.from_bytes(png[position + 8 + length : position + 12 + length]):
            raise ValueError("a chunk of the PNG file is damaged")
        found.append((kind, content))
        position += 12 + length
    return found


def with_text(png: bytes, keyword: bytes, text: str) -> bytes:
    """The picture with a text chunk behind its header."""
    (header, *rest) = chunks(png)
    out = SIGNATURE
    for kind, content in (header, (b"tEXt", keyword + b"\0" + text.encode("latin-1")), *rest):
        out += len(content).to_bytes(4) + kind + content + zlib.crc32(kind + content).to_bytes(4)
    return out


def text_of(png: bytes, keyword: bytes) -> str | None:
    """The text that `with_text` put there."""
    for kind, content in chunks(png):
        name, _, text = content.partition(b"\0")
        if kind == b"tEXt" and name == keyword:
            return text.decode("latin-1")
    return None


def taken() -> bytes:
    """A picture of a conversation with the model, with the panel of memory open."""
    sys.path.insert(0, str(ROOT / "tests"))
    from serve.browsing import ask, launched
    from serve.processes import started

    from kamado.library.store import Store

    with started(Store().root, MODEL, "--pull") as process, launched() as browser:
        page = browser.new_page(viewport=SIZE, color_scheme="light")
        page.goto(str(process.http.base_url))
        page.wait_for_selector("html[data-ready]")
        for name, value in (("temperature", "0"), ("max-tokens", "400")):
            page.evaluate(
                "([id, value]) => { const e = document.getElementById(id); e.value = value;"
                " e.dispatchEvent(new Event('change')); }",
                [name, value],
            )
        ask(page, QUESTION)
        page.locator(".message.assistant .tools button", has_text="Retry").wait_for(timeout=60_000)
        page.click("#show-memory")
        page.locator("#memory-models .owners li").first.wait_for()
        page.mouse.move(0, 0)
        page.wait_for_timeout(500)  # until nothing moves any more
        return bytes(page.screenshot())


def main() -> int:
    PICTURE.write_bytes(with_text(taken(), KEYWORD, sources_digest()))
    print(f"wrote {PICTURE.relative_to(ROOT)}, {PICTURE.stat().st_size / 1000:.0f} kB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
