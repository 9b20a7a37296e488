"""Build the kernel that `kaggle kernels push` sends: one notebook that carries library, parameters and hooks.

Only the text of one file reaches Kaggle, so everything is in it. A clone is needed to build one: the notebooks,
`requirements.txt` and `kernel-metadata.json` lie beside the package.
"""

from __future__ import annotations

import argparse
import ast
import base64
import contextlib
import hashlib
import json
import re
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kaggle_lib import __version__, hooks
from kaggle_lib.config import RunConfig
from kaggle_lib.data.find import SLUG
from kaggle_lib.errors import ConfigError, UserError
from kaggle_lib.files import dump_json, read_json, write_text
from kaggle_lib.kaggle import cell, wheel
from kaggle_lib.presets import read_assignments, read_preset
from kaggle_lib.report.pins import pins
from kaggle_lib.session.secrets import hub_token, kaggle_token

CLONE = Path(__file__).parents[2]
NOBODY = "YOUR-NAME"  # the owner in the committed kernel-metadata.json
BEGINNING = ("train", "t4_check", "quickstart")  # the notebooks that begin a run, and get every key that was given
MOST_BYTES = 950_000  # Kaggle refuses a source of about a megabyte
# Of requirements.txt: what only builds and runs notebooks, and what comes with Unsloth on a GPU.
BUILDING = ("ipykernel", "jupytext", "papermill")
UNSLOTH, BESIDE_UNSLOTH = ("unsloth", "unsloth_zoo"), ("torchvision", "triton", "xformers")
TOKEN = re.compile(r"\b(hf_[A-Za-z0-9]{20,}|KGAT_[A-Za-z0-9]{20,})")


@dataclass(frozen=True)
class Built:
    """`folder` is what `kaggle kernels push -p` takes; `size`: bytes of the source as push sends it."""

    folder: Path
    notebook: Path
    metadata: dict[str, Any]
    size: int
    wheel_sha256: str


def build(
    notebook: str,
    config: RunConfig,
    into: Path,
    *,
    id: str,
    title: str = "",
    datasets: Sequence[str] = (),
    kernels: Sequence[str] = (),
    token_dataset: str = "",
    more: Mapping[str, object] | None = None,
    clone: Path = CLONE,
) -> Built:
    """Write the notebook (`train`, `evaluate`, …) and `kernel-metadata.json` into the folder `into`.

    `config` becomes the notebook's parameters, unless its own cell says the same; `more` those that are no keys; `id`
    is `user/slug`, and the title is the slug unless given. `datasets` and `kernels` are attached beside the corpus;
    `token_dataset` is one that holds a file `HF_TOKEN`. The same arguments give the same bytes. Raises UserError for
    what cannot go there.
    """
    metadata = _metadata(clone, notebook, id, title)
    attached = [config.data] if SLUG.fullmatch(config.data) else []
    metadata["dataset_sources"] = sorted({*attached, *datasets, *filter(None, [token_dataset])})
    metadata["kernel_sources"] = sorted(kernels)
    _check_places(config)
    source = hooks.read(config.hooks) if config.hooks else None
    needs_gpu = config.precision != "fp32" or config.optim == "adamw_8bit"
    packed = wheel.build(clone)
    sha256 = hashlib.sha256(packed).hexdigest()
    made = _notebook(clone, notebook)
    given = _parameters(made, notebook, config, more or {}, source)
    wanted = {
        "run": config.run,
        "repo": config.hub_store,
        "public": config.public_store,
        "base_model": config.base_model,
        "base_is_of_hub": config.hub_base,
        "revision": config.revision,
        "data": config.data,
        "gpu": needs_gpu,
        "token_dataset": token_dataset,
        "requirements": _requirements(clone, config, needs_gpu),
        "files": {source.path.name: base64.b64encode(source.content).decode()} if source else {},
    }
    _refuse_tokens({"the parameters": given, "kernel-metadata.json": metadata, "hooks": source and source.content})
    made = _with_parameters(made, given) if more or _own(made) != config.model_dump() else made
    made.cells.insert(0, _first_cell(wanted, wheel.pack(packed), sha256))
    text = _written(made)
    size = len(json.dumps(json.loads(text)))
    if size > MOST_BYTES:
        raise UserError(
            f"The notebook has {size:,} bytes as it is sent, and Kaggle takes {MOST_BYTES:,} at most.",
            todo="Make the hooks file and the parameters smaller.",
        )
    into.mkdir(parents=True, exist_ok=True)
    path = into / metadata["code_file"]
    write_text(path, text)
    write_text(into / "kernel-metadata.json", dump_json(metadata))
    return Built(into, path, metadata, size, sha256)


