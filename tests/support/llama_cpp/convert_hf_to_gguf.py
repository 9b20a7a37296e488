"""Stands for llama.cpp's converter, and takes the same words: a Llama with a byte-level tokenizer."""

import argparse
import json
from pathlib import Path

import gguf
import numpy as np
from safetensors.numpy import load_file
from transformers import AutoTokenizer

TYPES = {"f16": gguf.GGMLQuantizationType.F16, "q8_0": gguf.GGMLQuantizationType.Q8_0}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("--outfile", required=True)
    parser.add_argument("--outtype", required=True, choices=TYPES)
    asked = parser.parse_args()
    config = json.loads((asked.model / "config.json").read_text())
    writer = gguf.GGUFWriter(asked.outfile, "llama")
    writer.add_name(asked.model.name)
    writer.add_vocab_size(config["vocab_size"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config.get("rope_theta") or config["rope_parameters"]["rope_theta"])
    writer.add_rope_dimension_count(config["hidden_size"] // config["num_attention_heads"])
    add_tokenizer(writer, asked.model, config["vocab_size"])
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config["num_hidden_layers"])
    for path in sorted(asked.model.glob("model*.safetensors")):
        for name, tensor in load_file(path).items():
            heads = {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"}.get(name.split(".")[-2])
            if heads:  # llama.cpp rotates neighbouring pairs, transformers the two halves
                shape = (config[heads], 2, tensor.shape[0] // config[heads] // 2, tensor.shape[1])
                tensor = tensor.reshape(shape).swapaxes(1, 2).reshape(tensor.shape)
            kind = TYPES[asked.outtype] if tensor.ndim > 1 else gguf.GGMLQuantizationType.F32
            data = gguf.quants.quantize(tensor.astype(np.float32), kind)
            writer.add_tensor(names.get_name(name, try_suffixes=(".weight",)), data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def add_tokenizer(writer: gguf.GGUFWriter, model: Path, size: int) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model)
    control = set(tokenizer.added_tokens_decoder)
    tokens = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    tokens += [f"[PAD{number}]" for number in range(len(tokens), size)]
    kinds = [
        gguf.TokenType.CONTROL
        if number in control
        else gguf.TokenType.NORMAL
        if number < len(tokenizer)
        else gguf.TokenType.UNUSED
        for number in range(size)
    ]
    merges = json.loads((model / "tokenizer.json").read_text())["model"]["merges"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("llama-bpe")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges([" ".join(pair) if isinstance(pair, list) else pair for pair in merges])
    writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.convert_tokens_to_ids("<|eot_id|>"))
    writer.add_chat_template(tokenizer.chat_template)


if __name__ == "__main__":
    main()
