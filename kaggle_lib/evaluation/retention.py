"""What the tuning has cost: reading comprehension in Bengali, base beside tuned.

Belebele (Bandarkar et al. 2024): a passage, a question, four options. The question is asked with all four in the run's
own template, and the option whose letter is the likeliest next token counts. Chance is 25 %.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from kaggle_lib.config import RunConfig
from kaggle_lib.data import chat
from kaggle_lib.data.read import Message
from kaggle_lib.data.steps import mix
from kaggle_lib.errors import DataError

ROWS = 300
LETTERS = "ABCD"
ASKED, ASKED_ELSEWHERE = "সঠিক উত্তরের অক্ষর (A, B, C বা D):", "The letter of the right answer (A, B, C or D):"
FIELDS = ("flores_passage", "question", *(f"mc_answer{number}" for number in range(1, 5)), "correct_answer_num")


def load(path: Path) -> list[dict[str, str]]:
    """The file's 300 rows that are asked, always the same ones; all where there are fewer. `id`: the row's number.

    Raises DataError where the file is missing or is not of Belebele's schema.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"retention: {path} cannot be read: {error}.", todo="Check the path, or set it off.") from None
    rows = []
    for number, line in enumerate(lines):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            row = {name: str(row[name]) for name in FIELDS}
            right = int(row["correct_answer_num"])
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"retention: {path}, line {number + 1}: {error!r} is not of Belebele's schema.") from None
        if right not in (1, 2, 3, 4):
            raise DataError(f"retention: {path}, line {number + 1}: correct_answer_num is {right}, not 1 to 4.")
        rows.append({**row, "id": f"retention-{number}"})
    if not rows:
        raise DataError(f"retention: {path} has no rows.")
    drawn = sorted(range(len(rows)), key=lambda place: mix(0, "retention", place))[:ROWS]
    return [rows[place] for place in sorted(drawn)]


def prompt(row: dict[str, str], tokenizer: Any, config: RunConfig) -> list[int]:
    """The ids of the question with its four options, ending with the assistant's header."""
    options = [f"{letter}. {row[f'mc_answer{number}']}" for number, letter in enumerate(LETTERS, start=1)]
    asked = ASKED if config.language == "bn" else ASKED_ELSEWHERE
    text = "\n".join([row["flores_passage"], "", row["question"], *options, "", asked])
    return list(chat.prompt_ids([Message("user", text)], tokenizer, config, room=1))


def options(model: Any, tokenizer: Any, prompts: Sequence[Sequence[int]]) -> list[list[float]]:
    """log p of each of the four letters as the next token of each prompt: (prompts, 4), in nats."""
    letters = [tokenizer(letter, add_special_tokens=False)["input_ids"][0] for letter in LETTERS]
    device, width = next(model.parameters()).device, max(map(len, prompts))
    # Pads to the left, so that the last position is every prompt's own last token.
    padded = [[*[chat.pad_id(tokenizer)] * (width - len(one)), *one] for one in prompts]
    mask = torch.tensor([[0] * (width - len(one)) + [1] * len(one) for one in prompts], device=device)
    with torch.no_grad():
        logits = model(
            input_ids=torch.tensor(padded, device=device),
            attention_mask=mask,
            position_ids=(mask.cumsum(1) - 1).clamp(min=0),
            use_cache=False,
            logits_to_keep=1,
        ).logits[:, -1]
    found: list[list[float]] = logits.float().log_softmax(-1)[:, letters].double().cpu().tolist()
    return found


def verdict(row: dict[str, str], logs: Sequence[float]) -> dict[str, Any]:
    """The letter that was chosen (the first of equal ones) and whether it is right."""
    best = max(range(4), key=lambda place: (logs[place], -place))
    return {"chosen": LETTERS[best], "right": best + 1 == int(row["correct_answer_num"]), "log_p": list(logs)}
