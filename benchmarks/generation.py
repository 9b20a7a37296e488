"""Rows a second of generation in batches, against the same rows one by one.

    python benchmarks/generation.py --folder /tmp/bench --shape 8b --rows 64 --batch 1 16

The base model has random weights and ends no answer by itself, so a seeded list of stop lengths, the same for every
batch size, says when each answer ends: 20 to 240 tokens, most of them short, as the corpus's answers are. Prompts are
60 to 400 tokens. Both models of an evaluation generate this way; the weights do not matter for the time.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from pathlib import Path
from typing import Any

import shapes


def load(folder: Path, quantization: str) -> tuple[Any, Any]:
    from kaggle_lib.config import RunConfig

    values = {"run": "r", "base_model": str(folder), "data": "sample", "quantization": quantization}
    import torch

    from kaggle_lib.strategies import peft

    on_gpu = torch.cuda.is_available()
    config = RunConfig.create({**values, "precision": "fp16" if on_gpu else "fp32"})
    model, tokenizer = peft.load(config, torch.device("cuda" if on_gpu else "cpu"), folder)
    return peft.for_inference(peft.adapt(model, config)), tokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="for the base model; 17 GB at 8b")
    parser.add_argument("--shape", choices=sorted(shapes.SHAPES), default="8b")
    parser.add_argument("--quantization", choices=("nf4", "none"), default="nf4")
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--seed", type=int, default=7)
    arguments = parser.parse_args()
    import torch

    from kaggle_lib.evaluation import generation

    arguments.folder.mkdir(parents=True, exist_ok=True)
    model, tokenizer = load(
        shapes.make_base(arguments.shape, arguments.folder / arguments.shape), arguments.quantization
    )
    draw = random.Random(arguments.seed)
    stops = [min(240, 20 + round(draw.expovariate(1 / 50))) for _ in range(arguments.rows)]
    prompts = [[draw.randrange(256, 4096) for _ in range(draw.randint(60, 400))] for _ in stops]
    machine = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads"
    print(f"{machine}, torch {torch.__version__}, {time.strftime('%Y-%m-%d')}: {' '.join(sys.argv)}\n", flush=True)
    print(f"{sum(stops)} new tokens in {len(stops)} answers\n\n| batch | seconds | rows/s | times the first |")
    print("|---|---|---|---|", flush=True)
    generation.answers(model, tokenizer, prompts[:1], [4])  # what is made at the first call is not timed
    first = 0.0
    for size in arguments.batch:
        began = time.monotonic()
        made = 0
        for places in generation.batches([len(prompts[at]) + stops[at] for at in range(len(stops))], size):
            some = generation.answers(model, tokenizer, *([one[at] for at in places] for one in (prompts, stops)))
            made += sum(answer.tokens for answer in some)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds = time.monotonic() - began
        first = first or seconds
        print(f"| {size} | {seconds:.1f} | {len(stops) / seconds:.2f} | {first / seconds:.1f} |", flush=True)
        if made != sum(stops):
            sys.exit(
                f"{made} tokens were generated, not {sum(stops)}: a random answer ended by itself; use another seed."
            )


if __name__ == "__main__":
    main()