def _metadata(clone: Path, notebook: str, id: str, title: str) -> dict[str, Any]:
    """The root's own, which may be edited there, with what this kernel decides."""
    try:
        metadata: dict[str, Any] = read_json(clone / "kernel-metadata.json")
    except (OSError, ValueError) as error:
        raise _no_clone(clone, "kernel-metadata.json", error) from None
    metadata |= {"id": id, "title": title or id.rpartition("/")[2], "code_file": f"{notebook}.ipynb"}
    for name in ("docker_image", "docker_image_pinning_type"):
        metadata.pop(name, None)  # `kernels pull -m` writes them, and they would bring an old image back
    return metadata


def _check_places(config: RunConfig) -> None:
    """What names a place of this machine means nothing there."""
    attached = SLUG.fullmatch(config.data) and not Path(config.data).exists()
    if config.data != "sample" and not attached and not config.data.startswith("/kaggle/"):
        raise UserError(
            f"data: {config.data!r} is of this machine, and does not travel with a kernel.",
            todo="Make a Kaggle dataset of it (kaggle datasets create), and give its owner/name.",
        )
    here = config.base_model[0] in "/.~" or Path(config.base_model).is_dir()
    if here and not config.base_model.startswith("/kaggle/"):
        raise UserError(
            f"base_model: {config.base_model!r} is of this machine, and does not travel with a kernel.",
            todo="Give an id of the Hub, or attach a model and give its folder below /kaggle/input.",
        )


def _notebook(clone: Path, name: str) -> Any:
    import nbformat

    try:
        return nbformat.reads((clone / "notebooks" / f"{name}.ipynb").read_text(encoding="utf-8"), as_version=4)
    except OSError as error:
        raise _no_clone(clone, f"notebooks/{name}.ipynb", error) from None


def _no_clone(clone: Path, name: str, error: Exception) -> UserError:
    return UserError(
        f"A kernel is built from a clone of the repository, and {clone / name} cannot be read ({error}).",
        todo="Clone it, and run this there.",
    )


def _parameters(
    notebook: Any, name: str, config: RunConfig, more: Mapping[str, object], source: hooks.Source | None
) -> dict[str, Any]:
    """All that the parameters cell would set otherwise; to train, also whatever else was given."""
    values = config.model_dump(mode="json") | {"hooks": source.path.name if source else None}
    [cell] = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    assigned = re.findall(r"^(\w+)\s*[:=]", cell.source, re.MULTILINE)
    beside = set(RunConfig.model_fields) if name in BEGINNING else {"public_store"}
    taken = [*assigned, *sorted(config.model_fields_set & beside)]
    if unknown := set(more) - set(assigned):
        raise UserError(f"notebooks/{name}.ipynb has no parameter {', '.join(sorted(unknown))}.")
    given = {one: values[one] for one in dict.fromkeys(taken) if one in values}
    return {**({"preset": ""} if "preset" in assigned else {}), **given, **more}


def _own(notebook: Any) -> dict[str, Any] | None:
    """The configuration that the notebook's own parameters cell makes; None: it needs some from outside."""
    [cell] = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    nodes = [node for node in ast.parse(cell.source).body if isinstance(node, ast.AnnAssign)]
    values = {ast.unparse(node.target): ast.literal_eval(node.value) for node in nodes if node.value}
    preset = values.pop("preset", "")
    with contextlib.suppress(ConfigError):
        return RunConfig.create({**(read_preset(preset) if preset else {}), **values}).model_dump()
    return None


