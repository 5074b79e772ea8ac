"""`kamado sessions`: the conversations that `kamado chat --session` keeps."""

from __future__ import annotations

import click
from click.shell_completion import CompletionItem

from .terminal import echo, echo_json, echo_table, note


def complete_session(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Names of sessions; never an error while a line is being typed."""
    try:
        from .. import ConversationStore

        names = [conversation.name for conversation in ConversationStore().list()]
    except Exception:
        names = []
    return [CompletionItem(name) for name in names if name.startswith(incomplete)]


@click.group("sessions", invoke_without_command=True)
@click.pass_context
def command(ctx: click.Context) -> None:
    """List or remove the conversations that chat --session keeps."""
    if ctx.invoked_subcommand is None:
        ctx.invoke(list_command, as_json=False)


@command.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_command(as_json: bool) -> None:
    """List the sessions, the last used first.

    The size is what the model computed for a session and the prefix store still holds.
    """
    from .. import ConversationStore
    from ..plan.budget import format_size

    store = ConversationStore()
    conversations = store.list()
    sizes = store.computed_bytes() if conversations else {}
    if as_json:
        echo_json(
            [
                {
                    "name": c.name,
                    "model": c.model,
                    "messages": len(c.messages),
                    "created": c.created,
                    "updated": c.updated,
                    "prefix_bytes": sizes.get(c.label, 0),
                }
                for c in conversations
            ]
        )
        return
    if not conversations:
        note("no session was kept yet: begin one with 'kamado chat MODEL --session NAME'")
        return
    rows = [
        (c.name, c.model, len(c.messages), format_size(sizes.get(c.label, 0)), c.updated.replace("T", " ").rstrip("Z"))
        for c in conversations
    ]
    echo_table(("name", "model", "messages", "size", "last used (UTC)"), rows, right=(2, 3))


@command.command("rm")
@click.argument("names", metavar="NAME...", nargs=-1, required=True, shell_complete=complete_session)
def rm_command(names: tuple[str, ...]) -> None:
    """Remove sessions: their messages, and what was computed for them.

    Every name is looked up before the first is removed.
    """
    from .. import ConversationStore
    from ..errors import ModelNotFoundError

    conversations = ConversationStore()
    known = [conversation.name for conversation in conversations.list()]
    for name in names:
        if name not in known:
            raise ModelNotFoundError(f"no session {name!r}; known sessions: {', '.join(known) or 'there is none'}")
    for name in dict.fromkeys(names):
        conversations.remove(name)
        echo(f"removed {name}")
