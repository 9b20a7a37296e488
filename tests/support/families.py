"""Tiny models with random weights of other architectures, with a tokenizer of their family's kind and its own template.

The templates print what the family's do for conversations of text, system prompts and generation prompts included.
"""

from pathlib import Path
from typing import Any

TEXT = [
    "আমি ভালো নেই। কী হয়েছে? কষ্ট, ক্ষমা, র‍্যাব 😀 গিয়েছিলাম।",
    "Be brief. You are Qwen, created by Alibaba Cloud. user model assistant system think\n\n1 2 3 4 5 6 7 8 9",
]
QWEN = (
    "{%%- set asked = messages[0].role == 'system' %%}"
    "%s"
    "{%%- for message in messages %%}{{- '<|im_start|>' + message.role + '\\n' }}"
    "%s{{- message.content + '<|im_end|>\\n' }}{%%- endfor %%}"
    "{%%- if add_generation_prompt %%}{{- '<|im_start|>assistant\\n' }}%s{%%- endif %%}"
)
DEFAULT = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."
THINKING = "'<think>\\n\\n</think>\\n\\n'"
GEMMA = (
    "{{- bos_token }}%s"
    "{%%- for message in messages if message.role != 'system' %%}"
    "{{- '<start_of_turn>' + ('model' if message.role == 'assistant' else 'user') + '\\n' }}%s"
    "{{- message.content | trim + '<end_of_turn>\\n' }}{%%- endfor %%}"
    "{%%- if add_generation_prompt %%}{{- '<start_of_turn>model\\n' }}{%%- endif %%}"
)
TEMPLATES = {
    "qwen2": QWEN
    % (f"{{%- if not asked %}}{{{{- '<|im_start|>system\\n{DEFAULT}<|im_end|>\\n' }}}}{{%- endif %}}", "", ""),
    "qwen3": QWEN
    % (
        "",
        f"{{%- if loop.last and message.role == 'assistant' %}}{{{{- {THINKING} }}}}{{%- endif %}}",
        f"{{%- if enable_thinking is false %}}{{{{- {THINKING} }}}}{{%- endif %}}",
    ),
    "gemma2": GEMMA
    % ("{%- if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{%- endif %}", ""),
    "gemma3": GEMMA
    % ("", "{%- if messages[0].role == 'system' and loop.first %}{{- messages[0].content + '\\n\\n' }}{%- endif %}"),
    "mistral": (
        "{{- bos_token }}{%- for message in messages if message.role != 'system' %}"
        "{%- if message.role == 'user' %}{{- '[INST]' }}"
        "{%- if loop.last and messages[0].role == 'system' %}{{- messages[0].content + '\\n\\n' }}{%- endif %}"
        "{{- message.content + '[/INST]' }}{%- else %}{{- message.content + eos_token }}{%- endif %}{%- endfor %}"
    ),
}
FAMILIES = tuple(TEMPLATES)


def tokenizer_of(family: str) -> Any:
    """A fast tokenizer: Qwen's and Mistral's of bytes, Gemma's of text with bytes to fall back to."""
    from transformers import PreTrainedTokenizerFast

    if family.startswith("gemma"):
        bpe, special = _of_text()
    else:
        bpe, special = _of_bytes(family)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, clean_up_tokenization_spaces=False, chat_template=TEMPLATES[family], **special
    )


def _of_bytes(family: str) -> tuple[Any, dict[str, str]]:
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    if family == "mistral":
        control = ["<unk>", "<s>", "</s>", "[INST]", "[/INST]", "<pad>"]
        special = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    else:
        control = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
        special = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    bpe = Tokenizer(models.BPE())
    bpe.normalizer = normalizers.NFC()
    words = r"[^\r\n\p{L}\p{N}]?\p{L}[\p{L}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(words), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        TEXT,
        trainers.BpeTrainer(vocab_size=400, special_tokens=control, initial_alphabet=alphabet, show_progress=False),
    )
    if family == "qwen3":
        bpe.add_tokens([AddedToken(name, special=False, normalized=False) for name in ("<think>", "</think>")])
    return bpe, special


def _of_text() -> tuple[Any, dict[str, str]]:
    import json

    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

    first = ["<pad>", "<eos>", "<bos>", "<unk>"]
    bytes_ = [f"<0x{number:02X}>" for number in range(256)]
    draft = Tokenizer(models.BPE())
    draft.normalizer = normalizers.Replace(" ", "▁")
    draft.train_from_iterator(
        TEXT[1:] * 2, trainers.BpeTrainer(vocab_size=200, special_tokens=first, show_progress=False)
    )
    made = json.loads(draft.to_str())["model"]
    vocab = dict(made["vocab"])
    for name in bytes_:
        vocab[name] = len(vocab)
    merges = [tuple(pair) for pair in made["merges"]]
    bpe = Tokenizer(models.BPE(vocab=vocab, merges=merges, byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    bpe.normalizer = normalizers.Replace(" ", "▁")
    bpe.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    bpe.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    bpe.add_special_tokens([*first, "<start_of_turn>", "<end_of_turn>"])
    bpe.add_tokens([AddedToken("\n" * count, special=False, normalized=False) for count in range(1, 4)])
    bpe.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A <bos> $B", special_tokens=[("<bos>", vocab["<bos>"])]
    )
    return bpe, {"pad_token": "<pad>", "eos_token": "<eos>", "bos_token": "<bos>", "unk_token": "<unk>"}


def make(family: str, folder: Path) -> Path:
    """A folder with config, weights and tokenizer, as it comes from the Hub. Windows are 12 tokens long."""
    import torch
    import transformers

    tokenizer = tokenizer_of(family)
    shape = {
        "vocab_size": (len(tokenizer) + 63) // 64 * 64,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 4096,
        "initializer_range": 0.2,
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": tokenizer.bos_token_id,
    }
    more = {
        "qwen2": {"tie_word_embeddings": True, "head_dim": 8},
        "qwen3": {"tie_word_embeddings": True},
        "gemma2": {"sliding_window": 12, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 5.0},
        "gemma3": {"sliding_window": 12, "layer_types": ["sliding_attention", "full_attention"]},
        "mistral": {"sliding_window": 12},
    }[family]
    if family.startswith("gemma"):
        more["query_pre_attn_scalar"] = 16
    name = {"gemma3": ("Gemma3TextConfig", "Gemma3ForCausalLM")}.get(
        family, (f"{family.capitalize()}Config", f"{family.capitalize()}ForCausalLM")
    )
    torch.manual_seed(0)
    model = getattr(transformers, name[1])(getattr(transformers, name[0])(**{**shape, **more}))
    with torch.no_grad():  # what is nothing or one at the start would hide that it is left out
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.3 * torch.randn(parameter.shape))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
