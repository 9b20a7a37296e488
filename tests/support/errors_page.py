"""docs/errors.md and the code: every message of an error that we raise, read from the source.

`python tests/support/errors_page.py` prints the rows that the page lacks, and those that it has and the code has not.
"""

from __future__ import annotations

import ast
import itertools
import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE, PAGE = ROOT / "kaggle_lib", ROOT / "docs" / "errors.md"
VARIES = "…"
DEPTH = 4


@lru_cache(maxsize=1)
def classes() -> set[str]:
    """The names of our errors."""
    tree = ast.parse((PACKAGE / "errors.py").read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.ClassDef)}


class Module:
    """A module's errors. What a message takes from a variable or a parameter is looked for in its function, and in the
    calls of it."""

    def __init__(self, path: Path) -> None:
        self.tree = ast.parse(path.read_text(encoding="utf-8"))
        self.parents = {child: node for node in ast.walk(self.tree) for child in ast.iter_child_nodes(node)}

    def function(self, node: ast.AST) -> ast.AST:
        while not isinstance(node, (ast.FunctionDef, ast.Module)):
            node = self.parents[node]
        return node

    def messages(self) -> Iterator[tuple[str, str]]:
        """(class, message), variable parts as `…`."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Call) and node.args and _name(node.func) in classes():
                for text in self.texts(node.args[0], DEPTH):
                    yield _name(node.func), text
        for node in ast.walk(self.tree):
            # A generator of problems, `(fields, message)` or the message alone.
            if isinstance(node, ast.Yield) and _problems(self.function(node)):
                value = node.value.elts[-1] if isinstance(node.value, ast.Tuple) else node.value
                for text in self.texts(value, DEPTH):
                    yield "ConfigError", text
            # A list of problems that another function raises.
            if _appends(node) and _name(node.func.value) == "problems":
                for text in self.texts(node.args[0], DEPTH):
                    yield "ConfigError", text

    def texts(self, node: ast.AST | None, depth: int) -> list[str]:
        """All that an expression may say."""
        if node is None or depth == 0:
            return [VARIES]
        if isinstance(node, ast.Constant):
            return [node.value] if isinstance(node.value, str) else []
        if isinstance(node, ast.JoinedStr):
            parts = [
                [part.value] if isinstance(part, ast.Constant) else self._inserted(part.value, depth - 1)
                for part in node.values
            ]
            return ["".join(chosen) for chosen in itertools.product(*parts)]
        if isinstance(node, (ast.List, ast.Tuple)):
            return [text for one in node.elts for text in self.texts(one, depth)]
        if isinstance(node, ast.ListComp):
            return self.texts(node.elt, depth)
        if isinstance(node, ast.IfExp):
            return self.texts(node.body, depth) + self.texts(node.orelse, depth)
        if isinstance(node, ast.BoolOp):
            return [text for one in node.values for text in self.texts(one, depth)]
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
            pairs = itertools.product(self.texts(node.left, depth), self.texts(node.right, depth))
            return ["".join(pair) for pair in pairs]
        if isinstance(node, ast.Name):
            return self._named(node, depth)
        return [VARIES]

    def _inserted(self, node: ast.AST, depth: int) -> list[str]:
        """What a variable puts into a message, where it is a sentence's part; else that it varies."""
        if not isinstance(node, (ast.Name, ast.IfExp)):
            return [VARIES]
        found = [text for text in self.texts(node, depth) if text]
        return found if found and all(" " in text for text in found) else [VARIES]

    def _named(self, node: ast.Name, depth: int) -> list[str]:
        function = self.function(node)
        if isinstance(function, ast.FunctionDef):
            parameters = [one.arg for one in [*function.args.posonlyargs, *function.args.args]]
            if node.id in parameters:
                return self._given(function, parameters.index(node.id), node.id, depth - 1)
        return self._assigned(node, function, depth - 1) or [VARIES]

    def _assigned(self, node: ast.Name, function: ast.AST, depth: int) -> list[str]:
        """What the variable was given before this place; an assignment that is always reached outdoes earlier ones."""
        found: list[str] = []
        last: list[str] = []
        block = None
        for one in sorted(filter(_statement, ast.walk(function)), key=lambda one: one.lineno):
            if isinstance(one, ast.Call):
                if _name(one.func.value) == node.id:
                    found += self.texts(one.args[0], depth)
            elif one.lineno > node.lineno or (values := _given_to(one, node.id)) is None:
                continue
            elif isinstance(one, ast.AugAssign):
                texts = [text for value in values for text in self.texts(value, depth)]
                if isinstance(one.value, (ast.List, ast.ListComp)):
                    found += texts
                else:
                    added = ["".join(pair) for pair in itertools.product(last, texts)]
                    kept = [text for text in found if text not in last or self.parents[one] != block]
                    found = kept + added
            else:
                block = self.parents[one]
                last = [text for value in values for text in self.texts(value, depth)]
                found = last if self.parents[one] in self._above(node) else found + last
        return found

    def _above(self, node: ast.AST) -> set[ast.AST]:
        found = set()
        while node in self.parents:
            node = self.parents[node]
            found.add(node)
        return found

    def _given(self, function: ast.FunctionDef, place: int, name: str, depth: int) -> list[str]:
        method = isinstance(self.parents[function], ast.ClassDef)
        found: list[str] = []
        for call in ast.walk(self.tree):
            if isinstance(call, ast.Call) and _name(call.func) == function.name:
                at = place - (method and isinstance(call.func, ast.Attribute))
                value = call.args[at] if 0 <= at < len(call.args) else None
                value = next((one.value for one in call.keywords if one.arg == name), value)
                found += self.texts(value, depth)
        return found or [VARIES]


