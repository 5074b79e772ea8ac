#!/usr/bin/env python3
"""What `kamado serve` of a fresh installation must do: start, give the page with all its files, answer, and go down.

Run by the Python that Kamado and requirements/serve.txt were installed for. No model is needed.
"""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import threading
import urllib.request
from typing import IO

START_SECONDS = 120


def check(condition: bool, text: str) -> None:
    if not condition:
        sys.exit(f"smoke: {text}")


def get(url: str) -> tuple[str, str]:
    """(media type, text) of an address of this machine."""
    with urllib.request.urlopen(url, timeout=30) as answer:
        return answer.headers.get_content_type(), answer.read().decode()


def address(lines: IO[str]) -> str:
    """Where the server listens, from what it says on stderr; the rest of that is read and thrown away."""
    found: list[str] = []
    is_up = threading.Event()

    def read() -> None:
        for line in lines:
            match = re.search(r"kamado serves on (http://\S+)", line)
            if match is not None:
                found.append(match[1])
                is_up.set()
            elif not found:
                print(line, end="", file=sys.stderr)
        is_up.set()

    threading.Thread(target=read, daemon=True).start()
    check(is_up.wait(START_SECONDS) and bool(found), "kamado serve did not start")
    return found[0]


def main() -> None:
    words = [sys.executable, "-I", "-m", "kamado", "serve", "--port", "0"]
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as server:
        try:
            assert server.stderr is not None
            url = address(server.stderr)
            kind, page = get(f"{url}/")
            check(kind == "text/html" and "<title>" in page, f"/ answers {kind}: {page[:200]}")
            names = set(re.findall(r'(?:href|src)="(/web/[^"]+)"', page))
            seen: set[str] = set()
            while names - seen:  # scripts import further ones
                name = (names - seen).pop()
                seen.add(name)
                _, text = get(url + name)
                check(len(text) > 0, f"{name} is empty")
                names |= {f"/web/{other}" for other in re.findall(r'from "\./([a-z]+\.js)"', text)}
            check(any(name.endswith(".js") for name in seen), f"the page has no script, only {seen}")
            check(any(name.endswith(".css") for name in seen), f"the page has no style, only {seen}")
            check(json.loads(get(f"{url}/v1/models")[1])["object"] == "list", "/v1/models is no list")
            check(json.loads(get(f"{url}/health")[1])["status"] == "ok", "/health is not ok")
            server.send_signal(signal.SIGTERM)
            # After its farewell the server ends by the signal it got, as programs do.
            check(server.wait(60) in (0, -signal.SIGTERM), f"exit code {server.returncode} after SIGTERM")
        finally:
            server.kill()
    print(f"smoke: kamado serve gave the page and {len(seen)} files, and went down")


if __name__ == "__main__":
    main()
