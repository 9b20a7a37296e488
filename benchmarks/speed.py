"""Tokens a second, peak memory and losses of stock PEFT, stock Unsloth and both strategies, on one machine.

    python benchmarks/speed.py --folder /tmp/bench                                  # all of it; a CUDA GPU
    python benchmarks/speed.py --folder /tmp/bench --only stock-unsloth ours-unsloth --where proxy --steps 8
    python benchmarks/speed.py --folder /tmp/bench --only ours-peft --gpus 1 2 --where proxy
    python benchmarks/speed.py --folder /tmp/bench --shape tiny --device cpu --steps 3 --lengths mixture

Every variant trains the same rows in the same order, four samples a step, in a process of its own and under a cap of
memory; the first steps (`--warm`) are not timed; tokens/s is all counted tokens ÷ all counted seconds. `--where card`
is the whole GPU, `--where proxy` a T4-shaped part of an H100: MPS confines every process to 8 of its 132
multiprocessors, flash and cuDNN attention are off as on a T4, and each process says on how many multiprocessors its
forward and its backward ran: more than 9, and its result is an error. No setting of the device is changed.

| variant | what it is |
|---|---|
| stock-peft | `prepare_model_for_kbit_training`, transformers' SDPA, each sample alone, all layers recomputed |
| stock-unsloth | Unsloth as its notebooks have it, each sample alone, its offloaded recomputation |
| knobs-unsloth | the same with the step's samples in one packed row and `checkpoint_skip_layers` (`--keep-layers`) |
| ours-peft, ours-unsloth | this library's worker, `recomputation=auto`, `token_budget=auto` |

The stock variants are the libraries' models in a plain loop (autocast, GradScaler, clipping, the same optimizer), which
leaves out what their trainers add. One JSON line a result, also in `FOLDER/speed.jsonl`; on the proxy with the
projection to a T4 (`kaggle_lib/report/speed.py`, `moved`), beside the one from the formula alone.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import itertools
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import shapes

VARIANTS = ("stock-peft", "stock-unsloth", "knobs-unsloth", "ours-peft", "ours-unsloth")
SAMPLES, MOST_SMS, RESULT = 4, 9, "RESULT "
PERCENT = 6  # of 132 multiprocessors: 8


def values_of(arguments: argparse.Namespace, name: str) -> dict[str, Any]:
    """The configuration that all variants share; the stock ones take their rows and their order from it."""
    on_cpu = arguments.device == "cpu"
    return {
        "run": f"{name}-{arguments.length}-{arguments.place}-{arguments.world}",
        "strategy": name.partition("-")[2],
        "base_model": str(arguments.folder / arguments.shape),
        "data": str(arguments.folder / f"{arguments.length}-{arguments.steps}.jsonl"),
        "precision": "fp32" if on_cpu else "fp16",
        "optim": "adamw_torch" if on_cpu else "adamw_8bit",
        "max_length": 4096,
        "max_steps": arguments.steps,
        "save_steps": arguments.steps,
        "eval_steps": 0,
        "validation_fraction": 0,
        "test_fraction": 0,
        "lora_dropout": arguments.dropout,
        "processes": arguments.world,
        "work_dir": str(arguments.folder / "work"),
        "store": str(arguments.folder / "store"),
    }


def multiprocessors() -> list[int]:
    """On how many the kernels of the forward and of the backward thread ran, by the register %smid."""
    import torch
    import triton
    import triton.language as tl

    @triton.jit
    def where(out, size: tl.constexpr):  # type: ignore[no-untyped-def]
        place = tl.arange(0, size)
        number = tl.inline_asm_elementwise("mov.u32 $0, %smid;", "=r,r", [place], dtype=tl.int32, is_pure=False, pack=1)
        busy = place.to(tl.float32)
        for _ in range(2000):
            busy = busy * 1.0001 + 1.0
        tl.store(out + tl.program_id(0) * size + place, number + (busy < -1e30).to(tl.int32))

    # Triton finds the names of a kernel among its module's globals.
    globals().update(tl=tl)

    def count() -> int:
        out = torch.full((2048, 128), -1, device="cuda", dtype=torch.int32)
        where[(2048,)](out, 128)
        torch.cuda.synchronize()
        return len(set(out[:, 0].tolist()))

    seen: list[int] = []

    class Backward(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Any) -> Any:
            return x * 1

        @staticmethod
        def backward(ctx: Any, *grads: Any) -> Any:
            seen.append(count())
            return grads[0]

    Backward.apply(torch.ones(4, device="cuda", requires_grad=True)).sum().backward()
    return [count(), *seen]


def confine(arguments: argparse.Namespace) -> list[int] | None:
    """The cap, a T4's attention kernels, and on the proxy the check of where this process runs."""
    import torch

    if arguments.device == "cpu":
        return None
    torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    total = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, arguments.cap * 2**30 / total))
    if arguments.place == "card":
        return None
    torch.backends.cuda.enable_flash_sdp(False)
    torch.backends.cuda.enable_cudnn_sdp(False)
    found = multiprocessors()
    if max(found) > MOST_SMS:
        sys.exit(f"not confined: forward and backward ran on {found} multiprocessors")
    return found


