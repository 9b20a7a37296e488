"""How fast a model trains on a card: measured where `known.json` has it, else a projection, which is called one.

Seconds of a micro-batch of T tokens on one GPU, for a frozen model of P parameters, a share r of its layers recomputed:

    T · (4 + 2 r) · P ÷ (flops · attained)  +  (2 + r) · 2.5 · P ÷ bytes_per_second

4 operations a parameter and token: 2 forward, 2 for the gradient of the activations; the frozen weights have none. Each
of the 2 + r passes over the weights of an NF4 model reads half a byte a parameter and writes two. The steps are those
that training would make of the one mixture of lengths, cut and shared as it does it; a step lasts as long as its
busiest GPU. What a card attains is in `known.json`, with its source; time for attention, for the optimizer and for the
exchange of gradients is in `attained`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from kaggle_lib.config import RunConfig
from kaggle_lib.data.budget import Memory
from kaggle_lib.data.mixture import mixture
from kaggle_lib.data.steps import Cut, Steps, cut_of

T4 = "Tesla T4"
PROXY = "8 multiprocessors of an H100"
GIB = 2**30
STEPS = 128  # of the mixture, that a projection is the mean of
LARGE = 5e8  # parameters; below, launching kernels takes the time, and no formula here says how much


@cache
def known() -> dict[str, Any]:
    """What is known beforehand: shapes of models, rows of corpora, cards, and measured speeds."""
    found: dict[str, Any] = json.loads(Path(__file__).with_name("known.json").read_text(encoding="utf-8"))
    return found


@dataclass(frozen=True)
class Shape:
    """A decoder's shape, by the names of its `config.json`."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    vocab_size: int
    head_dim: int
    tie_word_embeddings: bool

    @classmethod
    def read(cls, config: Mapping[str, Any]) -> Shape:
        """Raises KeyError where `config` is no decoder's of the Llama kind."""
        heads = config["num_attention_heads"]
        head_dim = config.get("head_dim") or config["hidden_size"] // heads
        kv = config.get("num_key_value_heads") or heads
        tied = bool(config.get("tie_word_embeddings", False))
        names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
        return cls(
            **{name: config[name] for name in names},
            num_key_value_heads=kv,
            head_dim=head_dim,
            tie_word_embeddings=tied,
        )

    @property
    def linear(self) -> dict[str, tuple[int, int]]:
        """(inputs, outputs) of each linear layer of a decoder layer."""
        hidden, inner = self.hidden_size, self.intermediate_size
        queries, keys = self.num_attention_heads * self.head_dim, self.num_key_value_heads * self.head_dim
        attention = {"q_proj": (hidden, queries), "k_proj": (hidden, keys), "v_proj": (hidden, keys)}
        mlp = {"gate_proj": (hidden, inner), "up_proj": (hidden, inner), "down_proj": (inner, hidden)}
        return {**attention, "o_proj": (queries, hidden), **mlp}

    @property
    def parameters(self) -> int:
        """Embeddings and head, the linear layers, and two norms a layer beside the last one."""
        layer = sum(inputs * outputs for inputs, outputs in self.linear.values()) + 2 * self.hidden_size
        tables = 1 if self.tie_word_embeddings else 2
        return self.num_hidden_layers * layer + (tables * self.vocab_size + 1) * self.hidden_size

    def lora_parameters(self, config: RunConfig) -> int:
        """r · (inputs + outputs) of every adapted layer (Hu et al. 2021). Raises KeyError for one it does not have."""
        sizes = (sum(self.linear[name]) for name in config.lora_target_modules)
        return self.num_hidden_layers * config.lora_r * sum(sizes)


def memory_of(shape: Shape, config: RunConfig) -> Memory | None:
    """Of the 8B shape in NF4 with a T4's attention kernels; measured elsewhere, so training measures its own. Of other
    models nothing is known."""
    if (shape.hidden_size, shape.num_hidden_layers, config.quantization) != (4096, 32, "nf4"):
        return None
    return Memory(5.83 * GIB, 91 * 1024, (136 if config.lean_mlp else 152) * 1024, 32)


def planned(shape: Shape, config: RunConfig, card: str = T4) -> tuple[Cut, Callable[[int], float]]:
    """The cut of a fresh run on that card, and what share of the layers a micro-batch of so many tokens recomputes."""
    cut, memory, facts = cut_of(config), memory_of(shape, config), known()["hardware"].get(card)
    if config.recomputation != "auto" or memory is None or facts is None:
        return cut, lambda _: float(config.recomputation != "none")
    room = facts["memory"] * GIB * config.memory_fraction
    if config.token_budget == "auto":
        cut = replace(cut, token_budget=memory.budget(room))
    return cut, lambda tokens: memory.recomputed(tokens, room) / memory.layers