def _with_parameters(notebook: Any, given: Mapping[str, Any]) -> Any:
    """papermill's own cell, behind the notebook's."""
    from papermill.iorw import load_notebook_node
    from papermill.parameterize import parameterize_notebook

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "notebook.ipynb"
        write_text(path, _written(notebook))
        return parameterize_notebook(load_notebook_node(str(path)), dict(given))


def _first_cell(wanted: Mapping[str, Any], packed: str, sha256: str) -> Any:
    import nbformat

    source = Path(cell.__file__).read_text(encoding="utf-8")
    asked = json.dumps(wanted, indent=1, ensure_ascii=True).replace("'", r"\u0027")  # no quote ends the text
    source += f"""
# kaggle_lib {__version__}
WANTED = json.loads(r'''{asked}''')
PACKED = '''
{packed}
'''
FOLDER = unpack(PACKED, "{sha256}")

from kaggle_lib.kaggle import first_cell

first_cell.begin(WANTED, FOLDER)
"""
    made = nbformat.v4.new_code_cell(source.strip())
    made.metadata.update({"_kg_hide-input": True, "jupyter": {"source_hidden": True}})
    return made


def _written(notebook: Any) -> str:
    """Its text: without what papermill notes of a run, and with ids that depend on the place alone."""
    import nbformat

    notebook.metadata.pop("papermill", None)
    for number, one in enumerate(notebook.cells):
        one.id = f"cell-{number}"
        one.metadata.pop("papermill", None)
        if one.cell_type == "code":
            one.outputs, one.execution_count = [], None
    nbformat.validate(notebook)
    return str(nbformat.writes(notebook)) + "\n"


def _requirements(clone: Path, config: RunConfig, gpu: bool) -> dict[str, str]:
    """What the session needs of requirements.txt, by name."""
    try:
        wanted = pins(clone / "requirements.txt")
    except OSError as error:
        raise _no_clone(clone, "requirements.txt", error) from None
    left_out = set(BUILDING)
    if config.strategy != "unsloth":
        left_out |= {*UNSLOTH, *BESIDE_UNSLOTH}
    elif not gpu:
        left_out |= {*BESIDE_UNSLOTH}
    return {name: specifier for name, specifier in wanted.items() if name not in left_out}


def _refuse_tokens(parts: Mapping[str, Any]) -> None:
    """No token leaves this machine in a kernel: neither what looks like one, nor one that this machine has."""
    own = []
    for find in (hub_token, kaggle_token):
        with contextlib.suppress(UserError):
            own += [token.value for token in [find()] if token]
    for name, part in parts.items():
        text = part.decode("utf-8", "replace") if isinstance(part, bytes) else json.dumps(part, ensure_ascii=False)
        if TOKEN.search(text) or any(value in text for value in own if len(value) >= 8):
            raise UserError(
                f"There is a token in {name}, and whoever may read the kernel could read it.",
                kept="Nothing was written.",
                todo="Take it out; a session finds its token in the Kaggle secret HF_TOKEN.",
            )


def main(words: Sequence[str] | None = None) -> int:
    """`make kernel`: build into build/kernel for the bare `kaggle kernels push -p build/kernel`."""
    parser = argparse.ArgumentParser(prog="python -m kaggle_lib.kaggle.kernel", description=main.__doc__)
    parser.add_argument("--notebook", default="train")
    parser.add_argument("--preset", default="bengali-8b-t4")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument(
        "--id", default="", metavar="USER/SLUG", help="the kernel's; of kernel-metadata.json unless given"
    )
    parser.add_argument("--into", default="build/kernel", type=Path)
    given = parser.parse_args(words)
    try:
        config = RunConfig.create({**read_preset(given.preset), **read_assignments(given.set)})
        id = given.id or str(read_json(CLONE / "kernel-metadata.json")["id"])
        if id.startswith(f"{NOBODY}/"):
            raise UserError("Whose kernel is it?", todo="Put your name on Kaggle into the id in kernel-metadata.json.")
        built = build(given.notebook, config, given.into, id=id)
    except UserError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    print(f"{built.notebook}: {built.size:,} bytes; now `kaggle kernels push -p {built.folder}`.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
