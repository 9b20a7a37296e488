"""The user's own code: the Python file that the key `hooks` names, with any of these functions.

| function | is called | returns |
|---|---|---|
| `format_row(row)` | for every row that was read, with its cells | the row to train on, its messages, or None |
| `adapt(model, config)` | with the PEFT model, after the strategy has put its adapter in | the PEFT model |
| `callbacks(config)` | by each worker, before the model is loaded | a list of transformers `TrainerCallback`s |

The supervisor only looks at the text (`find`). The code runs in the workers and in the check of the data, which is a
process of its own, so that it may import what it likes. Its content is part of the run's fingerprint.
"""

from __future__ import annotations

import ast
import difflib
import hashlib
import inspect
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

from kaggle_lib.config import RunConfig
from kaggle_lib.errors import ConfigError
from kaggle_lib.files import write_bytes

NAME = "hooks.py"  # of the copy in the run folder and in each checkpoint
PARAMETERS = {"format_row": ("row",), "adapt": ("model", "config"), "callbacks": ("config",)}


@dataclass(frozen=True)
class Source:
    """A hooks file's content; `path` is where it is looked at: in messages, and by a debugger."""

    path: Path
    content: bytes

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    def put(self, target: Path) -> None:
        """Keep a copy at `target`."""
        if not target.is_file() or target.read_bytes() != self.content:
            write_bytes(target, self.content)


class Hooks:
    """A hooks file that has been run."""

    def __init__(self, source: Source, module: ModuleType) -> None:
        self.path, self.sha256 = source.path, source.sha256
        self.functions = {name: getattr(module, name) for name in PARAMETERS if hasattr(module, name)}

    def call(self, name: str, *given: Any, about: str = "") -> Any:
        """What the function returns. Raises ConfigError with file and line where it raises."""
        try:
            return self.functions[name](*given)
        except Exception as error:
            what = f"{name} raised {_told(error)}{about}"
            raise ConfigError([f"hooks: {self.path}, line {_line(error, self.path)}: {what}"]) from error

    def wrong(self, name: str, returned: Any, wanted: str, about: str = "") -> ConfigError:
        """The error for a result that cannot be used."""
        code = getattr(self.functions[name], "__code__", None)
        line = f", line {code.co_firstlineno}" if code and code.co_filename == str(self.path) else ""
        what = f"{name} returned {returned}{about}; it should return {wanted}"
        return ConfigError([f"hooks: {self.path}{line}: {what}"])


def read(path: str | Path) -> Source:
    """The file's content, looked at but not run.

    Raises ConfigError where it cannot be read, is no Python, or defines a function whose name is nearly one of ours.
    """
    path = Path(path).expanduser().absolute()
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ConfigError([f"hooks: {path}: cannot be read ({error.strerror})"]) from None
    try:
        tree = ast.parse(content, str(path))
    except (SyntaxError, ValueError) as error:  # ValueError: it holds NUL
        line = f", line {error.lineno}" if isinstance(error, SyntaxError) and error.lineno else ""
        raise ConfigError([f"hooks: {path}{line}: is no Python ({getattr(error, 'msg', error)})"]) from None
    defined = {
        node.name: node.lineno for node in tree.body if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
    }
    problems = []
    for name, at in defined.items():
        close = difflib.get_close_matches(name.lower(), PARAMETERS, n=1, cutoff=0.7)
        if close and name[0] != "_" and not {name, close[0]} & (PARAMETERS.keys() & defined.keys()):
            problems.append(
                f"hooks: {path}, line {at}: nothing calls {name}; did you mean {close[0]}? "
                f"(If it is a helper, name it _{name})"
            )
    if problems:
        raise ConfigError(problems)
    return Source(path, content)


def of(config: RunConfig) -> Hooks | None:
    """The configuration's hooks file, run once in this process; None where it has none.

    Raises ConfigError with file and line where it raises, or defines none of the functions, or with other parameters.
    """
    return _run(read(config.hooks)) if config.hooks else None