def _name(node: ast.AST) -> str:
    return node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""


def _appends(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "append"


def _statement(node: ast.AST) -> bool:
    return _appends(node) or isinstance(node, (ast.Assign, ast.AnnAssign, ast.AugAssign))


def _given_to(statement: ast.AST, name: str) -> list[ast.AST] | None:
    """The expressions that the statement gives to the variable; None where it gives it nothing."""
    if statement.value is None:
        return None
    found = []
    for target in statement.targets if isinstance(statement, ast.Assign) else [statement.target]:
        if isinstance(target, ast.Tuple) and isinstance(statement.value, ast.Tuple):
            pairs = zip(target.elts, statement.value.elts, strict=False)
            found += [value for to, value in pairs if _name(to) == name]
        elif isinstance(target, ast.Name) and target.id == name:
            found.append(statement.value)
    return found or None


def _problems(function: ast.AST) -> bool:
    return isinstance(function, ast.FunctionDef) and function.name in ("_contradictions",)


def plain(text: str) -> str:
    """A message as one line of the page: spaces single, variable parts that meet as one."""
    text = re.sub(r"\s+", " ", text).strip()
    return re.sub(rf"{VARIES}(?:[ ,]*{VARIES})+", VARIES, text)


@lru_cache(maxsize=1)
def of_code() -> dict[str, str]:
    """{message: where}. What is nothing but variable is another error's text, passed on."""
    found: dict[str, str] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        for _, text in Module(path).messages():
            if len(re.sub(r"[\W_]", "", text.replace(VARIES, ""))) >= 3:
                found.setdefault(plain(text), path.relative_to(ROOT).as_posix())
    return found


def of_page() -> list[str]:
    """The messages of the page, in its order."""
    rows = re.findall(r"^\| (.+?) \| .+ \|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    return [row.replace("\\|", "|") for row in rows if row not in ("message", "---")]


if __name__ == "__main__":
    code, page = of_code(), of_page() if PAGE.exists() else []
    for message, where in code.items():
        if message not in page:
            print(f"{where}\n| {message.replace('|', chr(92) + '|')} |  |")
    for message in page:
        if message not in code:
            print(f"no longer: {message}")
