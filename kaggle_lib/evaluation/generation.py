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
    """Most new tokens for an answer to what `reference` answered: 7 a word, at least 64.

    Never above half of `max_length`, so that the prompt keeps the other half.
    """
    return min(max(LEAST_TOKENS, TOKENS_PER_WORD * len(reference.split())), config.max_length // 2)


def describe(config: RunConfig, tokenizer: Any) -> dict[str, Any]:
    """All that decides an answer beside the weights, for the result."""
    return {
        **DECODING,
        "method": "greedy",
        "stop_token_ids": chat.stop_ids(tokenizer),
        "max_new_tokens": f"{TOKENS_PER_WORD} a word of the reference, at least {LEAST_TOKENS}, "
        f"at most {config.max_length // 2}",
    }


def _alive(beat: Callable[[], None]) -> Callable[..., torch.Tensor]:
    """A stopping criterion that stops nothing and says after each token that generation is alive."""

    def criterion(input_ids: torch.Tensor, _scores: Any, **_: Any) -> torch.Tensor:
        beat()
        return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)

    return criterion


def answer(
    model: Any, tokenizer: Any, prompt: Sequence[int], max_new_tokens: int, beat: Callable[[], None] | None = None
) -> Answer:
    """The model's answer to `prompt` (ids that end with the assistant's header). `beat` is called after each token."""
    device = next(model.parameters()).device
    stops = chat.stop_ids(tokenizer)
    ids = torch.tensor([list(prompt)], device=device)
    with torch.no_grad():
        output = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            generation_config=GenerationConfig(
                **DECODING,
                max_new_tokens=max_new_tokens,
                eos_token_id=stops,
                pad_token_id=chat.pad_id(tokenizer),
                use_cache=True,
            ),
            stopping_criteria=StoppingCriteriaList([_alive(beat)] if beat else []),
        )
    # The prompt is cut off by its length: its words may stand in the answer as well.
    new = output[0, len(prompt) :].tolist()
    ended = bool(new) and new[-1] in stops
    text = tokenizer.decode(new[:-1] if ended else new, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    text, letter_cut = (text, False) if ended else trim_half_letter(text)
    return Answer(text=text, tokens=len(new), ended=ended, letter_cut=letter_cut)


def trim_half_letter(text: str) -> tuple[str, bool]:
    """`text` without the letter whose bytes the budget cut through, and whether there was one.

    Such a letter decodes to one U+FFFD at the very end; any other U+FFFD is the model's own doing and stays.
    """
    return (text[:-1], True) if text.endswith("\ufffd") else (text, False)
