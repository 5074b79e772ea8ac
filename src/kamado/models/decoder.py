"""The kit of which families are made: attention, MLP, experts and blocks as descriptions, and the operations they mean.

A family reads its settings into one `Block` a layer and hands them to `model`; it says only how it differs from the
defaults here. What it needs beyond them becomes a field here, if other families have it too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from .. import program as op
from ..program import Activation, Buffer, Op, Pooling, Program
from .config import MAX_VOCAB, Config
from .pooling import read_pooling
from .recurrent import DeltaNet, ShortConv, delta_net, short_conv
from .rope import RopeTable, context_length
from .stream import Stream
from .weights import Weights


@dataclass(frozen=True, slots=True)
class Attention:
    """Attention of one layer. q, k and v are one matrix, `attn_qkv`, in files that have it."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    scale: float
    rope: RopeTable | None  # None: no positions
    window: int | None = None
    qk_norm: Literal["head", "row"] | None = None  # over each head, or the whole of q and of k
    bias: bool | None = False  # of q, k and v; None: if it is in the file
    out_bias: bool | None = False
    causal: bool = True
    norm_after_rope: bool = False  # of q and k, when there is one
    temper: tuple[float, int, int] | None = None  # beta, length and offset of program.Temper, for q
    # What each sigmoid of `attn_gate` multiplies in what comes out; "query": a value, and its rows lie behind each
    # head's in `attn_q`.
    gate: Literal["value", "head", "query"] | None = None
    v_norm: bool = False  # over each head, without weights
    v_of_k: bool = False  # v is k as it comes from its matrix
    keys_of: int | None = None  # layer on whose keys and values it attends: it has none of its own
    sinks: bool = False  # `attn_sinks`, a logit a head; see program.Attend


@dataclass(frozen=True, slots=True)
class Mlp:
    """down(activation(gate(x)) · up(x)), or down(activation(up(x))) when not `gated`."""

    width: int
    activation: Activation
    bias: bool | None = False  # None: if in the file
    gated: bool = True
    fused: bool = False  # gate and up are one matrix, called `ffn_up`, the rows of the gate first
    limit: float | None = None  # of program.Gate


@dataclass(frozen=True, slots=True)
class Moe:
    """Experts and their router (program.Route says what the fields mean), and an MLP for every row (`shared`)."""

    num_experts: int
    top_k: int
    width: int  # of one expert
    activation: Activation
    score: Literal["softmax", "sigmoid", "topk_softmax"] = "softmax"
    normalize: bool = True
    scale: float = 1.0
    choice_bias: bool | None = False  # `exp_probs_b`, added to the scores for the choice alone; None: if in the file
    num_groups: int = 1
    top_groups: int = 1
    shared: int = 0  # width of the shared expert, 0 when there is none
    shared_bias: bool = False
    shared_fused: bool = False  # its gate and up are one matrix, called `ffn_up_shexp`
    shared_gate: bool = False  # what comes out of it is multiplied by a sigmoid a row, of `ffn_gate_inp_shexp`
    norm_eps: float = 0.0
    norm_min: float = 0.0
    expert_scale: str | None = None  # role of program.Route's, in the file's own words
    limit: float | None = None  # of program.Experts
    shared_limit: float | None = None
    alpha: float | None = None  # of program.Experts
    router_bias: bool = False
    biases: bool = False  # of gate, up and down


@dataclass(frozen=True, slots=True)
class Block:
    """x += mixer(norm(x)); x += ffn(norm(x)); with `post_norms` what is added is normed too."""

    mixer: Attention | ShortConv | DeltaNet
    ffn: Mlp | Moe
    post_norms: bool = False
    pre_norms: bool = True  # False: each part sees the stream as it is
    ffn_norm: str = "ffn_norm"  # role of the norm before the ffn


