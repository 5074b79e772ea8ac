"""How uneven a random router must be for a wanted share of picks to fall on the hottest half of its experts.

All embeddings of a skewed model share one direction c beside their random part, and each router row has a random
amount of c: that amount is an expert's popularity. The share it yields is found by routing simulated hidden states,
and the magnitude by bisection, since the share rises with it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..errors import UsageError

ROUTER_STD = 1.5  # of a router's logits over tokens: what trained routers show, roughly
SHARED = 0.7  # norm of the shared part of an embedding against its random part
_COMMON_SHARE = 0.25  # of what layers add, the part that is the same for all tokens (it acts like more popularity)
_NUM_TOKENS = 2048  # simulated; the share's standard error is below 0.004
_MAX_MAGNITUDE = 64.0


@dataclass(frozen=True, slots=True)
class RouterPlan:
    """One layer's router: rows are random + outer(popularity, c)."""

    popularity: npt.NDArray[np.float32]  # (experts,) logit that the shared direction gives each expert
    share: float  # estimated share of picks of the hottest half
    visible: float  # |c|'s part of a normalised hidden state in this layer, 0 for a flat model


def shared_norm(skew: float) -> float:
    """Norm of c's part of an embedding whose random part has norm 1."""
    return SHARED if skew > 0.5 else 0.0


def residual_growth(skew: float) -> float:
    """Variance that all layers together add to an embedding's. Little in a skewed model: what layers add is partly the
    same for all tokens, which the router would take for popularity that nobody planned."""
    return 0.05 if skew > 0.5 else 0.5


def plan_router(
    num_experts: int, top_k: int, skew: float, *, layer: int, num_layers: int, rng: np.random.Generator
) -> RouterPlan:
    """The router of one layer. `skew`: wanted share, 0.5 (flat) to less than 1.

    Raises UsageError when `top_k` of `num_experts` cannot be that uneven: at most half of the experts may be picked
    for a share of 1.
    """
    most = min(1.0, (num_experts // 2) / top_k)
    if not 0.5 <= skew < 1 or skew > most:
        raise UsageError(
            f"a skew of {skew} is out of reach: with {top_k} of {num_experts} experts a token, the hottest half can "
            f"take 0.5 to {min(most, 0.99):.2f} of the picks"
        )
    added = residual_growth(skew) * (2 * layer + 1) / (2 * num_layers)
    norm = shared_norm(skew)
    visible = norm / np.sqrt(1 + norm**2) / np.sqrt(1 + added)
    noise = rng.standard_normal((_NUM_TOKENS, num_experts), np.float32)
    noise *= np.float32(ROUTER_STD * np.sqrt(1 - visible**2))
    if skew == 0.5:
        flat = np.zeros(num_experts, np.float32)
        return RouterPlan(flat, _share(noise, flat, top_k), 0.0)
    direction = rng.standard_normal(num_experts).astype(np.float32)
    common_std = ROUTER_STD * np.sqrt(_COMMON_SHARE * added / (1 + added))
    common = (common_std * rng.standard_normal(num_experts)).astype(np.float32)
    low, high = 0.0, _MAX_MAGNITUDE
    for _ in range(20):
        middle = (low + high) / 2
        if _share(noise, direction * np.float32(middle) + common, top_k) < skew:
            low = middle
        else:
            high = middle
    popularity = direction * np.float32(high)
    return RouterPlan(popularity, _share(noise, popularity + common, top_k), float(visible))


def _share(noise: npt.NDArray[np.float32], popularity: npt.NDArray[np.float32], top_k: int) -> float:
    """Share of picks on the more popular half, for logits noise (tokens, experts) + popularity (experts,)."""
    num_experts = len(popularity)
    if top_k == num_experts:
        return 0.5
    picks = np.argpartition(noise + popularity, num_experts - top_k, axis=1)[:, num_experts - top_k :]
    is_hot = np.zeros(num_experts, bool)
    is_hot[np.argsort(popularity, kind="stable")[num_experts - num_experts // 2 :]] = True
    return float(is_hot[picks].mean())


def router_rows(
    plan: RouterPlan, direction: npt.NDArray[np.float32], rng: np.random.Generator
) -> npt.NDArray[np.float32]:
    """float32 (experts, hidden): weights that do what the plan says on normalised hidden states (norm sqrt(hidden)).

    `direction`: c, of norm 1.
    """
    hidden = len(direction)
    scale = np.float32(hidden**-0.5)
    rows = rng.standard_normal((len(plan.popularity), hidden), np.float32) * np.float32(ROUTER_STD) * scale
    if plan.visible:
        # the random part must not see c, or it would add popularity of its own
        rows -= np.outer(rows @ direction, direction)
        rows += np.outer(plan.popularity, direction) * (scale / np.float32(plan.visible))
    return rows