def ours(arguments: argparse.Namespace, name: str) -> dict[str, Any]:
    """In each process of the launch: train; rank 0 says what its events tell."""
    sms = confine(arguments)
    from kaggle_lib.runs import events
    from kaggle_lib.runs.folder import RunFolder
    from kaggle_lib.training import worker

    folder = RunFolder(arguments.folder / "work" / values_of(arguments, name)["run"])
    worker.main(folder.root)
    log = events.read_all(folder.events)
    steps = events.curve(log)
    counted = steps[arguments.warm :]
    calibrated = next((event for event in log if event["event"] == "calibration"), None)
    found = {
        "tokens": sum(step["tokens"] for step in counted),
        "seconds": sum(step["seconds"] for step in counted),
        "peak_gib": round((steps[-1]["memory"] or 0) / 2**30, 2),
        "losses": [round(step["loss"], 4) for step in steps],
        "warnings": [event["message"] for event in log if event["event"] == "warning"],
        "calibration": calibrated and {key: calibrated[key] for key in ("base", "fixed", "layer", "layers", "room")},
        "token_budget": calibrated and calibrated["token_budget"],
        "sms": sms,
    }
    return found | {"passes": passes(arguments, name, calibrated)} if arguments.world == 1 else found


def rows_and_steps(arguments: argparse.Namespace, name: str, budget: int | None = None) -> tuple[Any, Any, Any]:
    from dataclasses import replace

    from kaggle_lib.config import RunConfig
    from kaggle_lib.data import tokenise
    from kaggle_lib.data.steps import Steps, cut_of
    from kaggle_lib.strategies import common

    config = RunConfig.create(values_of(arguments, name))
    tokenizer = common.look_at(config, config.base_model)[0]
    rows = tokenise.tokenised(config, tokenizer, arguments.folder / "work" / ".cache").train
    cut = cut_of(config) if budget is None else replace(cut_of(config), token_budget=budget)
    lengths = [len(ids) for ids in rows["input_ids"]]
    return rows, Steps(config.seed, SAMPLES, lengths, cut, config.epochs, config.max_steps), config


def passes(arguments: argparse.Namespace, name: str, calibrated: dict[str, Any] | None) -> float | None:
    """Passes over the frozen weights in all counted steps: forward, backward, and what is recomputed."""
    if calibrated is None:
        return None
    from kaggle_lib.data.budget import Memory

    memory = Memory(*(calibrated[key] for key in ("base", "fixed", "layer", "layers")))
    _, steps, _ = rows_and_steps(arguments, name, calibrated["token_budget"])
    each = (steps.cost(batch) for step in range(arguments.warm, steps.total) for batch in steps.micro_batches(step))
    return sum(2 + memory.recomputed(tokens, calibrated["room"]) / memory.layers for tokens in each)


def stock_model(arguments: argparse.Namespace, name: str) -> Any:
    base, on_cpu = str(arguments.folder / arguments.shape), arguments.device == "cpu"
    import torch

    dtype = torch.float32 if on_cpu else torch.float16
    lora: dict[str, Any] = {"r": 16, "lora_alpha": 32, "lora_dropout": arguments.dropout, "bias": "none"}
    lora["target_modules"] = ["q_proj", "k_proj", "v_proj", "o_proj"]
    if name.endswith("unsloth"):
        from unsloth import FastLanguageModel

        model, _ = FastLanguageModel.from_pretrained(
            base, max_seq_length=4096, dtype=dtype, load_in_4bit=True, use_exact_model_name=True
        )
        # Its fallback on a CPU does not know the knob.
        knobs = {"checkpoint_skip_layers": arguments.keep_layers} if name.startswith("knobs") and not on_cpu else {}
        model = FastLanguageModel.get_peft_model(
            model, **lora, use_gradient_checkpointing="unsloth", random_state=1, **knobs
        )
        model.get_base_model().model._unsloth_allow_packed_overlength = True
        return model
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    nf4 = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )
    model = AutoModelForCausalLM.from_pretrained(
        base, dtype=dtype, device_map={"": arguments.device}, quantization_config=nf4
    )
    return get_peft_model(prepare_model_for_kbit_training(model), LoraConfig(**lora, task_type="CAUSAL_LM"))


