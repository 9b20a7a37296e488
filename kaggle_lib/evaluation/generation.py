"""Answers by one fixed way of decoding, so that two models differ by their weights alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import GenerationConfig, StoppingCriteriaList

from kaggle_lib.config import RunConfig
from kaggle_lib.data import chat

# Llama-3.1's tokenizer spends 7.2 to 7.7 tokens on a Bengali word; a budget of 128 would end after about 15 words.
TOKENS_PER_WORD = 7
# A short reference ("yes, of course") still leaves room for one whole sentence.
LEAST_TOKENS = 64

# Greedy. All is set, because what is left out would come from the base model's own generation_config.json, and
# Llama's samples. `no_repeat_ngram_size` breaks Bengali letters, whose bytes repeat.
DECODING: dict[str, Any] = {
    "do_sample": False,
    "num_beams": 1,
    "temperature": 1.0,
    "top_p": 1.0,
    "top_k": 50,
    "repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "min_new_tokens": 0,
}


@dataclass(frozen=True)
class Answer:
    """A generated answer. `ended`: by a stop token, not by the budget; `letter_cut`: half a letter was trimmed."""

    text: str
    tokens: int
    ended: bool
    letter_cut: bool


def new_token_budget(reference: str, config: RunConfig) -> int:
    """Most new tokens for an answer to what `reference` answered: `answer_tokens`, or 7 a word, at least 64.

    Never above half of `max_length`, so that the prompt keeps the other half.
    """
    wanted = config.answer_tokens or max(LEAST_TOKENS, TOKENS_PER_WORD * len(reference.split()))
    return min(wanted, config.max_length // 2)


def describe(config: RunConfig, tokenizer: Any) -> dict[str, Any]:
    """All that decides an answer beside the weights, for the result."""
    return {
        **DECODING,
        "method": "greedy",
        "stop_token_ids": chat.stop_ids(tokenizer),
        "max_new_tokens": str(new_token_budget("", config))
        if config.answer_tokens
        else f"{TOKENS_PER_WORD} a word of the reference, at least {LEAST_TOKENS}, at most {config.max_length // 2}",
    }


def answers(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    budgets: Sequence[int],
    beat: Callable[[], None] | None = None,
) -> list[Answer]:
    """The model's answers to `prompts` (ids that end with the assistant's header), generated as one batch.

    In fp32 on a CPU each is what it would be alone, whatever is in the batch beside it. `budgets`: most new tokens of
    each. `beat` is called after each token; what it raises ends the batch.
    """
    device = next(model.parameters()).device
    stops, pad = chat.stop_ids(tokenizer), chat.pad_id(tokenizer)
    width = max(len(prompt) for prompt in prompts)
    # Pads stand to the left, so that every answer follows its own prompt's last token.
    ids = torch.tensor([[*[pad] * (width - len(prompt)), *prompt] for prompt in prompts], device=device)
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=device)
    most = torch.tensor(budgets, device=device)

    def spent(input_ids: torch.Tensor, _scores: Any, **_: Any) -> torch.Tensor:
        if beat:
            beat()
        return most <= input_ids.shape[1] - width  # (batch,)

    with torch.no_grad():
        output = model.generate(
            input_ids=ids,
            attention_mask=mask,
            generation_config=GenerationConfig(
                **DECODING,
                max_new_tokens=max(budgets),
                eos_token_id=stops,
                pad_token_id=pad,
                use_cache=True,
            ),
            stopping_criteria=StoppingCriteriaList([spent]),
        )
    # The prompt is cut off by its length: its words may stand in the answer as well.
    new = output[:, width:].tolist()
    return [_answer(tokenizer, one[:budget], stops) for one, budget in zip(new, budgets, strict=True)]


def answer(
    model: Any, tokenizer: Any, prompt: Sequence[int], max_new_tokens: int, beat: Callable[[], None] | None = None
) -> Answer:
    """The model's answer to one prompt."""
    return answers(model, tokenizer, [prompt], [max_new_tokens], beat)[0]


def batches(lengths: Sequence[int], size: int) -> list[list[int]]:
    """Positions in batches of `size` at most, by length, so that little is padded; the longest first."""
    order = sorted(range(len(lengths)), key=lambda position: -lengths[position])
    return [order[start : start + size] for start in range(0, len(order), size)]


def _answer(tokenizer: Any, new: Sequence[int], stops: Sequence[int]) -> Answer:
    """The answer of `new` ids; pads follow a stop token where another answer of the batch was longer."""
    end = next((place for place, token in enumerate(new) if token in stops), None)
    said = new[:end]
    text = tokenizer.decode(said, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    text, letter_cut = trim_half_letter(text) if end is None else (text, False)
    return Answer(text=text, tokens=len(said) + (end is not None), ended=end is not None, letter_cut=letter_cut)


def trim_half_letter(text: str) -> tuple[str, bool]:
    """`text` without the letter whose bytes the budget cut through, and whether there was one.

    Such a letter decodes to one U+FFFD at the very end; any other U+FFFD is the model's own doing and stays.
    """
    return (text[:-1], True) if text.endswith("\ufffd") else (text, False)
