"""Operations of some families against transformers' own modules.

Routers with groups, biases and the guards of their sums: both get the logits as they are (the module's weight is the
identity), so the numbers compared are the choice's alone. Then clamped gates, and temperatures by position.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from native_programs import TensorFile, routing
from native_runner import native_logits, needs_native
from numpy_executor import NumpyExecutor

from kamado import program as p

torch = pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("transformers", reason="transformers is not installed")

pytestmark = pytest.mark.parity

EXPERTS, TOP_K, ROWS = 32, 6, 200


def results(program: p.Program, tokens: list[int]) -> tuple[Any, Any]:
    """The executor's, and the oracle's."""
    return native_logits(program, tokens), NumpyExecutor(program).forward(tokens)


def module(family: str, name: str) -> Any:
    return getattr(importlib.import_module(f"transformers.models.{family}.modeling_{family}"), name)


def reference(router: Any, bias_name: str | None, logits: Any, bias: Any) -> np.ndarray:
    """float32[rows, experts]: weights where the module puts them."""
    router = router.eval()
    for holder in (router, getattr(router, "gate", None)):
        if isinstance(getattr(holder, "weight", None), torch.Tensor):
            holder.weight.data = torch.eye(EXPERTS)
    arguments = [torch.from_numpy(logits)]
    if bias_name == "argument":
        arguments.append(torch.from_numpy(bias))
    elif bias_name is not None:
        owner, _, last = bias_name.rpartition(".")
        held = getattr(router.get_submodule(owner), last)
        held.data = torch.from_numpy(bias).reshape(held.shape)
    with torch.no_grad():
        _, weights, picked = router(*arguments)
    out = np.zeros(logits.shape, np.float32)
    np.put_along_axis(out, picked.numpy(), weights.numpy(), axis=-1)
    return out


def glm(num_groups: int, top_groups: int) -> tuple[Callable[[], Any], str, dict[str, Any]]:
    config = SimpleNamespace(
        num_experts_per_tok=TOP_K, num_local_experts=EXPERTS, hidden_size=EXPERTS, routed_scaling_factor=1.5,
        n_group=num_groups, topk_group=top_groups, norm_topk_prob=True,
    )  # fmt: skip
    route = {"score": "sigmoid", "norm_eps": 1e-20, "scale": 1.5, "num_groups": num_groups, "top_groups": top_groups}
    return lambda: module("glm4_moe", "Glm4MoeTopkRouter")(config), "e_score_correction_bias", route


def afmoe() -> tuple[Callable[[], Any], str, dict[str, Any]]:
    config = SimpleNamespace(num_experts_per_tok=TOP_K, num_experts=EXPERTS, hidden_size=EXPERTS, route_scale=2.826)

    def make() -> Any:
        inner = module("afmoe", "AfmoeTokenChoiceRouter")(config)

        class Router(torch.nn.Module):  # wants rows in batches
            gate = inner.gate

            def forward(self, rows: Any, bias: Any) -> Any:
                return inner(rows[None], bias)

        return Router()

    return make, "argument", {"score": "sigmoid", "norm_eps": 1e-20, "scale": 2.826}


def minimax() -> tuple[Callable[[], Any], str, dict[str, Any]]:
    config = SimpleNamespace(num_experts_per_tok=TOP_K, num_local_experts=EXPERTS, hidden_size=EXPERTS)
    return lambda: module("minimax_m2", "MiniMaxM2TopKRouter")(config), "argument", {"score": "sigmoid"}


def ernie() -> tuple[Callable[[], Any], str, dict[str, Any]]:
    config = SimpleNamespace(
        moe_k=TOP_K, num_experts_per_tok=TOP_K, moe_num_experts=EXPERTS, num_experts=EXPERTS, hidden_size=EXPERTS,
        moe_norm_min=1e-12,
    )  # fmt: skip
    make = lambda: module("ernie4_5_moe", "Ernie4_5_MoeTopKRouter")(config)  # noqa: E731
    return make, "moe_statics.e_score_correction_bias", {"score": "softmax", "norm_min": 1e-12}


def lfm2() -> tuple[Callable[[], Any], str, dict[str, Any]]:
    config = SimpleNamespace(
        num_experts_per_tok=TOP_K, num_experts=EXPERTS, hidden_size=EXPERTS, norm_topk_prob=True,
        routed_scaling_factor=1.0, use_expert_bias=True,
    )  # fmt: skip
    return lambda: module("lfm2_moe", "Lfm2MoeTopKRouter")(config), "argument", {"score": "sigmoid", "norm_eps": 1e-6}


CASES = {
    "glm4_moe": glm(1, 1),
    "glm4_moe, 2 of 4 groups": glm(4, 2),
    "glm4_moe, 3 of 8 groups": glm(8, 3),
    "glm4_moe, 4 of 16 groups of two": glm(16, 4),
    "afmoe": afmoe(),
    "minimax_m2": minimax(),
    "ernie4_5_moe": ernie(),
    "lfm2_moe": lfm2(),
}
# What is added to each row's logits: down to a sum of scores below every guard, whose weights must be the family's.
# A softmax does not see that: there the logits are spread, so that the bias picks experts of almost no probability.
SHIFTS = {"usual": 0.0, "small": -12.0, "tiny": -33.0, "below 1e-20": -50.0}


@needs_native
@pytest.mark.parametrize("shift", SHIFTS)
@pytest.mark.parametrize("case", CASES)
def test_choice_and_weights_are_the_family_s(case: str, shift: str, tmp_path: Path) -> None:
    make, bias_name, route = CASES[case]
    random = np.random.default_rng(len(case))
    logits = 2 * random.standard_normal((ROWS, EXPERTS))
    logits = logits * (1 - SHIFTS[shift] / 16) if route["score"] == "softmax" else logits + SHIFTS[shift]
    logits = logits.astype(np.float32)
    # Spread over the scores' own size, so that it decides some choices and leaves others.
    bias = (0.3 * random.standard_normal(EXPERTS)).astype(np.float32)
    wanted = reference(make(), bias_name, logits, bias)
    assert np.isfinite(wanted).all()
    assert ((wanted > 0).sum(-1) == TOP_K).all()
    program = routing(tmp_path / "weights.bin", logits, top_k=TOP_K, bias=bias, **route)
    tokens = list(range(ROWS))
    for got in results(program, tokens):
        # Each of our scores and the reference's has an error of a few half-units in the last place.
        np.testing.assert_allclose(got[:, :EXPERTS], wanted, rtol=4e-6, atol=0)


@needs_native
@pytest.mark.parametrize("limit", [0.0, 7.0, 2.0])
def test_a_limit_comes_after_the_activation_as_in_step(limit: float, tmp_path: Path) -> None:
    hidden, inner = 24, 40
    config = SimpleNamespace(
        hidden_size=hidden, intermediate_size=inner, mlp_bias=False, hidden_act="silu", swiglu_limits_shared=[limit],
    )  # fmt: skip
    mlp = module("step3p7", "Step3p7MLP")(config, 0)
    random = np.random.default_rng(3)
    file, x, a, b = (
        TensorFile(tmp_path / "weights.bin"),
        p.Buffer("x", hidden),
        p.Buffer("a", inner),
        p.Buffer("b", inner),
    )
    refs, values = {}, {}
    for name, shape in (("gate", (inner, hidden)), ("up", (inner, hidden)), ("down", (hidden, inner))):
        values[name] = random.standard_normal(shape).astype(np.float32)
        refs[name] = file.add(name, values[name])
        getattr(mlp, f"{name}_proj").weight.data = torch.from_numpy(values[name])
    rows = random.standard_normal((ROWS, hidden)).astype(np.float32)
    with torch.no_grad():
        wanted = mlp(torch.from_numpy(rows)).numpy()
    head = np.zeros((ROWS, hidden))
    head[:hidden] = np.eye(hidden)
    ops: list[p.Op] = [
        p.Embed(x, file.add("table", rows)),
        p.Linear((a, b), x, (refs["gate"], refs["up"])),
        p.Gate(a, a, b, "silu", limit=limit or None),
        p.Linear((x,), a, (refs["down"],)),
        p.Head(x, file.add("head", head)),
    ]
    product = rows @ values["gate"].T
    assert limit == 0 or (product / (1 + np.exp(-product)) > limit).any()
    for got in results(p.Program("step", ops, 0, hidden, ROWS, 256), list(range(ROWS))):
        np.testing.assert_allclose(got[:, :hidden], wanted, atol=2e-5 * np.abs(wanted).max())


@needs_native
def test_temperatures_are_those_of_ministral_and_llama_4(tmp_path: Path) -> None:
    """One buffer with 1 in each row, tempered: the factors themselves."""
    positions = torch.arange(ROWS)
    ministral = module("ministral3", "get_llama_4_attn_scale")(positions[None], 0.1, 16).reshape(-1)
    llama = torch.log1p(torch.floor((positions.float() + 1.0) / 16)) * 0.25 + 1.0  # as Llama4TextAttention has it
    x = p.Buffer("x", 1)
    for temper, wanted in ((p.Temper(x, x, 0.1, 16), ministral), (p.Temper(x, x, 0.25, 16, offset=1), llama)):
        file = TensorFile(tmp_path / "weights.bin")
        ops: list[p.Op] = [
            p.Embed(x, file.add("table", np.ones((2, 1)))),
            temper,
            p.Head(x, file.add("head", np.ones((2, 1)))),
        ]
        for got in results(p.Program("temper", ops, 0, 1, 2, 256), [0] * ROWS):
            np.testing.assert_allclose(got[:, 0], wanted.numpy(), rtol=2e-7)
