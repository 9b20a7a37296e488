"""A LoRA adapter folded into the base model's own 16-bit weights, tensor by tensor: W + scale · B A (Hu et al. 2021).

In fp32, rounded once. Not into the 4-bit weights that training saw: PEFT's merge there rounds the sum to NF4 again,
whose 16 levels lose every change that is smaller than half the way between two of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from kaggle_lib.errors import UserError
from kaggle_lib.files import fsync_tree, read_json, write_json
from kaggle_lib.strategies.adapter import CONFIG, WEIGHTS

SHARD_BYTES = 2 * 10**9  # what is held in memory at a time
PREFIX, A, B = "base_model.model.", ".lora_A.weight", ".lora_B.weight"
# What a hooks file may have made of the adapter, and its plain value: nothing else is this sum.
PLAIN: dict[str, Any] = {"peft_type": "LORA", "use_dora": False, "fan_in_fan_out": False, "bias": "none"}
PLAIN |= {"lora_bias": False, "rank_pattern": {}, "alpha_pattern": {}, "init_lora_weights": True}


def merge(
    base: Path, adapter: Path, into: Path, dtype: torch.dtype, beat: Callable[[], None], shard_bytes: int = SHARD_BYTES
) -> None:
    """Write the merged weights into the folder `into`, as safetensors of about `shard_bytes`, with `config.json`.

    `base`: a folder with the weights as safetensors; `beat` is called after each tensor. At most a shard and two fp32
    copies of one adapted layer are in memory. Raises UserError for an adapter that is no plain LoRA of this base, and
    for a weight that `dtype` cannot hold.
    """
    pairs, scale = _pairs(adapter)
    shards: list[Path] = []
    held: dict[str, torch.Tensor] = {}
    where: dict[str, int] = {}

    def write() -> None:
        shards.append(into / f"shard-{len(shards)}")
        save_file(held, shards[-1], metadata={"format": "pt"})
        held.clear()

    total = 0
    for name, tensor in _tensors(base):
        if pair := pairs.pop(name.removesuffix(".weight"), None):
            tensor = _fold(name, tensor, *pair, scale)
        if tensor.is_floating_point():
            tensor = _rounded(name, tensor, dtype)
        size = tensor.numel() * tensor.element_size()
        if held and sum(t.numel() * t.element_size() for t in held.values()) + size > shard_bytes:
            write()
        held[name], where[name], total = tensor.contiguous(), len(shards), total + size
        beat()
    write()
    if pairs:
        raise _other(f"the base model has no weights named {next(iter(pairs))}.weight")
    names = [f"model-{n:05}-of-{len(shards):05}.safetensors" for n in range(1, len(shards) + 1)]
    if len(shards) == 1:
        names = ["model.safetensors"]
    else:
        index = {"metadata": {"total_size": total}, "weight_map": {n: names[at] for n, at in sorted(where.items())}}
        write_json(into / "model.safetensors.index.json", index)
    for shard, final in zip(shards, names, strict=True):
        shard.rename(into / final)
    config = {**read_json(base / "config.json"), "dtype": str(dtype).removeprefix("torch.")}
    config.pop("torch_dtype", None)  # its older name
    write_json(into / "config.json", config)
    fsync_tree(into)


def _pairs(adapter: Path) -> tuple[dict[str, tuple[torch.Tensor, torch.Tensor]], float]:
    """A `(r, in)` and B `(out, r)` of each adapted layer by its name, and the scale."""
    about, tensors = read_json(adapter / CONFIG), load_file(adapter / WEIGHTS)
    for name, plain in PLAIN.items():
        if (found := about.get(name, plain)) != plain:
            raise _other(f"its {name} is {found!r}")
    layers = {name.removeprefix(PREFIX).removesuffix(A) for name in tensors if name.endswith(A)}
    pairs = {layer: (tensors.pop(PREFIX + layer + A), tensors.pop(PREFIX + layer + B)) for layer in sorted(layers)}
    if tensors:
        raise _other(f"it holds {next(iter(tensors))}")
    return pairs, about["lora_alpha"] / (math.sqrt(about["r"]) if about.get("use_rslora") else about["r"])


def _tensors(base: Path) -> Iterator[tuple[str, torch.Tensor]]:
    for path in sorted(base.glob("model*.safetensors")):
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118
                yield name, file.get_tensor(name)


def _fold(name: str, weight: torch.Tensor, a: torch.Tensor, b: torch.Tensor, scale: float) -> torch.Tensor:
    if weight.shape != (b.shape[0], a.shape[1]):
        raise _other(f"{name} has the shape {tuple(weight.shape)}, and the adapter's is {(b.shape[0], a.shape[1])}")
    return weight.float().addmm_(b.float(), a.float(), alpha=scale)


def _rounded(name: str, tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    rounded = tensor.to(dtype)
    if not torch.isfinite(rounded).all():
        raise UserError(
            f"{name} has a value that {dtype} cannot hold, so the model cannot be merged at 16 bit.",
            kept="The adapter is as it was.",
            todo="Publish the adapter.",
        )
    return rounded


def _other(why: str) -> UserError:
    return UserError(
        f"This adapter cannot be merged: {why}.", kept="The adapter is as it was.", todo="Publish the adapter."
    )
