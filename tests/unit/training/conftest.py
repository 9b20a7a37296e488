"""A tiny Llama with LoRA in this process, and a trainer over rows made up by seed."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def tiny():
    """(make_model, tokenizer): `make_model()` gives a fresh adapted copy of the same random base model."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    from kaggle_lib.strategies import peft
    from kaggle_lib.training import kernels

    names = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = [*names, "<|finetune_right_pad_id|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(["আমি ভালো আছি তুমি কেমন আছো"], trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token=names[0], eos_token=names[4], pad_token=special[5]
    )

    def make_model(config):
        torch.manual_seed(0)
        base = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=640,
                hidden_size=64,
                intermediate_size=128,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=2,
                initializer_range=0.1,
                attn_implementation=kernels.ATTENTION,
            )
        )
        base.requires_grad_(False)
        return peft.adapt(base, config)

    return make_model, tokenizer


def rows_of(lengths, seed=1):
    """Rows of random ids: a prompt of three to ten tokens, and `lengths` answer tokens, the last of them id 4."""
    import torch
    from datasets import Dataset

    generator = torch.Generator().manual_seed(seed)

    def draw(count):
        return torch.randint(6, 560, (count,), generator=generator).tolist()

    rows = []
    for number, length in enumerate(lengths):
        prompt, answer = draw(3 + number % 8), [*draw(length - 1), 4]
        rows.append(
            {
                "id": 100 + number,
                "input_ids": prompt + answer,
                "labels": [-100] * len(prompt) + answer,
                "answer_bytes": 3 * length,
            }
        )
    return Dataset.from_list(rows)


@pytest.fixture
def make_trainer(tiny, tmp_path):
    """`make_trainer(lengths, name="run", **values)`: a RunTrainer ready to train, its run folder at `.folder`."""
    from kaggle_lib.config import RunConfig
    from kaggle_lib.data.steps import Steps, cut_of
    from kaggle_lib.evaluation import likelihood
    from kaggle_lib.runs.events import EventLog
    from kaggle_lib.runs.folder import RunFolder
    from kaggle_lib.strategies import peft
    from kaggle_lib.training.memory import Recomputation
    from kaggle_lib.training.trainer import RunTrainer

    make_model, tokenizer = tiny

    def make(lengths, name="run", model=None, **values):
        given = {"precision": "fp32", "optim": "adamw_torch", "eval_steps": 0, "save_steps": 1000, **values}
        config = RunConfig.create({"run": name, "base_model": "some/base", "data": "sample", **given})
        folder = RunFolder(Path(tmp_path / name))
        folder.create()
        rows = rows_of(lengths)
        counts = [len(row["input_ids"]) for row in rows]
        steps = Steps(config.seed, config.train_batch_size, counts, cut_of(config), config.epochs, config.max_steps)

        def score(model, rows):
            return likelihood.score_rows(model, rows, pad_id=5, eot_id=4, max_tokens=512)

        model = model or make_model(config)
        return RunTrainer(
            model,
            tokenizer,
            config=config,
            folder=folder,
            log=EventLog(folder.events, "session"),
            steps=steps,
            rows=rows,
            validation=list(rows_of([7, 20, 33], seed=2)) if config.eval_steps else None,
            score=score,
            recomputation=Recomputation(peft, model, config, on_cpu=True),
            manifest={
                "total_steps": steps.total,
                "fingerprint": "f",
                "lineage": "l",
                "session": "session",
                "versions": {},
                "cut": steps.cut.to_json(),
            },
            on_cpu=True,
        )

    return make
