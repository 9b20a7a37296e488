"""Which computation of a training step gives other bits when it is done again on a GPU, what cures it, what that costs.

    python benchmarks/exactness.py --folder /tmp/bench --shape 8b                 # on a CUDA GPU, about 8 minutes
    python benchmarks/exactness.py --folder /tmp/bench --shape small --device cpu --lengths 64 300

Four parts (`--only`), a line and its JSON for each result; one that fails says so and the next goes on:

| part | what is done twice and compared, byte for byte |
|---|---|
| attention | SDPA forward and backward of one segment: backend × length × type, with and without deterministic mode |
| gradients | a micro-batch through the model of each strategy, the same seed: segments short and long, both modes |
| optimizer | 8-bit AdamW's step: from the same state, and from a state that was saved and loaded |
| scaler | fp16 steps with a GradScaler that meets an overflow, from its beginning and from a saved middle |

What PyTorch's source says (aten/src/ATen/native/transformers/cuda/attention_backward.cu, read 2026-11):
- Memory-efficient backward: the keys are split into ceil(keys ÷ block) parts, of 64 or 128 keys by card and head size,
  unless the blocks are many already (≥ 256) and the keys few (≤ two blocks). Parts of one head add to the same gradient
  of the queries in the order in which they finish: with more than two terms that order is in the bits. Under
  `torch.use_deterministic_algorithms(True)` it sets `num_splits_key = 1`, so one block goes over all keys of a head;
  with `warn_only=True` it only warns. Price: 32 heads are 32 blocks, on the 40 multiprocessors of a T4 nearly enough,
  on 132 not.
- Flash: `deterministic` of its kernel is set by the same mode, not by `warn_only`.
- cuDNN: not chosen in that mode. Math: matrix products and a softmax, T × T scores for each head.
- xformers (fmha/cutlass.py) calls the operator `aten::_efficient_attention_backward` with `num_splits_key=None`, so the
  mode reaches it. Unsloth's dispatch leaves torch's varlen kernel in that mode and calls SDPA once a segment.
- The mode wants CUBLAS_WORKSPACE_CONFIG for cuBLAS, and fills new tensors unless
  `torch.utils.deterministic.fill_uninitialized_memory` is off.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import shapes

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
PARTS = ("attention", "gradients", "optimizer", "scaler")
LENGTHS = (300, 500, 512, 600, 700, 1000, 2048, 4096)
HEADS, HEAD_DIM, AGAIN = 32, 128, 4


def say(part: str, **found: Any) -> None:
    shown = ", ".join(f"{name} {value}" for name, value in found.items())
    print(f"{part:10} {shown}", flush=True)
    print(json.dumps({"part": part, **found}), flush=True)


def exactly(on: bool) -> None:
    import torch

    torch.use_deterministic_algorithms(on)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def bits(*tensors: Any) -> str:
    found = hashlib.sha256()
    for tensor in tensors:
        import torch

        found.update(tensor.detach().contiguous().view(-1).view(torch.uint8).cpu().numpy().tobytes())
    return found.hexdigest()[:12]


def clock(device: str) -> float:
    import torch

    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def attention(arguments: argparse.Namespace) -> None:
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel

    backends = {
        "math": SDPBackend.MATH,
        "efficient": SDPBackend.EFFICIENT_ATTENTION,
        "flash": SDPBackend.FLASH_ATTENTION,
        "cudnn": SDPBackend.CUDNN_ATTENTION,
    }
    device = arguments.device
    for name, backend in backends.items():
        for dtype in (torch.float16, torch.bfloat16, torch.float32):
            for length in arguments.lengths:
                if dtype == torch.float32 and length not in (500, 700, 2048, *arguments.lengths[:1]):
                    continue
                draw = torch.Generator(device).manual_seed(length)
                shape = (1, HEADS, length, HEAD_DIM)
                q, k, v, grad = (torch.randn(shape, generator=draw, device=device, dtype=dtype) for _ in range(4))
                for mode in (False, True):
                    exactly(mode)
                    row: dict[str, Any] = {"backend": name, "dtype": str(dtype)[6:], "length": length, "mode": mode}

                    def once(q: Any = q, k: Any = k, v: Any = v, grad: Any = grad, backend: Any = backend) -> list[Any]:
                        inputs = [one.detach().requires_grad_() for one in (q, k, v)]
                        with sdpa_kernel(backend):
                            out = torch.nn.functional.scaled_dot_product_attention(*inputs, is_causal=True)
                        out.backward(grad)
                        return [out.detach(), *(one.grad for one in inputs)]

                    try:
                        found = [once() for _ in range(AGAIN)]
                        began = clock(device)
                        for _ in range(AGAIN):
                            once()
                        row["ms"] = round(1e3 * (clock(device) - began) / AGAIN, 3)
                        for at, what in enumerate(("out", "dq", "dk", "dv")):
                            row[what] = "equal" if len({bits(one[at]) for one in found}) == 1 else "DIFFERS"
                    except RuntimeError as error:
                        row["refused"] = str(error).split("\n")[0][:90]
                    say("attention", **row)
    exactly(False)


def gradients(arguments: argparse.Namespace) -> None:
    """Each strategy in a process of its own: Unsloth changes the libraries of the whole process."""
    for strategy in arguments.strategies:
        words = [sys.executable, *sys.argv, "--one", strategy]
        ran = subprocess.run(words, capture_output=True, text=True, check=False)
        told = [line for line in ran.stdout.splitlines() if line.startswith(("gradients", "{"))]
        print("\n".join(told) if ran.returncode == 0 else f"{strategy} FAILED {ran.stderr[-1500:]}", flush=True)


def one_strategy(arguments: argparse.Namespace) -> None:
    from kaggle_lib.config import RunConfig

    on_cpu = arguments.device == "cpu"
    values = {"run": "r", "base_model": str(arguments.folder / arguments.shape), "data": "sample"}
    values |= {"strategy": arguments.one, "precision": "fp32" if on_cpu else "fp16", "max_length": 4096}
    config = RunConfig.create(values | ({"optim": "adamw_torch"} if on_cpu else {}))
    from kaggle_lib import strategies

    strategy = strategies.get(config)
    import torch

    from kaggle_lib.training import batch

    if not on_cpu and arguments.t4:
        torch.backends.cuda.enable_flash_sdp(False)
        torch.backends.cuda.enable_cudnn_sdp(False)
    device = torch.device(arguments.device)
    model, _ = strategy.load(config, device, arguments.folder)
    model = strategy.adapt(model, config)
    trained = [p for p in model.parameters() if p.requires_grad]
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in trained:
            parameter.add_(0.01 * torch.randn(parameter.shape, generator=draw).to(device))
    model.train()
    half = torch.autocast("cuda", torch.float16, enabled=not on_cpu)
    long = max(arguments.lengths)
    for segments in ([300, 150, 90], [500, 250, 200], [700, 300], [1000, 900], [2048], [long]):
        segments = [min(length, long) for length in segments]
        rows = []
        for length in segments:
            ids = torch.randint(0, model.config.vocab_size, (length,), generator=draw).tolist()
            rows.append({"input_ids": ids, "labels": [-100] * (length // 3) + ids[length // 3 :]})
        made = batch.padding_free(rows)
        inputs = {key: value.to(device) if torch.is_tensor(value) else value for key, value in made.items()}

        def once(layers: int, inputs: Any = inputs) -> str:
            strategy.recompute(model, layers)
            model.zero_grad()
            torch.manual_seed(7)
            with half:
                loss = model(**inputs, use_cache=False, num_items_in_batch=500).loss
            (loss * 2.0**14).backward()
            return bits(*[p.grad for p in trained])

        for mode in (False, True):
            exactly(mode)
            row: dict[str, Any] = {"strategy": arguments.one, "segments": segments, "mode": mode}
            try:
                few = model.config.num_hidden_layers if sum(segments) > 2500 else 0
                first = once(few)
                began = clock(arguments.device)
                again = [once(few) for _ in range(3)]
                row |= {"seconds": round((clock(arguments.device) - began) / 3, 4)}
                row |= {"again": "equal" if {first} == set(again) else "DIFFERS"}
                row["recomputed"] = "equal" if once(model.config.num_hidden_layers) == first else "DIFFERS"
            except RuntimeError as error:
                row["refused"] = str(error).split("\n")[0][:200]
            say("gradients", **row)


def parameters(device: str, seed: int = 3) -> list[Any]:
    """As a LoRA adapter has them: some too small for 8-bit states, some not."""
    import torch

    draw = torch.Generator().manual_seed(seed)
    sizes = ((16, 4096), (4096, 16), (16, 64), (1024, 16))
    return [torch.nn.Parameter(torch.randn(size, generator=draw).to(device)) for size in sizes]


def make_optimizer(trained: list[Any], device: str) -> Any:
    import torch

    if device == "cpu":
        return torch.optim.AdamW(trained, lr=2e-4)
    import bitsandbytes as bnb

    return bnb.optim.AdamW8bit(trained, lr=2e-4)


def reloaded(state: Any) -> Any:
    """As a checkpoint has it: written, and read on the CPU."""
    import torch

    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, map_location="cpu", weights_only=True)


def run_steps(trained: list[Any], optimizer: Any, scaler: Any, steps: range, overflow: int = -1) -> str:
    """Steps with gradients made up by their number; the hash of weights and optimizer state."""
    import torch

    for step in steps:
        draw = torch.Generator().manual_seed(step)
        for parameter in trained:
            grad = torch.randn(parameter.shape, generator=draw).to(parameter.device)
            parameter.grad = grad * (float("inf") if step == overflow else scaler.get_scale() if scaler else 1.0)
        if scaler:
            scaler.scale(torch.ones((), device=trained[0].device))  # makes its state, as a loss would
            scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        if scaler:
            scaler.step(optimizer)
            scaler.update()
        else:
            optimizer.step()
    state = [value for one in optimizer.state.values() for value in one.values() if torch.is_tensor(value)]
    return bits(*trained, *state)


def twice(arguments: argparse.Namespace, part: str, with_scaler: bool) -> None:
    import torch

    def fresh() -> tuple[list[Any], Any, Any]:
        trained = parameters(arguments.device)
        scaler = torch.amp.GradScaler(arguments.device, growth_interval=3) if with_scaler else None
        return trained, make_optimizer(trained, arguments.device), scaler

    overflow = 4 if with_scaler else -1
    whole = [run_steps(*fresh(), range(10), overflow) for _ in range(3)]
    trained, optimizer, scaler = fresh()
    run_steps(trained, optimizer, scaler, range(6), overflow)
    saved = [reloaded(one.state_dict()) if one else None for one in (optimizer, scaler)]
    weights = [copy.deepcopy(parameter.detach().cpu()) for parameter in trained]
    continued = run_steps(trained, optimizer, scaler, range(6, 10))
    trained, optimizer, scaler = fresh()
    with torch.no_grad():
        for parameter, weight in zip(trained, weights, strict=True):
            parameter.copy_(weight)
    optimizer.load_state_dict(saved[0])
    if scaler:
        scaler.load_state_dict(saved[1])
    resumed = run_steps(trained, optimizer, scaler, range(6, 10))
    say(
        part,
        optimizer=type(optimizer).__name__,
        again="equal" if len(set(whole)) == 1 else "DIFFERS",
        went_on="equal" if continued == whole[0] else "DIFFERS",
        resumed="equal" if resumed == continued else "DIFFERS",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="for the base model; 17 GB at 8b")
    parser.add_argument("--shape", choices=sorted(shapes.SHAPES), default="8b")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--lengths", type=int, nargs="+", default=list(LENGTHS))
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--strategies", nargs="+", choices=("peft", "unsloth"), default=["peft", "unsloth"])
    parser.add_argument("--t4", action="store_true", help="switch flash and cuDNN attention off, as a T4 has neither")
    parser.add_argument("--one", choices=("peft", "unsloth"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        one_strategy(arguments)
        return
    import torch

    card = torch.cuda.get_device_name() if arguments.device == "cuda" else "CPU"
    print(f"{card}, torch {torch.__version__}, {time.strftime('%Y-%m-%d')}: {' '.join(sys.argv)}\n", flush=True)
    arguments.folder.mkdir(parents=True, exist_ok=True)
    acts: dict[str, Callable[[], None]] = {
        "optimizer": lambda: twice(arguments, "optimizer", with_scaler=False),
        "scaler": lambda: twice(arguments, "scaler", with_scaler=True),
        "attention": lambda: attention(arguments),
        "gradients": lambda: gradients(arguments),
    }
    if "gradients" in arguments.only:
        shapes.make_base(arguments.shape, arguments.folder / arguments.shape)
        if arguments.device == "cuda":
            torch.cuda.empty_cache()
    for name, seconds in timed(acts, arguments.only):
        print(f"{name}: {seconds:.0f} s", flush=True)


def timed(acts: dict[str, Callable[[], None]], only: list[str]) -> Iterator[tuple[str, float]]:
    for name, act in acts.items():
        if name in only:
            began = time.monotonic()
            try:
                act()
            except Exception as error:
                say(name, failed=repr(error)[:300])
            yield name, time.monotonic() - began


if __name__ == "__main__":
    main()
