"""`kamado show`: what a model file holds, from its header alone."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from ..errors import KamadoError, UsageError
from ..plan.budget import format_size
from . import loading
from .options import model_argument, unknown_option
from .terminal import echo, echo_json, echo_table, one_line, styled

if TYPE_CHECKING:
    from ..files import Checkpoint
    from ..program import Program

_FEW_IDS = 8  # of a list of tokens in the plain listing
_LONGEST_VALUE = 100  # characters of one metadata value in the plain listing


@click.command("show")
@model_argument
@click.option("--program", "what", flag_value="program", help="Print the forward pass with its shapes.")
@click.option("--template", "what", flag_value="template", help="Print the chat template.")
@click.option("--tensors", "what", flag_value="tensors", help="List every tensor.")
@click.option(
    "--all", "show_all", is_flag=True, help="With --program: every layer, also those that differ only in their number."
)
@unknown_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(model: str, what: str | None, show_all: bool, allow_unknown: tuple[str, ...], as_json: bool) -> None:
    """Show what a model file holds; no weight is read."""
    if show_all and what != "program":
        raise UsageError("--all goes with --program")
    checkpoint = loading.open_model_file(model)
    if what == "program":
        _show_program(checkpoint, show_all, allow_unknown, as_json)
    elif what == "template":
        _show_template(checkpoint, as_json)
    elif what == "tensors":
        _show_tensors(checkpoint, as_json)
    else:
        _show_summary(checkpoint, allow_unknown, as_json)


def _show_program(checkpoint: Checkpoint, show_all: bool, allow_unknown: Collection[str], as_json: bool) -> None:
    from ..measure import program_of
    from ..program import format_program

    program = program_of(checkpoint, allow_unknown)
    loading.tell_unknown(allow_unknown, program.overridden)
    text = format_program(program, fold=not show_all)
    if as_json:
        echo_json(
            {
                "architecture": program.architecture,
                "ops": len(program.ops),
                "overridden": program.overridden,
                "program": text.splitlines(),
            }
        )
    else:
        echo(text)


def _show_template(checkpoint: Checkpoint, as_json: bool) -> None:
    if as_json:
        echo_json({"default": checkpoint.chat_template, **checkpoint.chat_templates})
        return
    if checkpoint.chat_template is None:
        raise UsageError(f"{checkpoint.path} has no chat template")
    echo(checkpoint.chat_template)


def _show_tensors(checkpoint: Checkpoint, as_json: bool) -> None:
    tensors = list(checkpoint.tensors.values())
    if as_json:
        fields = ("name", "shape", "nbytes", "offset")
        rows = ({f: getattr(t, f) for f in fields} | {"layout": t.layout.name, "file": str(t.file)} for t in tensors)
        echo_json(list(rows))
        return
    table = [(t.name, "×".join(map(str, t.shape)), t.layout.name, format_size(t.nbytes)) for t in tensors]
    echo_table(("name", "shape", "layout", "size"), table, right=(3,))


def _show_summary(checkpoint: Checkpoint, allow_unknown: Collection[str], as_json: bool) -> None:
    layouts: dict[str, dict[str, int]] = defaultdict(lambda: {"tensors": 0, "values": 0, "bytes": 0})
    for tensor in checkpoint.tensors.values():
        entry = layouts[tensor.layout.name]
        entry["tensors"] += 1
        entry["values"] += tensor.num_values
        entry["bytes"] += tensor.nbytes
    parameters = sum(entry["values"] for entry in layouts.values())
    program, why = _program_of(checkpoint, allow_unknown)
    overridden = () if program is None else program.overridden
    if program is not None:
        loading.tell_unknown(allow_unknown, overridden)
    runs = None if program is None else _shape(program)
    cache = {} if program is None else _cache_formulas(program)
    if as_json:
        echo_json(
            {
                "name": checkpoint.name,
                "path": str(checkpoint.path),
                "files": [str(path) for path in checkpoint.files],
                "format": checkpoint.format,
                "architecture": checkpoint.architecture,
                "supported": runs is not None,
                "reason": why,
                "overridden": overridden,
                "parameters": parameters,
                "weight_bytes": checkpoint.weight_bytes,
                "layouts": layouts,
                "shape": runs,
                "kv_cache": cache,
                "has_tokenizer": checkpoint.tokenizer is not None,
                "has_chat_template": checkpoint.chat_template is not None,
                "sampling": dict(checkpoint.sampling),
                "suppressed_tokens": list(checkpoint.suppressed),
                "metadata": {key: _plain(value) for key, value in checkpoint.metadata.items()},
            }
        )
        return
    bits = 8 * checkpoint.weight_bytes / max(parameters, 1)
    facts: dict[str, object] = {
        "name": checkpoint.name or "-",
        "path": checkpoint.path,
        "format": checkpoint.format,
        "architecture": checkpoint.architecture,
        "runs here": "yes" if runs is not None else f"no: {why}",
        **({"not applied": f"{', '.join(overridden)} (--allow-unknown)"} if overridden else {}),
        "parameters": f"{parameters:,}",
        "weights": f"{format_size(checkpoint.weight_bytes)} in {len(checkpoint.tensors)} tensors, {bits:.2f} bits each",
        **{key.replace("_", " "): f"{value:,}" for key, value in (runs or {}).items()},
        "tokenizer": "none" if checkpoint.tokenizer is None else checkpoint.tokenizer.kind,
        "chat template": "none" if checkpoint.chat_template is None else f"{len(checkpoint.chat_template)} characters",
        **{f"KV cache {preset}": formula for preset, formula in cache.items()},
        "sampling": ", ".join(f"{k} {v:g}" for k, v in checkpoint.sampling.items()) or "none recommended",
        **({"never sampled": _some(checkpoint.suppressed)} if checkpoint.suppressed else {}),
    }
    width = max(map(len, facts))
    for key, value in facts.items():
        echo(f"{styled(key.ljust(width), bold=True)}  {one_line(str(value))}")
    echo()
    rows = [(name, e["tensors"], f"{e['values']:,}", format_size(e["bytes"])) for name, e in sorted(layouts.items())]
    echo_table(("layout", "tensors", "values", "size"), rows, right=(1, 2, 3))
    echo()
    echo_table(("metadata", "value"), [(key, _short(value)) for key, value in sorted(checkpoint.metadata.items())])


def _program_of(checkpoint: Checkpoint, allow_unknown: Collection[str]) -> tuple[Program | None, str | None]:
    """The forward pass, or None and the reason why this version cannot run the file."""
    from ..measure import program_of

    try:
        return program_of(checkpoint, allow_unknown), None
    except KamadoError as error:
        return None, str(error)


def _shape(program: Program) -> dict[str, int]:
    names = ("num_layers", "hidden", "vocab_size", "context_length", "num_experts", "top_k")
    return {name: value for name in names if (value := getattr(program, name))}


def _cache_formulas(program: Program) -> dict[str, str]:
    """What a sequence takes in the KV cache, by preset."""
    from ..plan.kv_pages import kv_needs, num_kv_layers
    from ..plan.kv_presets import parse_kv

    num_layers = num_kv_layers(program)
    plans = {preset: parse_kv(preset, num_layers) for preset in ("exact", "balanced", "small")}
    return {preset: kv_needs(program, plan).formula() for preset, plan in plans.items()}


def _plain(value: Any) -> Any:
    """Metadata as JSON takes it; a long array (a vocabulary) becomes its length."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (str, bool, int, float)) or value is None:
        return value
    if hasattr(value, "__len__") and len(value) > 64:
        return {"values": len(value)}
    if hasattr(value, "tolist"):
        return value.tolist()
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else str(value)


def _some(ids: Sequence[int]) -> str:
    """How many tokens, and the first of them."""
    more = ", …" if len(ids) > _FEW_IDS else ""
    return f"{len(ids):,} tokens: {', '.join(map(str, ids[:_FEW_IDS]))}{more}"


def _short(value: Any) -> str:
    plain = _plain(value)
    if isinstance(plain, dict) and list(plain) == ["values"]:
        return f"[{plain['values']:,} values]"
    text = " ".join(str(plain).split())
    return text if len(text) <= _LONGEST_VALUE else f"{text[: _LONGEST_VALUE - 1]}…"