def attention(s: Stream, a: Attention, x: Buffer, i: int) -> Iterator[Op]:
    """h = attention(x) · output, by the weights of layer i on keys and values of its own"""
    wide, narrow = a.num_heads * a.head_dim, a.num_kv_heads * a.head_dim
    q, k, v, out = s.buffer("q", wide), s.buffer("k", narrow), s.buffer("v", narrow), s.buffer("attn", wide)
    gate = s.buffer("attn_gate", a.num_heads if a.gate == "head" else wide)
    if a.gate == "query":
        whole = s.w.matrix("attn_q", 2 * wide, x.width, i)
        halves = (whole.row_blocks(first, a.head_dim, 2 * a.head_dim, a.num_heads) for first in (0, a.head_dim))
        others = (s.w.matrix(role, narrow, x.width, i) for role in ("attn_k", "attn_v"))
        yield op.Linear((q, gate, k, v), x, (*halves, *others))
    else:
        fused = "attn_qkv" if s.w.is_fused("attn_qkv", i) else None
        parts = (("attn_q", q), ("attn_k", k), ("attn_v", v))[: 1 if a.keys_of is not None else 2 if a.v_of_k else 3]
        yield s.linear(parts, x, a.bias, i, fused)
        if a.gate:
            yield s.linear((("attn_gate", gate),), x, False, i)
    if a.v_norm and a.keys_of is None:
        yield op.Norm(v, k if a.v_of_k else v, None, None, s.eps, group=a.head_dim)
    for role, rows in (("attn_q_norm", q), ("attn_k_norm", k))[: 1 if a.keys_of is not None else 2]:
        norm = [s.normed(rows, rows, role, i, a.head_dim if a.qk_norm == "head" else None)] if a.qk_norm else []
        if not a.norm_after_rope:
            yield from norm
        if a.rope:
            yield op.Rope(rows, a.head_dim, a.rope.inv_freq, a.rope.interleaved, a.rope.attention_factor)
        if a.norm_after_rope:
            yield from norm
    if a.temper:
        yield op.Temper(q, q, *a.temper)
    sizes = a.num_kv_heads, a.head_dim, a.head_dim
    stores = a.keys_of is None
    if stores:
        s.kv_of_layer[i] = s.keep(op.Window(*sizes, a.window) if a.causal and a.window else op.Pages(*sizes))
    state = s.kv_of_layer[i if a.keys_of is None else a.keys_of]
    sinks = s.w.vector("attn_sinks", a.num_heads, i) if a.sinks else None
    own_k, own_v = (k, v) if stores else (None, None)
    yield op.Attend(
        out, q, own_k, own_v, state, a.num_heads, a.num_kv_heads, a.head_dim, a.head_dim, a.scale, a.window,
        causal=a.causal, stores=stores, sinks=sinks,
    )  # fmt: skip
    if a.gate:
        yield op.Gate(out, gate, out, "sigmoid", group=a.head_dim if a.gate == "head" else None)
    yield s.linear((("attn_output", s.h),), out, a.out_bias, i)


def mlp(s: Stream, m: Mlp, x: Buffer, out: Buffer, i: int, part: str = "") -> Iterator[Op]:
    """out = down(activation(gate(x)) · up(x)); `part` ends the roles of the matrices."""
    gate, up = s.buffer("gate", m.width), s.buffer("up", m.width)
    roles = ((f"ffn_gate{part}", gate), (f"ffn_up{part}", up)) if m.gated else ((f"ffn_up{part}", gate),)
    yield s.linear(roles, x, m.bias, i, f"ffn_up{part}" if m.fused else None)
    yield op.Gate(gate, gate, up if m.gated else None, m.activation, m.limit)
    yield s.linear(((f"ffn_down{part}", out),), gate, m.bias, i)


def moe(s: Stream, m: Moe, x: Buffer, i: int, routed: Buffer | None = None) -> Iterator[Op]:
    """moe = Σ over the experts that the router picks of weight · expert(x), + shared expert(x)

    `routed`: what the router sees, where that is not x.
    """
    router = s.buffer("router", m.num_experts)
    yield s.linear((("ffn_gate_inp", router),), routed or x, m.router_bias, i)
    bias = s.w.bias("exp_probs_b", m.num_experts, i, m.choice_bias)
    groups, guards = (m.num_groups, m.top_groups), (m.norm_eps, m.norm_min)
    by = s.w.vector(m.expert_scale, m.num_experts, i) if m.expert_scale else None
    yield op.Route(router, m.num_experts, m.top_k, m.score, m.normalize, bias, *groups, m.scale, *guards, by)
    # The input must survive until the last expert.
    out = s.buffer("moe")
    matrices = s.w.experts(i, m.num_experts, m.width, s.hidden)
    biases = s.w.expert_biases(i, m.num_experts, m.width, s.hidden) if m.biases else ()
    yield op.Experts(out, x, router, *matrices, m.activation, m.limit, m.alpha, *biases)
    if m.shared:
        shared = s.buffer("shared")
        every = Mlp(m.shared, m.activation, m.shared_bias, fused=m.shared_fused, limit=m.shared_limit)
        yield from mlp(s, every, x, shared, i, "_shexp")
        if m.shared_gate:
            gate = s.buffer("shared_gate", 1)
            yield op.Linear((gate,), x, (s.w.row("ffn_gate_inp_shexp", s.hidden, i),))
            yield op.Gate(shared, gate, shared, "sigmoid", group=s.hidden)
        yield op.Add(out, out, shared)


def mixed(s: Stream, m: Attention | ShortConv | DeltaNet, x: Buffer, i: int) -> Iterator[Op]:
    """h = mixer(x), by the weights of layer i: the part that looks at other rows"""
    match m:
        case Attention():
            yield from attention(s, m, x, i)
        case ShortConv():
            yield from short_conv(s, m, x, i)
        case DeltaNet():
            yield from delta_net(s, m, x, i)