def settled(config: RunConfig, copy: Path) -> RunConfig:
    """`config` with the hooks file that the session settled on, whose content lies at `copy`.

    The user's own file stands for it while it has the same content, so that his debugger and he look at one file.
    """
    if not config.hooks:
        return config
    own, content = Path(config.hooks), read(copy).content
    if own.is_file() and own.read_bytes() == content:
        return config
    if own != copy:
        print(f"hooks: {own} is not, or no longer, what this session began with; its copy {copy} is used.", flush=True)
    return config.model_copy(update={"hooks": str(copy)})


@lru_cache(maxsize=4)
def _run(source: Source) -> Hooks:
    module = ModuleType("kaggle_lib_hooks")
    module.__file__ = str(source.path)
    sys.modules[module.__name__] = module  # dataclasses and pickles look their module up
    try:
        exec(compile(source.content, str(source.path), "exec"), module.__dict__)
    except Exception as error:
        line = _line(error, source.path)
        raise ConfigError([f"hooks: {source.path}, line {line}: it raised {_told(error)}"]) from error
    hooks = Hooks(source, module)
    if not hooks.functions:
        raise ConfigError([f"hooks: {source.path}: it defines none of {', '.join(PARAMETERS)}"])
    for name, function in hooks.functions.items():
        names = PARAMETERS[name]
        try:
            inspect.signature(function).bind(*names)
        except TypeError:
            line = getattr(getattr(function, "__code__", None), "co_firstlineno", 1)
            what = f"{name} should be a function that takes ({', '.join(names)})"
            raise ConfigError([f"hooks: {source.path}, line {line}: {what}"]) from None
    return hooks


def _told(error: Exception) -> str:
    return ": ".join(part for part in (type(error).__name__, " ".join(str(error).split())[:300]) if part)


def _line(error: Exception, path: Path) -> int:
    """The last line of the hooks file that was running."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    return (lines or [1])[-1] or 1


def adapt(strategy_adapt: Callable[[Any, RunConfig], Any], model: Any, config: RunConfig) -> Any:
    """The strategy's PEFT model, changed by the hook where there is one. Trainable parameters are fp32.

    Raises ConfigError where the hook returns no PEFT model, or one whose trainable parameters are none, or not all
    of its adapter's: a checkpoint holds nothing else.
    """
    model = strategy_adapt(model, config)
    own = of(config)
    if own is None or "adapt" not in own.functions:
        return model
    adapted = own.call("adapt", model, config)
    wanted = "the PEFT model"
    if not hasattr(adapted, "peft_config") or list(adapted.peft_config) != ["default"]:
        raise own.wrong("adapt", f"{type(adapted).__name__}", f"{wanted} with its one adapter `default`")
    trainable = {name: one for name, one in adapted.named_parameters() if one.requires_grad}
    if not trainable:
        raise own.wrong("adapt", "a model without a trainable parameter", wanted)
    if foreign := [name for name in trainable if "lora_" not in name]:
        raise own.wrong("adapt", f"a model that would train {foreign[0]}, which no checkpoint holds", wanted)
    for parameter in trainable.values():
        parameter.data = parameter.data.float()
    return adapted


def callbacks(config: RunConfig) -> list[Any]:
    """The hook's callbacks. Raises ConfigError where it returns anything but a list of TrainerCallbacks."""
    own = of(config)
    if own is None or "callbacks" not in own.functions:
        return []
    made = own.call("callbacks", config)
    if not isinstance(made, list):
        raise own.wrong("callbacks", type(made).__name__, "a list of TrainerCallback instances")
    for one in made:  # by name: this module imports no transformers
        if not any(kind.__name__ == "TrainerCallback" for kind in type(one).__mro__):
            shown = f"the class {one.__name__}" if isinstance(one, type) else type(one).__name__
            raise own.wrong("callbacks", f"a list with {shown} in it", "a list of TrainerCallback instances")
    return made
