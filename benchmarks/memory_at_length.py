"""Peak memory and speed of training at one length under a memory cap, with a T4's attention kernels.

    python benchmarks/memory_at_length.py --folder /tmp/bench --tokens 4096 --cap 14.5

Each variant trains a few steps by the library's own worker, in a process of its own, on a CUDA GPU. Flash and cuDNN
attention are switched off, as a T4 has neither; `--cap` GiB is what PyTorch may allocate. Stock attention, the
baseline, runs without a cap, to see what it would have needed. Prints a table and, last, one JSON line.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import shapes

# name: (what it is, values of the configuration, whether it runs under the cap)
VARIANTS: dict[str, tuple[str, dict[str, Any], bool]] = {
    "peft": ("peft, every layer recomputed", {"strategy": "peft", "recomputation": "full"}, True),
    "peft-grows": ("peft, recomputed as memory runs out", {"strategy": "peft", "recomputation": "none"}, True),
    "unsloth": ("unsloth, every layer recomputed", {"strategy": "unsloth", "recomputation": "full"}, True),
    "stock": ("peft with stock grouped attention", {"strategy": "peft", "recomputation": "full"}, False),
}


def train(name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Train the variant in this process; what its events say."""
    _, values, capped = VARIANTS[name]
    import torch

    from kaggle_lib.runs import events
    from kaggle_lib.runs.folder import RunFolder
    from kaggle_lib.runs.prepare import prepare
    from kaggle_lib.training import worker

    torch.backends.cuda.enable_flash_sdp(False)
    torch.backends.cuda.enable_cudnn_sdp(False)
    total = torch.cuda.get_device_properties(0).total_memory
    if capped:
        torch.cuda.set_per_process_memory_fraction(arguments.cap * 2**30 / total)
    if name == "stock":
        from kaggle_lib.training import kernels

        kernels.ATTENTION = "sdpa"
    root = prepare(
        {
            "run": name,
            "base_model": str(arguments.folder / arguments.shape),
            "data": str(arguments.folder / f"corpus-{arguments.tokens}.jsonl"),
            "precision": "fp16",
            "max_length": arguments.tokens,
            "max_steps": arguments.steps,
            "save_steps": arguments.steps,
            "eval_steps": 0,
            "validation_fraction": 0,
            "test_fraction": 0,
            "work_dir": str(arguments.folder / "work"),
            "store": str(arguments.folder / "store"),
            **values,
        },
        print,
    )
    folder = RunFolder(root)
    outcome = worker.main(root)
    done = events.read_all(folder.events)
    steps = [event for event in done if event["event"] == "step"]
    counted = steps[1:]
    seconds, tokens = sum(step["seconds"] for step in counted), sum(step["tokens"] for step in counted)
    return {
        "outcome": outcome["outcome"],
        "tokens_a_step": steps[0]["tokens"],
        "seconds_a_step": round(seconds / len(counted), 2),
        "tokens_a_second": round(tokens / seconds),
        "peak_gib": round(steps[-1]["memory"] / 2**30, 2),
        "losses": [round(step["loss"], 4) for step in steps],
        "warnings": [event["message"] for event in done if event["event"] == "warning"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="for base model, corpus and runs; 20 GB at 8b")
    parser.add_argument("--shape", choices=sorted(shapes.SHAPES), default="8b")
    parser.add_argument("--tokens", type=int, default=4096, help="of every sample; a step has four samples")
    parser.add_argument("--cap", type=float, default=14.5, help="GiB that PyTorch may allocate")
    parser.add_argument("--steps", type=int, default=4, help="the first is not timed")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--one", choices=VARIANTS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(train(arguments.one, arguments)))
        return
    import torch

    card = torch.cuda.get_device_properties(0)
    arguments.folder.mkdir(parents=True, exist_ok=True)
    shapes.make_base(arguments.shape, arguments.folder / arguments.shape)
    shapes.make_corpus(arguments.folder / f"corpus-{arguments.tokens}.jsonl", arguments.tokens, 4 * arguments.steps + 8)
    torch.cuda.empty_cache()
    print(f"{card.name}, torch {torch.__version__}, {time.strftime('%Y-%m-%d')}: {' '.join(sys.argv)}\n", flush=True)
    print("| variant | cap GiB | peak GiB | s/step | tokens/s |\n|---|---|---|---|---|", flush=True)
    found = {}
    for name in arguments.variants:
        what, _, capped = VARIANTS[name]
        ran = subprocess.run([sys.executable, *sys.argv, "--one", name], capture_output=True, text=True, check=False)
        lines = ran.stdout.splitlines()
        found[name] = json.loads(lines[-1]) if ran.returncode == 0 else {"failed": ran.stderr[-1500:]}
        one, cap = found[name], arguments.cap if capped else "–"
        row = [one.get(key, "failed") for key in ("peak_gib", "seconds_a_step", "tokens_a_second")]
        print(f"| {what} | {cap} | {' | '.join(map(str, row))} |", flush=True)
    print("\n" + json.dumps(found))


if __name__ == "__main__":
    main()
