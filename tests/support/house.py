"""The house rules that `make check` holds: style and types, notebooks, which room imports which, sizes.

Each rule takes the repository's root and returns what breaks it, a line each. Nothing is written, ever.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jupytext
import nbformat

PACKAGE = "kaggle_lib"
MOST_LINES, MOST_LINES_OF_A_FILE = 15600, 400

# What a room may import beside itself. A top-level module of the package is a room of its own.
BASE = {"config", "errors", "files", "values"}
LIBRARY = BASE | {"session", "checkpoints", "data", "hooks"}
WORKER = {"strategies", "training", "evaluation"}
ROOMS: dict[str, set[str]] = {
    "errors": set(),
    "files": set(),
    "values": set(),
    "config": BASE,
    "presets": BASE,
    "hooks": BASE,
    "session": LIBRARY,
    "checkpoints": LIBRARY,
    "data": LIBRARY,
    "strategies": LIBRARY | WORKER,
    "training": LIBRARY | WORKER,
    "evaluation": LIBRARY | WORKER,
    "runs": LIBRARY,
    "report": LIBRARY | {"runs", "rating"},
    "rating": LIBRARY | {"runs"},
    "kaggle": LIBRARY | {"presets", "runs", "report"},
}
TOP = LIBRARY | {"presets", "runs", "report", "rating", "kaggle", "api", "settings", "demo"}
ROOMS["api"] = TOP | {"strategies"}  # `load` gives the model to the process that asks for it
# Modules of another room that are open to the worker's side: what passes between the two processes.
SHARED_WITH_WORKER = {"runs.folder", "runs.events", "runs.outcome"}
CLOSED_TO_WORKER = {"checkpoints.hub"}
STACK = {"torch", "transformers", "datasets", "trl", "peft", "accelerate", "bitsandbytes", "unsloth", "unsloth_zoo"}
UNSLOTH_HOME = f"{PACKAGE}/strategies/unsloth.py"


@dataclass(frozen=True)
class Import:
    """`name`: the imported module, dotted. `at_load`: it happens when the module itself is imported."""

    name: str
    line: int
    at_load: bool


def imports_of(tree: ast.Module, module: str, modules: set[str]) -> Iterator[Import]:
    """All imports of `module`, those inside functions, too; not those for the type checker alone.

    `from a import b` is `a.b` where that is one of `modules`, else `a`.
    """
    package = module if f"{module}.__init__" in modules else module.rpartition(".")[0]

    def visit(node: ast.AST, at_load: bool) -> Iterator[Import]:
        if isinstance(node, ast.If) and ast.unparse(node.test).split(".")[-1] == "TYPE_CHECKING":
            for child in node.orelse:
                yield from visit(child, at_load)
            return
        if isinstance(node, ast.Import):
            yield from (Import(alias.name, node.lineno, at_load) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")
            stem = ".".join(parents[: len(parents) - node.level + 1]) if node.level else ""
            source = ".".join(part for part in (stem, node.module) if part)
            for alias in node.names:
                inner = f"{source}.{alias.name}"
                yield Import(inner if inner in modules else source, node.lineno, at_load)
        inside = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        for child in ast.iter_child_nodes(node):
            yield from visit(child, at_load and not inside)

    return visit(tree, True)


def import_rules(root: Path) -> list[str]:
    """Imports point one way, and each library stays where it belongs."""
    paths = {_module(root, path): path for path in sorted((root / PACKAGE).rglob("*.py"))}
    modules = set(paths) | {f"{name}.__init__" for name, path in paths.items() if path.name == "__init__.py"}
    problems = []
    for module, path in paths.items():
        shown = path.relative_to(root).as_posix()
        for found in imports_of(ast.parse(path.read_text(encoding="utf-8")), module, modules):
            if problem := _forbidden(module, shown, found):
                problems.append(f"{shown}:{found.line}: {problem}")
    return problems


def _module(root: Path, path: Path) -> str:
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _forbidden(module: str, shown: str, found: Import) -> str | None:
    room = [*module.split("."), ""][1]
    library = found.name.split(".")[0]
    if library == PACKAGE:
        inner = found.name.removeprefix(PACKAGE).removeprefix(".")
        return _forbidden_room(room, inner) if inner else None
    if library in ("unsloth", "unsloth_zoo") and shown != UNSLOTH_HOME:
        return f"imports {library}, which patches libraries process-wide: only {UNSLOTH_HOME} may"
    if library not in STACK or room in WORKER:
        return None
    if room == "data":
        return f"imports {library} at module level; `data` is imported by the supervisor" if found.at_load else None
    return f"imports {library}; the supervisor's side never does"


def _forbidden_room(room: str, inner: str) -> str | None:
    other = inner.split(".")[0]
    if other == room:
        return None
    if room in WORKER and inner in CLOSED_TO_WORKER:
        return f"{room} imports {inner}: the worker knows nothing of it"
    if room in WORKER and inner in SHARED_WITH_WORKER:
        return None
    if other in ROOMS.get(room, TOP):
        return None
    return f"{room or PACKAGE} imports {inner}: imports point the other way"


def sizes(root: Path) -> list[str]:
    """Small is a feature: lines of Python, of the package and of each of its files."""
    problems, total = [], 0
    for path in sorted((root / PACKAGE).rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        lines = len(text.splitlines())
        total += lines_of_code(text)
        if lines > MOST_LINES_OF_A_FILE:
            problems.append(f"{path.relative_to(root).as_posix()}: {lines} lines, at most {MOST_LINES_OF_A_FILE}")
    if total > MOST_LINES:
        problems.append(f"{PACKAGE}: {total} lines of code, at most {MOST_LINES}")
    return problems


def lines_of_code(text: str) -> int:
    """Lines that are neither blank nor comment nor docstring: nobody should save on those."""
    told: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node) is not None:
            told.update(range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1))
    lines = enumerate(text.splitlines(), start=1)
    return sum(1 for number, line in lines if line.strip() and line.strip()[0] != "#" and number not in told)


def notebooks_paired(root: Path) -> list[str]:
    """Each notebook is there as percent text and as .ipynb, equal cell by cell. Time stamps mean nothing."""
    folder = root / "notebooks"
    problems = []
    for stem in sorted({path.stem for path in [*folder.glob("*.py"), *folder.glob("*.ipynb")]}):
        text, notebook = folder / f"{stem}.py", folder / f"{stem}.ipynb"
        if not (text.is_file() and notebook.is_file()):
            there, absent = (text, notebook) if text.is_file() else (notebook, text)
            problems.append(f"notebooks/{there.name}: its pair {absent.name} is missing")
            continue
        problems += [f"notebooks/{notebook.name}: {what}" for what in _differences(text, notebook)]
    return problems


def _differences(text: Path, notebook: Path) -> Iterator[str]:
    wanted = jupytext.reads(text.read_text(encoding="utf-8"), fmt="py:percent")
    found = nbformat.read(notebook, as_version=4)
    if wanted.metadata.get("kernelspec") != found.metadata.get("kernelspec"):
        yield f"another kernelspec than in {text.name}"
    for number, (ours, theirs) in enumerate(zip(wanted.cells, found.cells, strict=False), start=1):
        for part in ("cell_type", "source", "metadata"):
            if ours[part] != theirs[part]:
                yield f"cell {number} has another {part.replace('cell_', '')} than in {text.name}"
    if len(wanted.cells) != len(found.cells):
        yield f"{len(found.cells)} cells, and {text.name} has {len(wanted.cells)}"


def notebooks_stripped(root: Path) -> list[str]:
    """A committed notebook names its kernel and language, and holds nothing that a run left in it."""
    problems = []
    for path in sorted((root / "notebooks").glob("*.ipynb")):
        notebook: Any = nbformat.read(path, as_version=4)
        shown = f"notebooks/{path.name}"
        kernel = notebook.metadata.get("kernelspec", {})
        for key in ("name", "display_name", "language"):
            if not kernel.get(key):
                problems.append(f"{shown}: metadata.kernelspec has no {key}")
        if notebook.metadata.get("language_info", {}).get("name") != "python":
            problems.append(f"{shown}: metadata.language_info does not name python")
        if "widgets" in notebook.metadata:
            problems.append(f"{shown}: metadata.widgets was left by a run")
        for number, cell in enumerate(notebook.cells, start=1):
            if cell.get("outputs"):
                problems.append(f"{shown}: cell {number} has outputs")
            if cell.get("execution_count") is not None:
                problems.append(f"{shown}: cell {number} has an execution count")
            for key in sorted({"execution", "papermill"} & set(cell.metadata)):
                problems.append(f"{shown}: cell {number} has metadata.{key}, left by a run")
    return problems


RULES: dict[str, Callable[[Path], list[str]]] = {
    "imports": import_rules,
    "sizes": sizes,
    "notebooks are pairs": notebooks_paired,
    "notebooks are stripped": notebooks_stripped,
}
TOOLS = {
    "lint": ["ruff", "check", "--quiet", "."],
    "format": ["ruff", "format", "--check", "--quiet", "."],
    "types": ["mypy", "--no-error-summary"],
}


def main(root: Path) -> int:
    """Run every check and print what is broken; the exit code."""
    broken = 0
    for name, words in TOOLS.items():
        done = subprocess.run([sys.executable, "-m", *words], cwd=root, check=False)
        broken += done.returncode != 0
        print(f"{'failed' if done.returncode else 'ok':6}  {name}", flush=True)
    for name, rule in RULES.items():
        problems = rule(root)
        broken += bool(problems)
        for problem in problems:
            print(problem)
        print(f"{'failed' if problems else 'ok':6}  {name}", flush=True)
    if broken:
        print("A notebook's pair is written by `jupytext --to ipynb --update notebooks/NAME.py`.", file=sys.stderr)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main(Path(__file__).parents[2]))
