"""A kernel is one notebook with all that it needs, the same bytes each time, and no token in it."""

import ast
import base64
import hashlib
import io
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import nbformat
import pytest

from kaggle_lib.config import RunConfig, parse
from kaggle_lib.errors import UserError
from kaggle_lib.kaggle import cell, kernel, wheel
from kaggle_lib.presets import read_preset
from kaggle_lib.report.pins import pins

ROOT = Path(__file__).parents[3]
ID = "someone/first-run"
BENGALI = "আপনি একজন সহানুভূতিশীল শ্রোতা।"
HOOKS = f'def format_row(row):\n    return {{**row, "Answers": "{BENGALI} " + row["Answers"]}}\n'


@pytest.fixture(autouse=True)
def _no_tokens(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HOME", "XDG_CACHE_HOME", "KAGGLE_KEY", "KAGGLE_API_TOKEN"):
        monkeypatch.delenv(name, raising=False)


def config(preset="bengali-8b-t4", **values):
    return RunConfig.create({**read_preset(preset), "run": "first", "store": "hf://someone/runs", **values})


def read(built):
    return nbformat.read(built.notebook, as_version=4)


def wanted(built):
    """What the first cell was told."""
    [node] = [n for n in ast.parse(read(built).cells[0].source).body if isinstance(n, ast.Assign)][:1]
    assert node.targets[0].id == "WANTED"
    return json.loads(node.value.args[0].value)


def parameters(built):
    [injected] = [c for c in read(built).cells if "injected-parameters" in c.metadata.get("tags", [])]
    assert injected.source.startswith("# Parameters\n")
    return {node.targets[0].id: ast.literal_eval(node.value) for node in ast.parse(injected.source).body}


BUILD = """
import sys
from pathlib import Path
from kaggle_lib.config import RunConfig
from kaggle_lib.kaggle import kernel
from kaggle_lib.presets import read_preset
prompt = bytes.fromhex(sys.argv[3]).decode()
given = {**read_preset("bengali-8b-t4"), "run": "first", "system_prompt": prompt, "hooks": sys.argv[2]}
kernel.build("train", RunConfig.create(given), Path(sys.argv[1]), id="someone/first-run")
"""


def test_the_same_bytes_whatever_the_locale_the_day_and_the_place(tmp_path):
    made = []
    for name, locale in (
        ("a", {"PYTHONUTF8": "0", "PYTHONIOENCODING": "cp1252", "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0"}),
        ("b", {"LC_ALL": "C.UTF-8", "PYTHONHASHSEED": "7", "TZ": "Asia/Dhaka"}),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine.py").write_text(HOOKS, encoding="utf-8")
        words = [tmp_path / name / "kernel", tmp_path / name / "mine.py", BENGALI.encode().hex()]
        done = subprocess.run(
            [sys.executable, "-c", BUILD, *map(str, words)],
            cwd=tmp_path / name, env={**os.environ, "PYTHONPATH": str(ROOT), **locale},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert (done.returncode, done.stderr) == (0, "")
        folder = tmp_path / name / "kernel"
        made.append({path.name: path.read_bytes() for path in folder.iterdir()})
    assert sorted(made[0]) == ["kernel-metadata.json", "train.ipynb"]
    assert made[0] == made[1]
    [injected] = [
        one["source"]
        for one in json.loads(made[0]["train.ipynb"])["cells"]
        if "injected-parameters" in str(one["metadata"])
    ]
    values = {node.targets[0].id: ast.literal_eval(node.value) for node in ast.parse("".join(injected)).body}
    assert values["system_prompt"] == BENGALI


def test_the_notebook_is_valid_has_a_kernel_no_output_and_the_cells_of_the_committed_one(tmp_path):
    built = kernel.build("train", config(), tmp_path, id=ID)
    notebook, committed = read(built), nbformat.read(ROOT / "notebooks" / "train.ipynb", as_version=4)
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec == {"display_name": "Python 3", "language": "python", "name": "python3"}
    assert "papermill" not in notebook.metadata
    assert not any(one.get("outputs") or one.get("execution_count") for one in notebook.cells)
    assert notebook.cells[0].source.startswith('"""The first cell of a kernel')
    rest = [one for one in notebook.cells[1:] if "injected-parameters" not in one.metadata.get("tags", [])]
    assert [(one.cell_type, one.source) for one in rest] == [(one.cell_type, one.source) for one in committed.cells]
    assert built.size == len(json.dumps(json.loads(built.notebook.read_text(encoding="utf-8"))))
    assert built.size <= 950_000


def test_the_parameters_are_the_configuration_and_nothing_of_the_notebooks_own_remains(tmp_path):
    given = config(learning_rate="1e-4", rows="", system_prompt=BENGALI, lora_target_modules="q_proj,v_proj")
    found = parameters(kernel.build("train", given, tmp_path, id=ID))
    assert found.pop("preset") == ""
    assert RunConfig.create(parse(found)[0]) == given
    own = nbformat.read(ROOT / "notebooks" / "train.ipynb", as_version=4).cells
    [cell_] = [one for one in own if "parameters" in one.metadata.get("tags", [])]
    assert {node.target.id for node in ast.parse(cell_.source).body} <= {*found, "preset"}


def test_an_evaluation_gets_the_runs_name_and_places(tmp_path):
    built = kernel.build("evaluate", config(public_store=True), tmp_path, id=ID)
    assert parameters(built) == {
        "run": "first", "store": "hf://someone/runs", "work_dir": "work", "public_store": True,
    }  # fmt: skip
    assert built.metadata["code_file"] == "evaluate.ipynb"


def test_a_parameter_that_the_notebook_lacks_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"notebooks/evaluate\.ipynb has no parameter raters\."):
        kernel.build("evaluate", config(), tmp_path, id=ID, more={"raters": 3})


def test_the_metadata_are_the_roots_with_what_this_kernel_decides(tmp_path):
    sources = {"datasets": ["someone/second"], "kernels": ["someone/first-run"], "token_dataset": "someone/token"}
    built = kernel.build("train", config(), tmp_path, id=ID, **sources)
    assert json.loads((tmp_path / "kernel-metadata.json").read_text(encoding="utf-8")) == built.metadata
    assert built.metadata == {
        "id": "someone/first-run",
        "title": "first-run",
        "code_file": "train.ipynb",
        "language": "python",
        "kernel_type": "notebook",
        "is_private": True,
        "enable_gpu": True,
        "enable_tpu": False,
        "enable_internet": True,
        "machine_shape": "NvidiaTeslaT4",
        "dataset_sources": [
            "raseluddin/bengali-empathetic-conversations-corpus", "someone/second", "someone/token",
        ],
        "competition_sources": [],
        "kernel_sources": ["someone/first-run"],
        "model_sources": [],
    }  # fmt: skip
    assert wanted(built)["token_dataset"] == "someone/token"
    titled = kernel.build("train", config(data="sample"), tmp_path, id=ID, title="First run")
    assert (titled.metadata["title"], titled.metadata["dataset_sources"]) == ("First run", [])


def test_the_first_cell_knows_what_the_run_needs(tmp_path):
    told = wanted(kernel.build("train", config(revision="a'''c"), tmp_path, id=ID))
    assert {name: told[name] for name in told if name != "requirements"} == {
        "run": "first", "repo": "someone/runs", "public": False, "gpu": True, "token_dataset": "", "files": {},
        "base_model": "meta-llama/Llama-3.1-8B-Instruct", "base_is_of_hub": True, "revision": "a'''c",
        "data": "raseluddin/bengali-empathetic-conversations-corpus",
    }  # fmt: skip
    small = wanted(kernel.build("train", config("tiny-cpu", store="store"), tmp_path, id=ID))
    assert (small["gpu"], small["repo"], small["base_is_of_hub"]) == (False, None, False)


def test_unsloth_and_what_comes_with_it_is_installed_for_unsloth_only(tmp_path):
    pinned = pins(ROOT / "requirements.txt")
    beside = {"torchvision", "triton", "xformers"}
    told = [
        wanted(kernel.build("train", config(preset, strategy=strategy), tmp_path, id=ID))["requirements"]
        for preset, strategy in (("bengali-8b-t4", "peft"), ("bengali-8b-t4", "unsloth"), ("tiny-cpu", "unsloth"))
    ]
    assert set(told[1]) == set(pinned) - {"ipykernel", "jupytext", "papermill"}
    assert set(told[1]) - set(told[0]) == {"unsloth", "unsloth_zoo", *beside}
    assert set(told[1]) - set(told[2]) == beside
    assert told[1] == {name: pinned[name] for name in told[1]}


def test_a_hooks_file_travels_and_its_parameter_names_it_there(tmp_path):
    mine = tmp_path / "somewhere" / "mine.py"
    mine.parent.mkdir()
    mine.write_text(HOOKS, encoding="utf-8")
    built = kernel.build("train", config(hooks=str(mine)), tmp_path, id=ID)
    assert parameters(built)["hooks"] == "mine.py"
    assert base64.b64decode(wanted(built)["files"]["mine.py"]).decode("utf-8") == HOOKS
    assert str(mine.parent) not in built.notebook.read_text(encoding="utf-8")


LOOKS = "hf_" + "aB3" * 11


@pytest.mark.parametrize("where", ["the parameters", "hooks", "kernel-metadata.json"])
@pytest.mark.parametrize("token", [LOOKS, "KGAT_" + "0a1B" * 8, "this-machines-own"])
def test_a_token_goes_nowhere(where, token, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "this-machines-own")
    mine = tmp_path / "mine.py"
    mine.write_text(f"TOKEN = {token!r}\n{HOOKS}" if where == "hooks" else HOOKS, encoding="utf-8")
    given = config(hooks=str(mine), system_prompt=f"Say {token}." if where == "the parameters" else "")
    title = f"Run {token}" if where == "kernel-metadata.json" else ""
    with pytest.raises(UserError) as refused:
        kernel.build("train", given, tmp_path / "kernel", id=ID, title=title)
    assert str(refused.value) == (
        f"There is a token in {where}, and whoever may read the kernel could read it. Nothing was written. "
        "Take it out; a session finds its token in the Kaggle secret HF_TOKEN."
    )
    assert not (tmp_path / "kernel").exists()


def test_what_lies_on_this_machine_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.csv").write_text("Questions,Answers\na,b\n")
    (tmp_path / "model").mkdir()
    for data in ("mine.csv", str(tmp_path / "mine.csv"), "nowhere/deep/mine.csv"):
        with pytest.raises(UserError, match=f"^data: {data!r} is of this machine, and does not travel with a kernel"):
            kernel.build("train", config(data=data), tmp_path / "kernel", id=ID)
    for model in ("model", str(tmp_path / "model"), "/nowhere/model"):
        with pytest.raises(UserError, match=f"^base_model: {model!r} is of this machine, and does not travel"):
            kernel.build("train", config(base_model=model), tmp_path / "kernel", id=ID)
    attached = {"data": "/kaggle/input/corpus/mine.csv", "base_model": "/kaggle/input/llama/transformers/8b/1"}
    built = kernel.build("train", config(**attached), tmp_path / "kernel", id=ID)
    assert built.metadata["dataset_sources"] == []


def test_a_notebook_that_kaggle_would_not_take_is_refused(tmp_path):
    mine = tmp_path / "mine.py"
    mine.write_text(HOOKS + f"TABLE = {os.urandom(300_000).hex()!r}\n", encoding="utf-8")
    with pytest.raises(
        UserError, match=r"^The notebook has 1,\d{3},\d{3} bytes as it is sent, and Kaggle takes 950,000"
    ):
        kernel.build("train", config(hooks=str(mine)), tmp_path / "kernel", id=ID)
    assert not (tmp_path / "kernel").exists()


def test_a_clone_is_needed(tmp_path):
    with pytest.raises(UserError) as refused:
        kernel.build("train", config(), tmp_path / "kernel", id=ID, clone=tmp_path)
    assert str(refused.value).startswith(
        f"A kernel is built from a clone of the repository, and {tmp_path / 'kernel-metadata.json'} cannot be read"
    )


def test_make_kernel_asks_whose_it_is_and_builds(tmp_path, capsys):
    words = ["--preset", "tiny-cpu", "--set", "run=second", "--into", str(tmp_path / "kernel")]
    assert kernel.main(words) == 1
    assert capsys.readouterr().err == (
        "Whose kernel is it? Put your name on Kaggle into the id in kernel-metadata.json.\n"
    )
    assert kernel.main([*words, "--id", "someone/second"]) == 0
    assert f"now `kaggle kernels push -p {tmp_path / 'kernel'}`." in capsys.readouterr().out


# The wheel


def test_the_wheel_holds_the_library_whole_and_a_record_of_it():
    made = wheel.build(ROOT)
    assert made == wheel.build(ROOT)
    with zipfile.ZipFile(io.BytesIO(made)) as files:
        content = {entry.filename: files.read(entry) for entry in files.infolist()}
        assert {entry.date_time for entry in files.infolist()} == {(1980, 1, 1, 0, 0, 0)}
    package = [path for path in (ROOT / "kaggle_lib").rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    [about] = {name.split("/")[0] for name in content if not name.startswith("kaggle_lib/")}
    assert {name for name in content if name.startswith("kaggle_lib/")} == {
        path.relative_to(ROOT).as_posix() for path in package
    }
    assert all(content[path.relative_to(ROOT).as_posix()] == path.read_bytes() for path in package)
    for line in content[f"{about}/RECORD"].decode().splitlines()[:-1]:
        name, digest, size = line.rsplit(",", 2)
        own = base64.urlsafe_b64encode(hashlib.sha256(content[name]).digest()).decode().rstrip("=")
        assert (digest, int(size)) == (f"sha256={own}", len(content[name]))


def test_pip_installs_the_wheel(tmp_path):
    path = tmp_path / "kaggle_lib-0.1.0-py3-none-any.whl"
    path.write_bytes(wheel.build(ROOT))
    words = ["install", "--quiet", "--no-deps", "--no-index", "--disable-pip-version-check", "--target", "there", path]
    subprocess.run([sys.executable, "-m", "pip", *map(str, words)], cwd=tmp_path, check=True)
    assert (tmp_path / "there/kaggle_lib/data/sample/bengali_sample.csv").is_file()


def test_what_is_packed_unpacks_and_what_is_damaged_is_refused(tmp_path, monkeypatch):
    (tmp_path / "kaggle" / "working").mkdir(parents=True)
    monkeypatch.setenv("KAGGLE_LIB_ROOT", str(tmp_path / "kaggle"))
    monkeypatch.setattr(sys, "path", list(sys.path))
    made = wheel.build(ROOT)
    packed, sha256 = wheel.pack(made), hashlib.sha256(made).hexdigest()
    folder = cell.unpack(packed, sha256)
    assert folder == tmp_path / "kaggle" / "temp" / f"kaggle_lib-{sha256[:12]}"
    assert sys.path[0] == str(folder / "lib")
    source = (ROOT / "kaggle_lib/config.py").read_bytes()
    assert (folder / "lib/kaggle_lib/config.py").read_bytes() == source
    middle = len(packed) // 2
    another = wheel.pack(made + b"another library, packed as well")
    for damaged in (another, packed[:middle], packed[:middle] + "AAAA" + packed[middle + 4 :], packed[1:], ""):
        with pytest.raises(cell.Refused) as refused:
            cell.unpack(damaged, sha256)
        assert refused.value._render_traceback_() == [
            "Refused: This notebook is damaged: its library is not the one that was packed. Push it again."
        ]