def stock(arguments: argparse.Namespace, name: str) -> dict[str, Any]:
    on_cpu = arguments.device == "cpu"
    if name.endswith("unsloth"):
        os.environ["UNSLOTH_DISABLE_STATISTICS"] = "1"
        import unsloth  # noqa: F401  first of all
    import torch

    sms = confine(arguments)
    model = stock_model(arguments, name)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.data = parameter.data.float()  # else fp16's scaler refuses them
    model.train()
    rows, steps, config = rows_and_steps(arguments, name)
    if on_cpu:
        optimizer: Any = torch.optim.AdamW(trained, lr=config.learning_rate, weight_decay=0.0)
    else:
        import bitsandbytes as bnb

        optimizer = bnb.optim.AdamW8bit(trained, lr=config.learning_rate, weight_decay=0.0)
    scaler = torch.amp.GradScaler(arguments.device, enabled=not on_cpu)
    from transformers import get_scheduler

    from kaggle_lib.training import batch

    warmup = -(-int(1000 * config.warmup_ratio * steps.total) // 1000)
    schedule = get_scheduler(config.lr_scheduler_type, optimizer, max(1, warmup), steps.total)
    packed = name.startswith("knobs") and not on_cpu  # its fallback on a CPU has no packed attention
    losses, counted, seconds, micro = [], 0, 0.0, 0
    for step in range(steps.total):
        chosen = [rows[position] for position in steps.samples(step)]
        answer = torch.tensor(sum(batch.answer_tokens(row) for row in chosen), device=arguments.device)
        began, total = time.perf_counter(), 0.0
        for group in [chosen] if packed else [[row] for row in chosen]:
            made = batch.padding_free(group)
            segments = made.pop("segments")
            inputs = {key: value.to(arguments.device) for key, value in made.items()}
            if len(segments) > 1:
                inputs["packed_seq_lengths"] = torch.tensor(segments, dtype=torch.int32)
            else:
                inputs.pop("position_ids")
                inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
            torch.manual_seed(step)
            with torch.autocast("cuda", torch.float16, enabled=not on_cpu):
                loss = model(**inputs, num_items_in_batch=answer, use_cache=False).loss
            scaler.scale(loss).backward()
            total += loss.detach()
            micro += step >= arguments.warm
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(trained, config.max_grad_norm)
        scaler.step(optimizer)
        scaler.update()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        if not on_cpu:
            torch.cuda.synchronize()
        losses.append(round(float(total), 4))
        if step >= arguments.warm:
            seconds += time.perf_counter() - began
            counted += sum(len(row["input_ids"]) for row in chosen)
    kept = arguments.keep_layers / model.config.num_hidden_layers if packed else 0
    return {
        "tokens": counted,
        "seconds": seconds,
        "peak_gib": round(torch.cuda.max_memory_allocated() / 2**30, 2) if not on_cpu else 0.0,
        "losses": losses,
        "sms": sms,
        "passes": micro * (3 - kept),
    }


def one(arguments: argparse.Namespace) -> None:
    found = (ours if arguments.one.startswith("ours") else stock)(arguments, arguments.one)
    if int(os.environ.get("RANK", "0")) == 0:
        names = ("torch", "transformers", "peft", "trl", "bitsandbytes", "unsloth", "xformers")
        versions = {}
        for name in names:
            if name in sys.modules:
                versions[name] = importlib.metadata.version(name)
        print(RESULT + json.dumps({**found, "versions": versions}), flush=True)


def run(arguments: argparse.Namespace, name: str, card: str) -> dict[str, Any]:
    """One variant in processes of its own; what it told, or how it failed."""
    from kaggle_lib.report import speed
    from kaggle_lib.runs.prepare import prepare

    values = values_of(arguments, name)
    if name.startswith("ours"):
        for place in ("work", "store"):  # a fresh run each time
            shutil.rmtree(arguments.folder / place / values["run"], ignore_errors=True)
        prepare(values, lambda _: None)
    flags = ["--folder", arguments.folder, "--shape", arguments.shape, "--device", arguments.device, "--steps"]
    flags += [arguments.steps, "--warm", arguments.warm, "--cap", arguments.cap, "--dropout", arguments.dropout]
    flags += ["--keep-layers", arguments.keep_layers, "--one", name, "--length", arguments.length]
    flags += ["--place", arguments.place, "--world", arguments.world]
    launch = [sys.executable]
    if arguments.world > 1:
        launch += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={arguments.world}"]
        launch += ["--local-addr=127.0.0.1", "--max-restarts=0"]
    words = [*launch, __file__, *map(str, flags)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}
    if arguments.place == "proxy":
        environment |= mps(arguments.folder) | {"CUDA_MPS_ACTIVE_THREAD_PERCENTAGE": str(PERCENT)}
    ran = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    row: dict[str, Any] = {"variant": name, "lengths": arguments.length, "where": arguments.place}
    row |= {"gpus": arguments.world, "steps": arguments.steps - arguments.warm, "cap_gib": arguments.cap}
    row |= {"card": card, "date": time.strftime("%Y-%m-%d")}
    told = [line for line in ran.stdout.splitlines() if line.startswith(RESULT)]
    if ran.returncode or not told:
        return row | {"failed": (ran.stderr or ran.stdout).strip()[-1500:]}
    row |= json.loads(told[-1].removeprefix(RESULT))
    row["tokens_per_second"] = round(row["tokens"] / row["seconds"], 1)
    shape = speed.Shape.read(json.loads((arguments.folder / arguments.shape / "config.json").read_text()))
    if arguments.place == "proxy" and row.get("passes") is not None:
        row["t4_by_proxy"] = round(row["tokens"] / speed.moved(row["seconds"], row["passes"], shape, speed.PROXY), 1)
    if name.startswith("ours"):
        from kaggle_lib.config import RunConfig

        of_a_step = row["tokens"] / row["steps"]
        row["t4_by_formula"] = speed.projected(shape, RunConfig.create(values), of_a_step, arguments.world)
    return row


def mps(folder: Path) -> dict[str, str]:
    """The environment of a client of our own MPS server, which is started if it is not there."""
    pipe = folder / "mps"
    found = {"CUDA_MPS_PIPE_DIRECTORY": str(pipe), "CUDA_MPS_LOG_DIRECTORY": str(pipe)}
    if not pipe.exists():
        pipe.mkdir(parents=True)
        subprocess.run(["nvidia-cuda-mps-control", "-d"], env={**os.environ, **found}, check=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="for base model, corpora and runs; 20 GB at 8b")
    parser.add_argument("--shape", choices=sorted(shapes.SHAPES), default="8b")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--only", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--lengths", nargs="+", default=["mixture", "4096"], help="`mixture`, or tokens of every row")
    parser.add_argument("--where", nargs="+", choices=("card", "proxy"), default=["card", "proxy"])
    parser.add_argument("--gpus", type=int, nargs="+", default=[1], help="more than 1: only the `ours` variants")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--warm", type=int, default=2, help="steps that are not timed")
    parser.add_argument("--cap", type=float, default=14.5, help="GiB that PyTorch may allocate in a process")
    parser.add_argument("--dropout", type=float, default=0.05, help="0 to compare losses")
    parser.add_argument("--keep-layers", type=int, default=8, help="that knobs-unsloth does not recompute")
    for hidden in ("--one", "--length", "--place"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    parser.add_argument("--world", type=int, default=1, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        one(arguments)
        return
    import torch

    from kaggle_lib.data.mixture import mixture

    arguments.folder = arguments.folder.absolute()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    on_cpu = arguments.device == "cpu"
    card = "CPU" if on_cpu else torch.cuda.get_device_name()
    shapes.make_base(arguments.shape, arguments.folder / arguments.shape)
    if not on_cpu:
        torch.cuda.empty_cache()
    for length in arguments.lengths:
        path = arguments.folder / f"{length}-{arguments.steps}.jsonl"
        rows = SAMPLES * arguments.steps
        lengths = mixture(rows) if length == "mixture" else [int(int(length) * 1.3)] * rows
        shapes.make_rows(path, [min(one, 256) for one in lengths] if on_cpu else lengths)
    print(f"{card}, torch {torch.__version__}, {time.strftime('%Y-%m-%d')}: {' '.join(sys.argv)}\n", flush=True)
    print("| variant | lengths | where | GPUs | tokens/s | peak GiB | first loss | last loss |", flush=True)
    print("|---|---|---|---|---|---|---|---|", flush=True)
    rows_told = []
    wheres = ["card"] if on_cpu else arguments.where
    for length, place, world, name in itertools.product(arguments.lengths, wheres, arguments.gpus, arguments.only):
        if world > 1 and not name.startswith("ours"):
            continue
        arguments.length, arguments.place, arguments.world = length, place, world
        row = run(arguments, name, card)
        rows_told.append(row)
        losses = row.get("losses", ["failed"])
        shown = [name, length, place, world, row.get("tokens_per_second", "failed"), row.get("peak_gib", "")]
        print(f"| {' | '.join(map(str, [*shown, losses[0], losses[-1]]))} |", flush=True)
        with (arguments.folder / "speed.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")
    print("\n" + "\n".join(json.dumps(row) for row in rows_told), flush=True)
    if (arguments.folder / "mps").exists():
        environment = {**os.environ, **mps(arguments.folder)}
        subprocess.run(["nvidia-cuda-mps-control"], input="quit\n", text=True, env=environment, check=False)
        shutil.rmtree(arguments.folder / "mps", ignore_errors=True)


if __name__ == "__main__":
    main()
