"""Where this machine gets Python packages from: pip's own configuration, read as pip reads it, and the simple API.

So `kamado pull` works behind any mirror that pip works behind. Read: `index-url`, `extra-index-url`, `find-links`,
`no-index`, `cert`, `client-cert` and `proxy` from pip's files and PIP_* variables. A later source
replaces an earlier one key by key, in pip's order: global files, user files, the environment's own file,
PIP_CONFIG_FILE, variables.
"""

from __future__ import annotations

import configparser
import json
import os
import re
import ssl
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urljoin, urlsplit
from urllib.request import url2pathname

from ..errors import DownloadError
from .fetch import OfflineError, network_fault, shown

if TYPE_CHECKING:
    import httpx2

PUBLIC_INDEX = "https://pypi.org/simple"
MAX_PAGE_BYTES = 64 << 20
_ACCEPT = "application/vnd.pypi.simple.v1+json, application/vnd.pypi.simple.v1+html;q=0.2, text/html;q=0.1"  # PEP 691
_SECTIONS = ("global", "install", "download")  # pip's: the command's section wins over [global]


@dataclass(frozen=True, slots=True)
class IndexConfig:
    """What pip would use."""

    indexes: tuple[str, ...] = (PUBLIC_INDEX,)  # simple-API roots, in order
    find_links: tuple[str, ...] = ()  # directories, files and pages with links to files
    client: Mapping[str, Any] = field(default_factory=dict)  # arguments for fetch.http_client


def read_config(environ: Mapping[str, str] = os.environ, files: list[Path] | None = None) -> IndexConfig:
    """pip's configuration for this environment. `files` stands in for pip's own list of places (tests).

    Raises DownloadError for a configuration file that cannot be parsed.
    """
    values: dict[str, str] = {}
    for path in _config_files(environ) if files is None else files:
        values |= _read_file(path)
    for key, value in environ.items():
        if key.startswith("PIP_") and value:
            values[key[4:].lower().replace("_", "-")] = value
    no_index = values.get("no-index", "").lower() in ("1", "true", "yes", "on", "y", "t")
    indexes = [] if no_index else [values.get("index-url", PUBLIC_INDEX), *values.get("extra-index-url", "").split()]
    return IndexConfig(
        indexes=tuple(dict.fromkeys(indexes)),
        find_links=tuple(values.get("find-links", "").split()),
        client=_client_settings(values),
    )


def _config_files(environ: Mapping[str, str]) -> list[Path]:
    """pip's places, least important first."""
    named = environ.get("PIP_CONFIG_FILE")
    if named == os.devnull:
        return []
    import platformdirs

    name, legacy = ("pip.ini", "pip") if sys.platform == "win32" else ("pip.conf", ".pip")
    shared = platformdirs.site_config_dir("pip", appauthor=False, multipath=True).split(os.pathsep)
    if sys.platform not in ("win32", "darwin"):
        shared.append("/etc")
    user = platformdirs.user_config_path("pip", appauthor=False, roaming=True)
    if sys.platform == "darwin" and not user.is_dir():
        user = Path.home() / ".config/pip"
    files = [
        *(Path(place) / name for place in shared),
        Path.home() / legacy / name,
        user / name,
        Path(sys.prefix) / name,
    ]
    return [*files, Path(named)] if named else files


def _read_file(path: Path) -> dict[str, str]:
    parser = configparser.RawConfigParser()
    try:
        if not parser.read(path, encoding="utf-8"):
            return {}
    except (configparser.Error, UnicodeDecodeError) as error:
        raise DownloadError(f"{path}: pip's configuration cannot be parsed: {str(error).splitlines()[0]}") from None
    values: dict[str, str] = {}
    for section in _SECTIONS:
        if parser.has_section(section):
            values |= {key.replace("_", "-"): value for key, value in parser.items(section) if value}
    return values


def _client_settings(values: Mapping[str, str]) -> dict[str, Any]:
    """httpx2.Client arguments. Certificates are always checked, but against `cert` when it is given."""
    settings: dict[str, Any] = {}
    if values.get("proxy"):
        settings["proxy"] = values["proxy"]
    cert, client_cert = values.get("cert"), values.get("client-cert")
    if cert or client_cert:
        try:
            context = ssl.create_default_context(cafile=cert)
            if client_cert:
                context.load_cert_chain(client_cert)
        except (OSError, ssl.SSLError) as error:
            raise DownloadError(f"pip's 'cert' or 'client-cert' ({cert or client_cert}) is unusable: {error}") from None
        settings["verify"] = context
    return settings


