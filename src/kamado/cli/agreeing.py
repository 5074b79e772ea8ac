"""Asking a person before bytes are fetched or trusted for the first time."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

import click

from ..errors import UsageError
from ..plan.budget import format_size
from .terminal import is_tty, note, one_line

if TYPE_CHECKING:
    from ..library.pins import Offer

_MOST_FILES = 4  # whose digests are shown; pins.json has all


def can_ask() -> bool:
    """Whether a person is there to read a question and type an answer."""
    return sys.stdin is not None and is_tty(sys.stdin) and is_tty(sys.stderr)


def agree_to_pull(yes: bool) -> Callable[[Offer], bool]:
    """For `kamado pull`: what is pinned is fetched; what would be pinned now is shown, and takes a yes or --yes."""

    def agree(offer: Offer) -> bool:
        if offer.pin in ("catalog", "lock"):
            return True
        _show(offer)
        if yes or offer.pin == "none":
            return True
        if not can_ask():
            raise UsageError(
                f"{offer.name} is not pinned yet: nobody here has checked the digests above; if you take them, say so "
                f"with: kamado pull --yes {offer.name}"
            )
        return _ask(f"fetch {_cost(offer)} and pin it?")

    return agree


def agree_to_missing(offer: Offer) -> bool:
    """For a model that a command needs and that is not here: always asked. The caller has looked at `can_ask`."""
    if offer.pin == "new":
        _show(offer)
    return _ask(f"{one_line(offer.name)} is not here: fetch {_cost(offer)}?")


def _cost(offer: Offer) -> str:
    return f"{format_size(offer.nbytes)} ({one_line(offer.license) or 'licence not stated'})"


def _ask(question: str) -> bool:
    return click.confirm(question, default=True, err=True)


def _show(offer: Offer) -> None:
    """Revision and digests on stderr, for the one who is to agree to them."""
    state = {"new": "is not pinned yet; the hub offers", "none": "follows its repository; the hub offers"}[offer.pin]
    note(f"{one_line(offer.name)} {state}:")
    rows = [("from", offer.source), ("revision", offer.revision), ("size", _cost(offer))]
    large = [(path, digest) for path, digest in offer.files if digest]
    rows += [("sha256", f"{digest}  {path}") for path, digest in large[:_MOST_FILES]]
    if len(large) > _MOST_FILES:
        rows.append(("", f"and {len(large) - _MOST_FILES} more"))
    if offer.expected_from:
        rows.append(("", f"the digests that {offer.expected_from} states too"))
    if offer.warning:
        rows.append(("warning", offer.warning))
    for label, text in rows:
        note(f"  {label:8}  {one_line(text)}".rstrip())