def attended(s: Stream, b: Block, i: int) -> Iterator[Op]:
    """x += mixer(norm(x)), by the weights of layer i"""
    x = s.h if b.pre_norms else s.x
    if b.pre_norms:
        yield s.normed(s.h, s.x, "attn_norm", i)
    yield from mixed(s, b.mixer, x, i)
    if b.post_norms:
        yield s.normed(s.h, s.h, "post_attention_norm", i)
    yield from s.added(s.h)


def fed(s: Stream, b: Block, i: int) -> Iterator[Op]:
    """x += ffn(norm(x)), by the weights of layer i"""
    x = s.h if b.pre_norms else s.x
    if b.pre_norms:
        yield s.normed(s.h, s.x, b.ffn_norm, i)
    yield from moe(s, b.ffn, x, i) if isinstance(b.ffn, Moe) else mlp(s, b.ffn, x, s.h, i)
    out = s.buffer("moe") if isinstance(b.ffn, Moe) else s.h
    if b.post_norms:
        yield s.normed(out, out, "post_ffw_norm", i)
    yield from s.added(out)


def block(s: Stream, b: Block, i: int) -> Iterator[Op]:
    """x += mixer(norm(x)); x += ffn(norm(x)), by the weights of layer i"""
    yield from attended(s, b, i)
    yield from fed(s, b, i)


Layer = Callable[[Stream, Block, int], Iterator[Op]]


def model(
    c: Config,
    w: Weights,
    blocks: Sequence[Block],
    *,
    layer: Layer = block,
    embedding_scale: float = 1.0,
    residual_scale: float = 1.0,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    norm_offset: float = 0.0,
    norm_offsets: Mapping[str, float] | None = None,
    head_bias: bool = False,
    last_norm: str = "output_norm",
    num_loops: int = 1,
    norm_between_loops: bool = False,
    ignored: str | None = None,
    notes: tuple[str, ...] = (),
) -> Program:
    """The whole pass from token to logits, or to a vector in a base model without an output matrix.

    `layer` makes the operations of a layer, where that is more than its block.
    `norm_offset` is added to the norms' weights (`norm_offsets`: by role, where they differ), `last_norm` is the role
    of that before the output, `ignored` matches tensors that the pass has no use for. With `num_loops` the layers run
    so often, on the same weights but keys and values of their own, and with `norm_between_loops` the last norm stands
    between them too.
    """
    eps = c.number("attention.layer_norm_rms_epsilon")
    hidden = c.integer("embedding_length")
    s = Stream(w, hidden, eps, "rms", norm_offset, norm_offsets or {}, residual_scale)
    context = context_length(c)
    vocab_size = None if c.is_gguf else c.integer("vocab_size", high=MAX_VOCAB)
    # What a wrapper of several senses says of its text model, or is by default, is what transformers goes by.
    own = None if c.is_gguf else c.flag("tie_word_embeddings", default=False)
    tied = own if own is None else c.whole.flag("tie_word_embeddings", default=own)
    pooling = read_pooling(c.whole)
    c.whole.refuse_unread()
    table = w.embedding(s.hidden, vocab_size)
    ops: list[Op] = [op.Embed(s.x, table, embedding_scale)]
    for loop in range(num_loops):
        if loop and norm_between_loops:
            ops.append(s.normed(s.x, s.x, last_norm))
        for i, b in enumerate(blocks):
            ops += layer(s, b, i)
    ops.append(s.normed(s.h, s.x, last_norm))
    if tied is False and w.is_base_model:
        # Vectors of decoders are those of their last row, unless the file says otherwise (E5-Mistral, GTE-Qwen2).
        pooling = pooling or "last"
        ops.append(op.Pool(s.h, pooling))
    else:
        # A tensor in the file wins over a tie, as in transformers 5. GGUF says nothing: no output tensor means tied.
        head = w.matrix("output", table.rows, table.cols) if tied is False or w.has("output") else table
        bias = w.bias("output", table.rows, None, head_bias)
        ops.append(op.Head(s.h, head, bias, logit_scale, softcap))
    return assemble(s, ops, blocks, table.rows, context, pooling=pooling, ignored=ignored, notes=notes)


def assemble(
    s: Stream,
    ops: Sequence[Op],
    blocks: Sequence[Block],
    vocab_size: int,
    context: int,
    *,
    pooling: Pooling | None,
    ignored: str | None,
    notes: tuple[str, ...] = (),
) -> Program:
    """The program of `ops`: the one place where families make it. Refuses files with tensors that nothing used."""
    s.w.finish(ignored)
    experts = next((b.ffn for b in blocks if isinstance(b.ffn, Moe)), None)
    num_experts, top_k = (experts.num_experts, experts.top_k) if experts else (0, 0)
    sizes = len(blocks), s.hidden, vocab_size, context, num_experts, top_k
    return Program(s.w.checkpoint.architecture, ops, *sizes, pooling, notes, states=tuple(s.states))