def find_file(config: IndexConfig, client: httpx2.Client, project: str, filename: str) -> Iterator[Path | str]:
    """Where `filename` of `project` is offered, best first: a local path or a URL. Lazy: asks one source at a time.

    Sources that cannot be reached are passed over; when none had the file, a DownloadError names all and their faults.
    """
    faults: list[str] = []
    has_any, is_offline = False, bool(config.indexes)
    name = re.sub(r"[-_.]+", "-", project).lower()
    for source in (*config.find_links, *(f"{root.rstrip('/')}/{name}/" for root in config.indexes)):
        try:
            found = [link for link in _links(client, source) if _basename(link) == filename]
            faults.append(f"{shown(source)} does not list it")
            is_offline = is_offline and _local(source) is not None
        except DownloadError as error:
            faults.append(str(error))
            is_offline = is_offline and (isinstance(error, OfflineError) or _local(source) is not None)
            continue
        except OSError as error:
            faults.append(f"{shown(source)}: {error.strerror or error}")
            continue
        has_any = has_any or bool(found)
        yield from found
    if not has_any:
        asked = "; ".join(faults) or "no package index is configured for pip"
        kind = OfflineError if is_offline and any("no network" in fault for fault in faults) else DownloadError
        raise kind(f"{filename} is not offered by any package index that pip is configured for: {asked}")


def _basename(link: Path | str) -> str:
    return link.name if isinstance(link, Path) else unquote(urlsplit(link).path).rpartition("/")[2]


def _links(client: httpx2.Client, source: str) -> list[Path | str]:
    """Files that `source` (a page of an index, a directory, an HTML file) links to. Raises DownloadError, OSError."""
    local = _local(source)
    if local is None:
        return _remote_links(client, source)
    page = local / "index.html" if local.is_dir() else local
    if local.suffix == ".whl" and local.is_file():
        return [local]
    if page.is_file():
        return _html_links(page.read_text("utf-8", "replace"), page.absolute().as_uri())
    if local.is_dir():
        return sorted(entry for entry in local.iterdir() if entry.is_file())
    raise DownloadError(f"{local} does not exist")


def _remote_links(client: httpx2.Client, page: str) -> list[Path | str]:
    import httpx2

    try:
        with client.stream("GET", page, headers={"Accept": _ACCEPT}) as response:
            if response.status_code != 200:
                raise DownloadError(f"{shown(page)} answered {response.status_code}")
            body = b""
            for chunk in response.iter_bytes():
                body += chunk
                if len(body) > MAX_PAGE_BYTES:
                    raise DownloadError(f"{shown(page)} answered with more than {MAX_PAGE_BYTES} bytes")
            base, is_json = str(response.url), "json" in response.headers.get("Content-Type", "")
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:
        raise network_fault(error, page) from None
    if not is_json:
        # A page from the network names no files of this machine.
        return [link for link in _html_links(body.decode("utf-8", "replace"), base) if isinstance(link, str)]
    try:
        files = json.loads(body)["files"]
        urls = [urljoin(base, entry["url"]) for entry in files]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise DownloadError(f"{shown(page)} answered with JSON that is no simple index") from None
    return [url for url in urls if urlsplit(url).scheme in ("http", "https")]


class _Anchors(HTMLParser):
    def __init__(self, base: str) -> None:
        super().__init__()
        self.base = base
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        href = dict(attrs).get("href")
        if href and tag == "base":
            self.base = urljoin(self.base, href)
        elif href and tag == "a":
            self.links.append(href)


def _html_links(text: str, base: str) -> list[Path | str]:
    parser = _Anchors(base)
    parser.feed(text)
    found: list[Path | str] = []
    for href in parser.links:
        with suppress(ValueError):
            url = urljoin(parser.base, href)
            found.append(_local(url) or url)
    return found


def _local(source: str) -> Path | None:
    """The path that `source` means, None for a URL of another scheme."""
    parts = urlsplit(source)
    if parts.scheme == "file":
        return Path(url2pathname(parts.path))
    return None if parts.scheme in ("http", "https") else Path(source).expanduser()
