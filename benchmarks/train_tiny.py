"""Trains the two small models in tests/models/trained/: one of the delta rule, one of convolutions, no attention.

    python benchmarks/train_tiny.py                    # both, on one thread; needs torch and transformers
    python benchmarks/train_tiny.py --task recall --folder found

Random weights seldom show a scan that is wrong: a state that is forgotten, exchanged or rounded still gives logits of
the same size. These models cannot answer without theirs. What they are taught is in tests/models/trained_tasks.py, and
tests/models/test_tiny_trained.py breaks the scan and the convolution in several ways and sees them fail.

The network is transformers' own, so that the weights mean what they mean there. Seeds are fixed and one thread counts,
so the same machine and versions give the same file. Stored is float16; the last line is of what was stored.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from safetensors.numpy import load_file, save_file

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "models"))
from trained_tasks import FOLDER, TASKS, Texts, write_config

SEED = 14
RATE = 3e-3
STEPS, BATCH = {"recall": 250, "copying": 600}, {"recall": 16, "copying": 32}
HELD_OUT = 15  # seed of texts that training does not see


def build(config: dict[str, Any]) -> Any:
    """The network, its weights large enough for products of three of them."""
    kind = config["model_type"]
    settings = {key: value for key, value in config.items() if key != "model_type"}
    made = transformers.AutoConfig.for_model(
        kind, **settings, initializer_range=config["hidden_size"] ** -0.5, pad_token_id=None
    )
    model = transformers.AutoModelForCausalLM.from_config(made)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "conv" in name and value.dim() == 3:
                value.normal_(std=value.shape[-1] ** -0.5)
        for layer in model.model.layers if kind == "qwen3_5_text" else ():
            _begin_delta(layer)
    return model


def _begin_delta(layer: Any) -> None:
    """Where a layer of the delta rule begins, so that it learns in minutes.

    From one token to the next states keep .9 to .999 of themselves; queries are made as keys are, but of a row itself
    and keys of the one before it; and what the layer adds is no larger than the embeddings.
    """
    mixer = layer.linear_attn
    steps = torch.logspace(-3, -1, mixer.num_v_heads) / mixer.A_log.exp()
    mixer.dt_bias.copy_(steps.expm1().log())
    width = mixer.key_dim
    mixer.in_proj_qkv.weight[:width] = mixer.in_proj_qkv.weight[width : 2 * width]
    taps = mixer.conv1d.weight.mul_(0.5)
    taps[:width, 0, -1] += 1
    taps[width : 2 * width, 0, -2] += 1
    taps[2 * width :, 0, -1] += 1
    mixer.out_proj.weight.mul_(0.2)
    layer.mlp.down_proj.weight.mul_(0.2)


def logits(model: Any, texts: Texts) -> torch.Tensor:
    """Of every byte."""
    return model(input_ids=torch.from_numpy(texts.tokens), use_cache=False).logits


def share(model: Any, texts: Texts) -> float:
    """Of right answers."""
    with torch.no_grad():
        return texts.share(logits(model, texts).argmax(-1).numpy())


def train(name: str, steps: int, batch: int) -> Any:
    """The trained network."""
    task, rng = TASKS[name], np.random.default_rng(SEED)
    model = build(task.config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, betas=(0.9, 0.98), weight_decay=0.0)
    warm_up = steps // 20
    began = time.process_time()
    for step in range(steps):
        part = min(1.0, (step + 1) / warm_up) * (0.51 + 0.49 * math.cos(math.pi * step / steps))
        for group in optimizer.param_groups:
            group["lr"] = RATE * part
        texts = task.training(rng, batch)
        asked = logits(model, texts)[torch.from_numpy(texts.is_asked)]
        loss = torch.nn.functional.cross_entropy(asked, torch.from_numpy(texts.answers))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 25 == 24:
            right = float((asked.argmax(-1).numpy() == texts.answers).mean())
            print(
                f"{name} step {step + 1}: loss {loss.item():.4f}, {right:.1%}, {time.process_time() - began:.0f} s",
                flush=True,
            )
    return model


def store(name: str, model: Any, folder: Path) -> Path:
    """model.safetensors in float16 and config.json."""
    write_config(name, folder)
    path = folder / "model.safetensors"
    tensors = {
        key: np.ascontiguousarray(value.detach().numpy().astype(np.float16))
        for key, value in model.state_dict().items()
        if key != "lm_head.weight"  # it is the table
    }
    save_file(tensors, path, metadata={"format": "pt"})
    with torch.no_grad():
        for key, value in load_file(path).items():
            model.state_dict()[key].copy_(torch.from_numpy(value.astype(np.float32)))
    return path


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=sorted(TASKS), help="only this one")
    parser.add_argument("--folder", type=Path, default=FOLDER)
    parser.add_argument("--steps", type=int, help="instead of the task's own number")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name in [options.task] if options.task else TASKS:
        torch.manual_seed(SEED)
        began = time.process_time()
        model = train(name, options.steps or STEPS[name], BATCH[name])
        seconds = time.process_time() - began
        path = store(name, model, options.folder / name)
        right = share(model, TASKS[name].held_out(np.random.default_rng(HELD_OUT), 100))
        count = sum(value.numel() for value in model.parameters())
        size = f"{count / 1e6:.2f} M parameters, {path.stat().st_size / 2**20:.2f} MiB"
        print(f"{name}: {size}, {seconds:.0f} s of CPU, {right:.2%}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
