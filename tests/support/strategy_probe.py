"""What a strategy loads and adapts, as JSON: `python -m support.strategy_probe STRATEGY FOLDER [BASE_MODEL]`.

On the GPU, where torch sees one, in fp16; else on the CPU in fp32.

A process of its own for each, for Unsloth changes the libraries of the whole process.
"""

import hashlib
import json
import os
import shutil
import sys
from pathlib import Path


def digest(tensors):
    """sha256 over names, types and bytes."""
    import torch

    found = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        raw = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode() + raw)
    return found.hexdigest()


def refusals(strategy, model, config, folder):
    """What Unsloth would do in another way than asked: the messages."""
    import torch

    from kaggle_lib.errors import UserError
    from kaggle_lib.strategies.sample import SAMPLE_DATA, TOKENIZER_FILES

    other = folder / "other"
    other.mkdir()
    for file in TOKENIZER_FILES:
        shutil.copy(SAMPLE_DATA / file, other)
    (other / "config.json").write_text(json.dumps({"model_type": "gemma"}))
    windowed = folder / "windowed"
    shutil.copytree(other, windowed)
    (windowed / "config.json").write_text(json.dumps({"model_type": "mistral", "sliding_window": 64}))

    def changed(**values):
        return config.model_copy(update=values)

    said = []
    for act in (
        lambda: strategy._as_asked(model, changed(quantization="none")),
        lambda: strategy._as_asked(model, changed(precision="bf16")),
        lambda: strategy.load(changed(base_model=str(other)), model.device, folder),
        lambda: strategy.load(changed(base_model=str(windowed)), model.device, folder),
        lambda: strategy.check(changed(precision="fp32"), torch.device("cuda", 0)),
    ):
        try:
            act()
        except UserError as error:
            said.append(str(error))
    return said


