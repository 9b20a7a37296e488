"""`publish`: a finished run's result, with all that people need to use and to judge it, to a repo's `main`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kaggle_lib.checkpoints.hub_repo import Repo
from kaggle_lib.errors import ConfigError, NotFinished, UserError
from kaggle_lib.files import write_json
from kaggle_lib.report import card, page, sending
from kaggle_lib.report.sending import CARD
from kaggle_lib.runs import best, export, gguf, ledger, resume
from kaggle_lib.runs.folder import RunFolder
from kaggle_lib.runs.opening import Opened, new_session_id, only_session, open_run
from kaggle_lib.runs.prepare import settle_hooks, write_run
from kaggle_lib.runs.supervise import WEIGHTS
from kaggle_lib.session.secrets import hub_token
from kaggle_lib.values import is_hub_id

Say = Callable[[str], None]


@dataclass(frozen=True)
class Published:
    """Where the run's result is: `commit` of `repo`, or `unchanged` where the repo held the very same already."""

    run: str
    form: str
    repo: str
    commit: str
    step: int
    files: int
    bytes: int
    private: bool
    unchanged: bool = False

    def to_json(self) -> dict[str, Any]:
        return {"outcome": "published", **asdict(self)}


@dataclass(frozen=True)
class Making:
    """How a form is made. `quantization`: of a GGUF file; `scratch`: the folder that it is made in, the run folder
    unless given; `llama_cpp`: where its programs are. `adapter`: of the last step, or of the best validation."""

    form: str = "adapter"
    quantization: str = "q8_0"
    scratch: str | None = None
    llama_cpp: str | None = None
    adapter: best.Which = "last"


ADAPTER = Making()


def publish(
    values: Mapping[str, object],
    *,
    to: str | None = None,
    public: bool = False,
    base: str | None = None,
    making: Making = ADAPTER,
    say: Say,
) -> Published:
    """Publish a finished run in the form of `making`: weights, tokenizer with the template trained with, generation
    config, model card, evaluation and report, in one commit on `main` of `to` (the store's own repo unless given).

    `base`: the base model's Hub id, where the run had it from a folder. An evaluation of another adapter is not
    published with this one. Raises NotFinished; ConfigError for a repo, a base id or a quantisation that is none;
    UserError for a form that cannot be made here or is not what the adapter is, and for a card that the Hub refuses,
    before anything large is sent; StoreError.
    """
    if making.form not in sending.WEIGHTS:
        raise ConfigError([f"--form: {making.form!r} is none of {', '.join(sending.WEIGHTS)}"])
    if making.form == "gguf":
        gguf.check(making.quantization)
    opened = open_run(values, begun=True)
    config, folder = opened.config, opened.folder
    repo_id = to or config.hub_store
    if repo_id is None or not _is_repo(repo_id):
        raise ConfigError(
            [
                f"--to: {repo_id!r} is no repo of the Hub (user/name)"
                if repo_id
                else f"--to: the store is {config.store!r}, so say which repo of the Hub (user/name) to publish to"
            ]
        )
    if base is not None and not _is_repo(base):
        raise ConfigError([f"--base: {base!r} is no model of the Hub (owner/name)"])
    folder.create()
    with only_session(folder):  # choosing renames what it passes over, which a session here may be writing
        found = resume.choose(folder, opened.store, opened.state)
        if found.kind != "finished" or found.manifest is None:
            raise NotFinished(
                f"Run {config.run!r} is not finished (step {found.step}), so there is nothing to publish yet.",
                todo="Run `train` to go on.",
            )
        manifest, adapter = best.adapter(opened, found, making.adapter)
        step = manifest.step
        token = hub_token()
        if token is None:
            raise UserError(
                "There is no Hub token, and publishing needs one.", todo="Set HF_TOKEN, or `hf auth login`."
            )
        repo = Repo(repo_id, "main", token.value)
        if making.form != "adapter":  # which takes no time to make
            sending.check(repo, public, making.form)
        made = _make(opened, found, adapter, making, repo_id, say)
    base = base or (config.base_model if opened.base_commit else None)
    records = ledger.closed(opened.state.ledger, None)
    page.build(folder, config, records, adapter=adapter)
    result = page.read_result(folder)
    if result and result["adapter_sha256"] != manifest.files[WEIGHTS].sha256:
        say(
            f"warning: The evaluation is of another adapter than this one of step {step}, so it is not published with "
            f"it. Run `evaluate --adapter {making.adapter}`, and publish again."
        )
        result = None

    def write_card(existing: str | None) -> str:
        written = card.write(
            config,
            repo=repo_id,
            base=base,
            commit=opened.base_commit,
            manifest=manifest,
            which=making.adapter,
            ledger=records,
            result=result,
            existing=existing,
            form=making.form,
            made=made,
        )
        return str(written)

    files = _stage(folder, adapter, made, evaluated=result is not None)
    what = f"run {config.run} at step {step}"
    tree, unchanged = sending.send(repo, files, write_card, making.form, public, what, say)
    if not unchanged and base and "llama" in base.lower() and not repo_id.split("/")[1].lower().startswith("llama"):
        say("note: Llama's licence wants the name of a model that is given to others to begin with “Llama”.")
    size = sum(path.stat().st_size for path in files.values())
    return Published(config.run, making.form, repo_id, tree.commit, step, len(files), size, tree.private, unchanged)


def _is_repo(text: str) -> bool:
    return "/" in text and is_hub_id(text)


def _make(
    opened: Opened, found: resume.Resume, adapter: Path, making: Making, repo_id: str, say: Say
) -> export.Export | None:
    """The form, made and compared with the adapter; None where that is the form."""
    if making.form == "adapter":
        return None
    if changed := settle_hooks(opened, found, say):
        say(f"warning: {changed}")
    write_run(opened, found, job="export", session=new_session_id())
    if making.form == "merged":
        return export.merged(opened, adapter, making.scratch, say)
    name = repo_id.split("/")[1].removesuffix("-GGUF")
    return export.quantised(opened, adapter, making.scratch, making.quantization, making.llama_cpp, name, say)


def _stage(folder: RunFolder, adapter: Path, made: export.Export | None, evaluated: bool) -> dict[str, Path]:
    """All files by their names in the repo; the card's is written when it is sent."""
    aside = folder.root / "publish"
    aside.mkdir(exist_ok=True)
    files = {path.name: path for path in sorted((made.folder if made else adapter).iterdir())}
    if made is None:
        write_json(aside / "generation_config.json", export.generation_config(adapter))
        files["generation_config.json"] = aside / "generation_config.json"
    for source in (folder.evaluation, folder.report) if evaluated else (folder.report,):
        for path in sorted(source.rglob("*")) if source.is_dir() else []:
            inside = path.relative_to(source).parts
            # `parts` is what an evaluation goes on from; the answers and scores have all of it.
            if path.is_file() and inside[0] != "parts" and not any(part.startswith(".") for part in inside):
                files[f"{source.name}/{path.relative_to(source).as_posix()}"] = path
    return {**files, CARD: aside / CARD}
