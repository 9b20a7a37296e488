"""A notebook's settings: given once by `configure(globals())`, the start of every later call.

They are one frozen object, `Settings.current`, which only `configure` replaces; without it there are none.
"""

from __future__ import annotations

import ast
import difflib
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from kaggle_lib.config import RunConfig, parse
from kaggle_lib.errors import ConfigError
from kaggle_lib.presets import read_file, read_preset
from kaggle_lib.values import read

SOURCES = ("preset", "config")
KEYS = (*RunConfig.model_fields, *SOURCES)
# papermill writes all that it was given, however it was given, into one cell of plain assignments that begins like
# this (papermill 2.7, translators.py, `codify`); IPython keeps the text of each cell that ran in `In`.
INJECTED = "# Parameters\n"
MISSPELT = 0.85  # difflib's ratio from which a name in the parameters cell is taken for a key
PLAIN = (str, int, float, bool, types.NoneType, list, tuple, dict, Path)


@dataclass(frozen=True)
class Settings:
    """`preset` or `config` names where the values start, `values` come on top; `others` are no settings."""

    preset: str | None = None
    config: str | None = None
    values: Mapping[str, object] = field(default_factory=dict)
    others: tuple[str, ...] = ()

    current: ClassVar[Settings]

    def gather(self, preset: str | None, config: str | Path | None, values: Mapping[str, object]) -> dict[str, object]:
        """The values of a call: its own arguments first, then these settings, then the preset or file.

        Raises ConfigError for a preset and a file at once, and for one that cannot be read.
        """
        if preset is None and config is None:
            preset, config = self.preset, self.config
        if preset is not None and config is not None:
            raise ConfigError(["preset: give a preset or a config file, not both"])
        base = read_preset(preset) if preset is not None else read_file(Path(config)) if config is not None else {}
        return {**base, **self.values, **values}

    def __repr__(self) -> str:
        start = {name: value for name in SOURCES if (value := getattr(self, name)) is not None}
        shown = f"Settings({', '.join(f'{name}={value!r}' for name, value in {**start, **self.values}.items())})"
        return f"{shown}; not settings: {', '.join(self.others)}" if self.others else shown


Settings.current = Settings()


def configure(namespace: Mapping[str, object]) -> Settings:
    """Take the settings of a notebook or script from its variables: `kl.configure(globals())` after the parameters.

    A variable with the name of a key, or `preset` or `config`, is a setting, and text is read by the key's type;
    `train`, `evaluate` and the others then start from them, and arguments of theirs win. All other variables are left
    alone, except two kinds that can only be mistakes: a name that papermill was given and neither a key nor another
    cell has, and one beside `run`, `preset` or `config` in the parameters cell that is all but a key's. Calling it
    again replaces all settings. Raises ConfigError with every problem, and there are no settings from then on.
    """
    Settings.current = Settings()
    given = {name: namespace[name] for name in KEYS if name in namespace and not _is_code(namespace[name])}
    cells = namespace.get("In")
    texts = [text for text in cells if isinstance(text, str)] if isinstance(cells, list) else []
    others, problems = _other_names(texts, namespace)
    for name, value in list(given.items()):
        if not isinstance(value, PLAIN):
            kind = type(given.pop(name)).__name__
            problems.append(f"{name}: is a {kind} here, which no setting can be; give that variable another name")
    start: dict[str, str | None] = {}
    for name in SOURCES:
        try:
            start[name] = str(read(name, str | None, given.pop(name, None)) or "") or None
        except ValueError as error:
            problems.append(f"{name}: {error}")
    values, wrong = parse(given)
    problems += wrong
    settings = Settings(start.get("preset"), start.get("config"), values, tuple(others))
    try:
        problems += parse(settings.gather(None, None, {}))[1]
    except ConfigError as error:
        problems += error.problems
    if problems:
        raise ConfigError(problems)
    Settings.current = settings
    return settings


def _is_code(value: object) -> bool:
    """`from torch import optim` or a function called `data` sets nothing."""
    return isinstance(value, types.ModuleType) or callable(value)


def _other_names(cells: list[str], namespace: Mapping[str, object]) -> tuple[list[str], list[str]]:
    """The names in the parameters cell and in papermill's that are no keys, and what is wrong with some of them."""
    written = [cell for cell in cells if not _is_injected(cell)]
    own = {name for cell in written for name in _assigned(cell)}
    injected = next((cell for cell in reversed(cells) if _is_injected(cell)), "")
    parameters = next((cell for cell in reversed(written) if {"run", *SOURCES} & set(_assigned(cell))), "")
    others, problems = [], []
    for name in dict.fromkeys([*_assigned(parameters), *_assigned(injected)]):
        if name in KEYS or name not in namespace:
            continue
        others.append(name)
        if name not in own:
            problems.append(f"{name}: papermill was given it, and there is no such key{_nearest(name, 0.6)}")
        elif alike := _nearest(name, MISSPELT):
            problems.append(f"{name}: there is no such key{alike} A variable of your own belongs in another cell")
    return others, problems


def _is_injected(cell: str) -> bool:
    """papermill writes plain assignments only, so a person's typed parameters under the same heading are none."""
    return cell.startswith(INJECTED) and all(isinstance(node, ast.Assign) for node in _parsed(cell))


def _parsed(cell: str) -> list[ast.stmt]:
    try:
        return ast.parse(cell).body
    except SyntaxError:
        return []


def _assigned(cell: str) -> Iterator[str]:
    """The names that a cell assigns at its top level, in order."""
    for node in _parsed(cell):
        targets = (
            node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        )
        yield from (target.id for target in targets if isinstance(target, ast.Name))


def _nearest(name: str, cutoff: float) -> str:
    close = difflib.get_close_matches(name.lower(), KEYS, n=1, cutoff=cutoff)
    return f"; did you mean {close[0]}?" if close else ""
