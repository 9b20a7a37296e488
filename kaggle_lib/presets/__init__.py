"""Where given values come from: presets, YAML files and `key=value` words. All of them are text; config.py reads it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from kaggle_lib.errors import ConfigError

FOLDER = Path(__file__).parent


class _TextLoader(yaml.BaseLoader):
    """YAML without implicit types (`1e-4`, `007`, `off` stay text), and with doubled keys refused."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise ConfigError([f"line {key.start_mark.line + 1}: a key should be a name"])
            if key.value in seen:
                raise ConfigError([f"line {key.start_mark.line + 1}: {key.value!r} stands there twice"])
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def read_file(path: Path) -> dict[str, object]:
    """The values of a YAML file, as text. Raises ConfigError where it is no file of `key: value` lines."""
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _TextLoader)  # a BaseLoader: text only
    except OSError as error:
        raise ConfigError([f"{path}: cannot be read ({error.strerror})"]) from None
    except UnicodeDecodeError:
        raise ConfigError([f"{path}: is not UTF-8 text"]) from None
    except yaml.YAMLError as error:
        raise ConfigError([f"{path}: is not YAML ({' '.join(str(error).split())})"]) from None
    except ConfigError as error:
        raise ConfigError([f"{path}: {error}"]) from None
    if content in (None, ""):
        return {}
    if not isinstance(content, dict):
        raise ConfigError([f"{path}: should hold `key: value` lines"])
    return content


def preset_names() -> list[str]:
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def read_preset(name: str) -> dict[str, object]:
    """A preset's values, as text. Raises ConfigError naming the known ones."""
    if name not in preset_names():
        raise ConfigError([f"preset: {name!r} is not one of {', '.join(preset_names())}"])
    return read_file(FOLDER / f"{name}.yaml")


def read_assignments(assignments: list[str]) -> dict[str, object]:
    """`key=value` words of the command line. Raises ConfigError for a word without `=` or a key given twice."""
    values: dict[str, object] = {}
    problems = []
    for word in assignments:
        name, equals, value = word.partition("=")
        if not equals or not name:
            problems.append(f"--set {word}: should be key=value")
        elif name in values:
            problems.append(f"--set {word}: {name} is given twice")
        else:
            values[name] = value
    if problems:
        raise ConfigError(problems)
    return values