def projected(shape: Shape, config: RunConfig, tokens_of_a_step: float, gpus: int, card: str = T4) -> float | None:
    """Tokens/s by the formula above; None for a card that is not known, or a model too small for it."""
    facts = known()["hardware"].get(card)
    if facts is None or shape.parameters < LARGE:
        return None
    cut, recomputed = planned(shape, config, card)
    size = config.train_batch_size
    lengths = mixture(STEPS * size, max_length=config.max_length, mean=tokens_of_a_step / size)
    steps = Steps(config.seed, size, lengths, cut, 1)

    def seconds(tokens: int) -> float:
        share = recomputed(tokens)
        passes = 2 + share if config.quantization == "nf4" else 0
        compute = tokens * (4 + 2 * share) * shape.parameters / (facts["flops"] * facts["attained"])
        return float(compute + passes * 2.5 * shape.parameters / facts["bytes_per_second"])

    total = 0.0
    for step in range(steps.total):
        each = [seconds(steps.cost(batch)) for batch in steps.micro_batches(step)]
        total += max(sum(each[number] for number in share) for share in steps.share(step, gpus))
    return sum(lengths) / total


def moved(seconds: float, passes: float, shape: Shape, card: str, to: str = T4) -> float:
    """What took `seconds` on one card, projected to another: `passes` over NF4 weights by the cards' bytes a second,
    the rest by their operations a second."""
    here, there = known()["hardware"][card], known()["hardware"][to]
    unpacked = passes * 2.5 * shape.parameters
    rest = seconds - unpacked / here["bytes_per_second"]
    return float(rest * here["flops"] / there["flops"] + unpacked / there["bytes_per_second"])


def measured(shape: Shape, config: RunConfig, gpus: int, card: str = T4) -> dict[str, Any] | None:
    """The measured speed that fits: `tokens_per_second` at `tokens_of_a_step`, `source`; None: there is none."""
    same = {"gpu": card, "gpus": gpus, "strategy": config.strategy, "recomputation": config.recomputation}
    rows: list[dict[str, Any]] = known()["measured"]
    fitting = (row for row in rows if same.items() <= row.items())
    return next((row for row in fitting if math.isclose(row["parameters"], shape.parameters, rel_tol=0.02)), None)


def expected(shape: Shape, config: RunConfig, tokens_of_a_step: float, gpus: int, card: str = T4) -> dict[str, Any]:
    """`tokens_per_second` (null: not known), `how` (measured, projection, unknown), `source`.

    A speed that was measured at another length is moved to this one by the formula's ratio.
    """
    formula = projected(shape, config, tokens_of_a_step, gpus, card)
    row = measured(shape, config, gpus, card)
    if row:
        at = projected(shape, config, row["tokens_of_a_step"], gpus, card)
        ratio = formula / at if formula and at else 1.0
        return {"tokens_per_second": row["tokens_per_second"] * ratio, "how": "measured", "source": row["source"]}
    if formula is None:
        why = f"nothing is known of {card}" if card not in known()["hardware"] else "too small a model for the formula"
        return {"tokens_per_second": None, "how": "unknown", "source": why}
    return {"tokens_per_second": formula, "how": "projection", "source": known()["hardware"][card]["source"]}


def shape_of(config: RunConfig) -> Shape | None:
    """The base model's shape: of its folder, of what is known, of huggingface_hub's cache; None: not to be had here."""
    folder = Path(config.base_model)
    path = folder / "config.json" if folder.is_dir() else None
    models = known()["models"]
    if path is None and (entry := models.get(config.base_model)):
        return Shape.read(models.get(entry.get("same"), entry))
    path = path or cached(config, "config.json")
    try:
        return Shape.read(json.loads(path.read_text(encoding="utf-8"))) if path else None
    except (OSError, ValueError, KeyError):
        return None


def cached(config: RunConfig, name: str) -> Path | None:
    """A file of a base model of the Hub, where huggingface_hub has it already: nothing is downloaded."""
    if not config.hub_base:
        return None
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(config.base_model, name, revision=config.revision)
    return Path(found) if isinstance(found, str) else None
