"""Catalog models on a hub: what the first pull takes is shown, agreed to, written down, and held to ever after."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from files.builders import write_gguf

from kamado.errors import CorruptFileError, DownloadError, ModelNotFoundError, UsageError
from kamado.library.pins import Offer, Pins
from kamado.library.pull import pull
from kamado.library.store import Store

from .servers import COMMITS, Hub, Reply
from .test_catalog import write_user_catalog

NAME = "mine:1b"


@pytest.fixture
def model(tmp_path: Path) -> bytes:
    return write_gguf(tmp_path / "made.gguf", {"filler": "x" * 5000}).read_bytes()


class Person:
    """Agrees or not, and remembers what was asked."""

    def __init__(self, answer: bool = True) -> None:
        self.answer = answer
        self.offers: list[Offer] = []

    def __call__(self, offer: Offer) -> bool:
        self.offers.append(offer)
        return self.answer


def know(*, file: str = "m-Q4_K_M.gguf", digest: str | None = None) -> None:
    expected = f'sha256 = {{ "{file}" = "{digest}" }}\nsha256_from = "a list of 2026"\n' if digest else ""
    write_user_catalog(
        f'[[model]]\nname = "{NAME}"\naliases = ["mine"]\narchitecture = "llama"\n'
        f'[model.hub]\nrepo = "owner/repo"\nfile = "{file}"\n{expected}'
    )


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_the_first_pull_asks_and_pins_and_the_next_needs_no_network(hub: Hub, store: Store, model: bytes) -> None:
    know()
    hub.publish({"m-Q4_K_M.gguf": model, "other.gguf": b"x"}, license="mit")
    person = Person()
    path = pull("mine", store, agree=person)
    assert path.read_bytes() == model
    assert store.resolve("mine") == store.resolve(NAME) == path
    (offer,) = person.offers
    assert offer == Offer(
        NAME, len(model), "mit", "hf:owner/repo:m-Q4_K_M.gguf", "new", COMMITS[0], (("m-Q4_K_M.gguf", sha(model)),)
    )
    pin = Pins(store.root).get(NAME)
    assert pin is not None
    assert (pin.source, pin.revision, dict(pin.sha256)) == (offer.source, COMMITS[0], {"m-Q4_K_M.gguf": sha(model)})
    entry = store.get(NAME)
    assert entry is not None
    assert entry.source["license"] == "mit"
    num_requests = len(hub.server.requests)
    assert pull(NAME, store, agree=person) == path
    assert (len(person.offers), len(hub.server.requests)) == (1, num_requests)


def test_a_branch_that_moves_changes_nothing_for_a_pinned_name(hub: Hub, store: Store, model: bytes) -> None:
    know()
    hub.publish({"m-Q4_K_M.gguf": model})
    pull(NAME, store)
    store.remove(NAME)
    hub.publish({"m-Q4_K_M.gguf": model + b"2"}, commit=COMMITS[1])
    person = Person()
    assert pull(NAME, store, agree=person).read_bytes() == model
    assert [offer.pin for offer in person.offers] == ["lock"]
    assert pull(NAME, store, agree=person, repin=True).read_bytes() == model + b"2"
    assert [offer.pin for offer in person.offers] == ["lock", "new"]
    pin = Pins(store.root).get(NAME)
    assert pin is not None
    assert pin.revision == COMMITS[1]


def test_another_file_under_a_pinned_revision_is_refused(hub: Hub, store: Store, model: bytes) -> None:
    know()
    hub.publish({"m-Q4_K_M.gguf": model})
    pull(NAME, store)
    store.remove(NAME)
    hub.publish({"m-Q4_K_M.gguf": model + b"2"})
    with pytest.raises(DownloadError, match=r"was pinned on .* nothing was fetched.*kamado pull --repin mine:1b"):
        pull(NAME, store)
    hub.server.replies.clear()
    hub.server.replies[f"/api/models/owner/repo/revision/{COMMITS[0]}"] = Reply(
        b"{}", 404, {"X-Error-Code": "RevisionNotFound"}
    )
    with pytest.raises(ModelNotFoundError, match=r"has no revision .*pinned on .*kamado pull --repin mine:1b"):
        pull(NAME, store)
    assert store.list() == []


def test_a_hub_that_answers_with_another_commit_is_refused(hub: Hub, store: Store, model: bytes) -> None:
    know()
    hub.publish({"m-Q4_K_M.gguf": model})
    pull(NAME, store)
    store.remove(NAME)
    hub.publish({"m-Q4_K_M.gguf": model}, commit=COMMITS[1])
    lie = hub.server.replies["/api/models/owner/repo"]
    hub.server.replies[f"/api/models/owner/repo/revision/{COMMITS[0]}"] = lie
    with pytest.raises(DownloadError, match=f"revision {COMMITS[0]} was pinned on .* answered with {COMMITS[1]}"):
        pull(NAME, store)


def test_digests_that_others_state_are_held_against_the_hub(hub: Hub, store: Store, model: bytes) -> None:
    know(digest=sha(model))
    hub.publish({"m-Q4_K_M.gguf": model + b"2"})
    with pytest.raises(DownloadError, match=r"a list of 2026 states .*nothing was fetched.*--repin mine:1b"):
        pull(NAME, store)
    assert Pins(store.root).read() == {}
    person = Person()
    pull(NAME, store, agree=person, repin=True)
    assert "a list of 2026 states" in person.offers[0].warning
    assert person.offers[0].expected_from == ""
    hub.publish({"m-Q4_K_M.gguf": model})
    pull(NAME, store, agree=person, repin=True)
    assert (person.offers[1].warning, person.offers[1].expected_from) == ("", "a list of 2026")


def test_what_is_declined_is_neither_fetched_nor_pinned(hub: Hub, store: Store, model: bytes) -> None:
    know()
    hub.publish({"m-Q4_K_M.gguf": model})
    for name in (NAME, "hf:owner/repo"):
        with pytest.raises(DownloadError, match=f"{name} was not fetched: it was declined"):
            pull(name, store, agree=Person(False))
    assert not any("resolve" in path for _, path, _ in hub.server.requests)
    assert Pins(store.root).read() == {}


def test_an_interrupted_first_pull_goes_on_with_what_was_agreed_to(hub: Hub, store: Store, model: bytes) -> None:
    know()
    hub.publish({"m-Q4_K_M.gguf": model})
    hub.reply("m-Q4_K_M.gguf").breaks = [1000] + [0] * 20
    with pytest.raises(DownloadError, match="1000 of"):
        pull(NAME, store)
    hub.reply("m-Q4_K_M.gguf").breaks = []
    moved = {"m-Q4_K_M.gguf": model + b"2"}
    hub.publish(moved, commit=COMMITS[1])
    person = Person()
    assert pull(NAME, store, agree=person).read_bytes() == model
    assert [offer.pin for offer in person.offers] == ["lock"]
    assert hub.server.ranges_of(f"/owner/repo/resolve/{COMMITS[0]}/m-Q4_K_M.gguf")[-1] == "bytes=1000-"


def test_a_catalog_that_names_another_place_asks_again(hub: Hub, store: Store, model: bytes) -> None:
    know()
    hub.publish({"m-Q4_K_M.gguf": model, "m-Q8_0.gguf": model + b"8"})
    pull(NAME, store)
    know(file="m-Q8_0.gguf")
    person = Person()
    assert pull(NAME, store, agree=person).read_bytes() == model + b"8"
    assert [offer.pin for offer in person.offers] == ["new"]


def test_weights_without_a_digest_are_not_pinned(hub: Hub, store: Store, model: bytes) -> None:
    know()
    hub.publish({"m-Q4_K_M.gguf": model})
    info = hub.server.replies["/api/models/owner/repo"]
    info.body = info.body.replace(b'"lfs"', b'"none"')
    with pytest.raises(DownloadError, match=r"states no sha256 of m-Q4_K_M\.gguf"):
        pull(NAME, store)


def test_options_that_do_not_fit(hub: Hub, store: Store) -> None:
    know()
    for name, options, message in (
        ("hf:owner/repo", {"repin": True}, "has no pin"),
        ("smollm2:135m", {"repin": True}, "pinned by the catalog itself"),
        (NAME, {"quant": "Q8_0"}, "hf:OWNER/REPO takes them"),
    ):
        with pytest.raises(UsageError, match=message):
            pull(name, store, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "text",
    [
        "no json", "[]", '{"pins": 3}', '{"pins": {"m": {}}}', '{"pins": {"a b": {}}}', "[" * 5000,
        json.dumps({"pins": {"m": {"source": "hf:o/r", "revision": "main", "sha256": {}, "date": ""}}}),
        json.dumps({"pins": {"m": {"source": "hf:o/r", "revision": "1" * 40, "sha256": {"a": "x"}, "date": ""}}}),
    ],
)  # fmt: skip
def test_a_damaged_lock_file_is_one_sentence(hub: Hub, store: Store, text: str) -> None:
    know()
    store.root.mkdir()
    (store.root / "pins.json").write_text(text)
    with pytest.raises(CorruptFileError, match=r"pins\.json: damaged: .*; mend it, or remove it") as caught:
        pull(NAME, store)
    assert "\n" not in str(caught.value)


def test_pins_are_kept_beside_each_other(store: Store) -> None:
    store.root.mkdir()
    pins = Pins(store.root)
    first = pins.put("a", "hf:o/a", "1" * 40, {"m.gguf": "2" * 64})
    second = pins.put("b", "hf:o/b", "3" * 40, {})
    assert pins.read() == {"a": first, "b": second}