def main(name, folder, base_model):
    from kaggle_lib import strategies
    from kaggle_lib.config import RunConfig
    from kaggle_lib.presets import read_preset

    values = {"strategy": name, "lora_dropout": 0.1, "base_model": base_model, "work_dir": folder}
    values = {**read_preset("tiny-cpu"), **values}
    strategy = strategies.get(RunConfig.create(values))

    import torch

    from kaggle_lib.data import tokenise
    from kaggle_lib.strategies import adapter
    from kaggle_lib.training import batch

    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    config = RunConfig.create(values | ({"precision": "fp16"} if device.type == "cuda" else {}))
    strategy.check(config, device)
    model, tokenizer = strategy.load(config, device, folder / "cache")
    found = {
        "base": digest(model.state_dict()),
        "frozen": not any(p.requires_grad for p in model.parameters()),
        "quantised": sum(type(module).__name__ == "Linear4bit" for module in model.modules()),
        "dtypes": sorted({str(p.dtype) for p in model.parameters()}),
        "template": hashlib.sha256(tokenizer.chat_template.encode()).hexdigest(),
        "pad": [tokenizer.pad_token_id, model.config.pad_token_id, model.generation_config.pad_token_id],
        "stops": model.generation_config.eos_token_id,
    }
    if name == "unsloth":
        found["refusals"] = refusals(strategy, model, config, folder)
    model = strategy.adapt(model, config)
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    found |= {
        "trainable": {name: [list(p.shape), str(p.dtype)] for name, p in trainable.items()},
        "start": digest(adapter.state(model)),
    }
    adapter.write(model, config, folder)
    (found["adapter_files"], found["adapter_config"]) = (
        sorted(path.name for path in folder.iterdir() if path.is_file()),
        json.loads((folder / adapter.CONFIG).read_text()),
    )
    rows = tokenise.tokenised(config, tokenizer, folder / "cache").train
    found["rows"] = hashlib.sha256(json.dumps(rows[:]).encode()).hexdigest()
    # An adapter that does something: B is zero at its start.
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in trainable.values():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator).to(device))

    def inputs(*samples):
        made = batch.padding_free(samples)
        return {key: value.to(device) if torch.is_tensor(value) else value for key, value in made.items()}

    half = torch.autocast("cuda", torch.float16, enabled=device.type == "cuda")

    def gradients(layers):
        strategy.recompute(model, layers)
        model.train()
        model.zero_grad()
        torch.manual_seed(7)
        with half:
            loss = model(**inputs(rows[0], rows[1], rows[2]), use_cache=False, num_items_in_batch=50).loss
        loss.backward()
        return loss.item(), digest({name: p.grad for name, p in trainable.items()})

    def isolated(collate):
        """Of B's loss beside A, in the same micro-batch: the largest gradient to A's inputs of the first layer and to
        B's, and whether other tokens of the same length in A leave the loss as it is, to the bit."""
        first, second, met = rows[0], rows[1], []
        length = len(first["input_ids"])

        def watch(_, positional, named):
            hidden = named["hidden_states"] if "hidden_states" in named else positional[0]
            met.append(hidden.detach().requires_grad_())
            if "hidden_states" in named:
                return positional, {**named, "hidden_states": met[-1]}
            return (met[-1], *positional[1:]), named

        def loss(ids):
            silent = {**first, "input_ids": ids, "labels": [batch.IGNORED] * length}
            made = collate([silent, second])
            made = {key: value.to(device) if torch.is_tensor(value) else value for key, value in made.items()}
            with half:
                return model(**made, use_cache=False, num_items_in_batch=50).loss

        model.eval()
        strategy.recompute(model, 0)
        handle = model.get_base_model().model.layers[0].register_forward_pre_hook(watch, with_kwargs=True)
        told = loss(first["input_ids"])
        told.backward()
        handle.remove()
        model.zero_grad()
        grad = met[0].grad
        mine, theirs = (grad[:, :length], grad[:, length:]) if len(grad) == 1 else (grad[:1], grad[1:])
        return [mine.abs().max().item(), theirs.abs().max().item() > 0, loss(first["input_ids"][::-1]).equal(told)]

    def by_positions(samples):
        return {key: value for key, value in batch.padding_free(samples).items() if key != "segments"}

    found["isolated"] = {
        "packed": isolated(batch.padding_free),
        "padded": isolated(lambda samples: batch.padded(samples, tokenizer.pad_token_id)),
    }
    if name == "peft":  # on a GPU Unsloth's attention goes by the lengths alone
        found["isolated"]["by positions"] = isolated(by_positions)

    found["gradients"] = [gradients(layers) for layers in (0, 2, None)]
    model.eval()
    with torch.no_grad(), half:

        def logits(*packed):
            return model(**{k: v for k, v in inputs(*packed).items() if k != "labels"}, use_cache=False).logits

        # Behind other tokens of the same length: alone, a GPU's kernels would round otherwise.
        length = len(rows[0]["input_ids"])
        other = {**rows[0], "input_ids": rows[0]["input_ids"][::-1]}
        behind, behind_other = logits(rows[0], rows[1])[:, length:], logits(other, rows[1])[:, length:]
        found["leak"] = not torch.equal(behind, behind_other)
        alone = logits(rows[1])
        found["logits"] = alone.double().logsumexp(-1).sum().item()
        model = strategy.for_inference(model)
        prompt = torch.tensor([rows[0]["input_ids"][:20]], device=device)
        told = {"do_sample": False, "pad_token_id": tokenizer.pad_token_id, "max_new_tokens": 12}
        found["generated"] = model.generate(prompt, attention_mask=torch.ones_like(prompt), **told)[0].tolist()
    found["compiled"] = os.environ["UNSLOTH_COMPILE_LOCATION"]
    found["imported"] = sorted({module.partition(".")[0] for module in sys.modules} & {"unsloth", "unsloth_zoo"})
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), *(sys.argv[3:] or ["sample"]))
