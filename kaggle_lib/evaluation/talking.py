"""The chat's worker: one answer after another, letter by letter. JSON lines on standard input and output.

First comes `config`, `adapter` (a folder) and `cache`; the reply is `ready`. Then, as often as one likes, `messages`
([role, content]), `side` (base, tuned), `tokens` (most new ones) and `temperature` (0: greedy); the replies are `piece`
and, at the end, `ended` (by a stop token). SIGINT ends the answer that is being given, and nothing else.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import regex

from kaggle_lib.config import RunConfig
from kaggle_lib.errors import UserError

# Letters as people count them. A hasanta of any script, with or without a joiner behind it, ties one to the next.
CLUSTER = regex.compile(r"\X")
TIED = regex.compile(r"\p{Canonical_Combining_Class=9}[\u200c\u200d]?$")


class Letters:
    """Turns token ids into text that grows by whole letters: `add` returns what can be shown, `rest` what is left.

    Llama's tokens are pieces of Bengali letters, so a letter is held back until the next one has begun.
    """

    def __init__(self, decode: Callable[[list[int]], str]) -> None:
        self._decode = decode
        self._ids: list[int] = []
        self._shown = ""

    def add(self, token: int) -> str:
        self._ids.append(token)
        text = self._decode(self._ids)
        if text.endswith("\ufffd"):  # the bytes of a letter that is not complete
            return ""
        clusters = CLUSTER.findall(text)[:-1]
        while clusters and TIED.search(clusters[-1]):
            clusters.pop()
        return self._show("".join(clusters))

    def rest(self) -> str:
        """What is left, without a letter that was cut in half."""
        return self._show(self._decode(self._ids).removesuffix("\ufffd"))

    def _show(self, text: str) -> str:
        # Decoding more never changes what came before but for an unfinished end, which is not shown.
        new = text[len(self._shown) :]
        self._shown = max(self._shown, text, key=len)
        return new


def main() -> None:
    """Serve until standard input ends."""
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # libraries that print must not stand between the replies

    def reply(**values: Any) -> None:
        print(json.dumps(values, ensure_ascii=False), file=replies, flush=True)

    stopped: list[int] = []
    signal.signal(signal.SIGINT, lambda number, _: stopped.append(number))
    asked = (json.loads(line) for line in iter(sys.stdin.readline, ""))
    try:
        first = next(asked)
        config = RunConfig.from_json(first["config"])
        from kaggle_lib import strategies

        model, tokenizer = strategies.tuned(config, Path(first["adapter"]), Path(first["cache"]))
        reply(ready=True)
        for one in asked:
            stopped.clear()
            try:
                reply(ended=_answer(model, tokenizer, config, one, lambda piece: reply(piece=piece), stopped))
            except UserError as error:
                reply(error=str(error))
    except UserError as error:
        reply(error=str(error))


def _answer(
    model: Any,
    tokenizer: Any,
    config: RunConfig,
    asked: dict[str, Any],
    show: Callable[[str], None],
    stopped: list[int],
) -> bool:
    """Generate one answer, showing each piece; True where the model ended it by itself."""
    import torch
    from transformers import GenerationConfig, StoppingCriteriaList

    from kaggle_lib.data import chat
    from kaggle_lib.data.read import Message
    from kaggle_lib.evaluation.generation import DECODING

    stops = chat.stop_ids(tokenizer)
    messages = [Message(*one) for one in asked["messages"]]
    prompt = chat.prompt_ids(messages, tokenizer, config, room=asked["tokens"])
    ids = torch.tensor([prompt], device=next(model.parameters()).device)
    letters = Letters(lambda ids: tokenizer.decode(ids, clean_up_tokenization_spaces=False))
    ended = False

    def each(input_ids: torch.Tensor, _scores: Any, **_: Any) -> torch.Tensor:
        nonlocal ended
        token = int(input_ids[0, -1])
        ended = token in stops
        if not ended and (piece := letters.add(token)):
            show(piece)
        return torch.full((1,), bool(stopped), device=input_ids.device)

    sampling = {"do_sample": True, "temperature": asked["temperature"]} if asked["temperature"] else {}
    with torch.no_grad(), model.disable_adapter() if asked["side"] == "base" else nullcontext():
        model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            generation_config=GenerationConfig(
                **{**DECODING, **sampling},
                max_new_tokens=asked["tokens"],
                eos_token_id=stops,
                pad_token_id=chat.pad_id(tokenizer),
                use_cache=True,
            ),
            stopping_criteria=StoppingCriteriaList([each]),
        )
    if left := letters.rest():
        show(left)
    return ended


if __name__ == "__main__":
    main()
