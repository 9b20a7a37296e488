"""The first cell tells all that a session lacks, a line each, before anything is installed; and installs beside."""

import hashlib
import json
import os
import re
import shutil
import socket
import stat
import subprocess
import sys
import zipfile
from collections import namedtuple
from pathlib import Path

import pytest
from support.endings import can_mount
from support.loopback_hub import OWNER, LoopbackHub

from kaggle_lib.errors import UserError
from kaggle_lib.kaggle import first_cell, kernel, overlay, wheel
from kaggle_lib.runs import asking
from kaggle_lib.session import torch_build

ROOT, HOME = Path(__file__).parents[3], Path.home()
SMALL = {
    "run": "first", "repo": None, "public": False, "base_model": "sample", "base_is_of_hub": False, "revision": None,
    "data": "sample", "gpu": False, "token_dataset": "", "requirements": {}, "files": {},
}  # fmt: skip
TORCH = """
class cuda:
    get_arch_list = staticmethod(lambda: {built})
__version__ = "2.11.0+cu128"
"""
T4, P100 = "Tesla T4, 15360, 580.105.08, 7.5, 3", "Tesla P100-PCIE-16GB, 16384, 580.105.08, 6.0, 0"
BUILT = ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120", "compute_120"]


@pytest.fixture(autouse=True)
def _session(tmp_path, monkeypatch):
    """A Kaggle session without GPU, token or network."""
    working = tmp_path / "kaggle" / "working"
    working.mkdir(parents=True)
    monkeypatch.chdir(working)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("KAGGLE_LIB_ROOT", str(tmp_path / "kaggle"))
    for name in (
        "HF_TOKEN",
        "HUGGING_FACE_HUB_TOKEN",
        "HF_HOME",
        "HF_HUB_CACHE",
        "HF_ENDPOINT",
        "XDG_CACHE_HOME",
        "HF_HUB_OFFLINE",
    ):
        monkeypatch.delenv(name, raising=False)
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    with LoopbackHub(tmp_path / "hub") as hub:
        hub.lead_client(monkeypatch)
        yield hub


def check(tmp_path, **wanted):
    said = []
    return first_cell.check({**SMALL, **wanted}, tmp_path / "kaggle" / "temp" / "x", said.append), said


def machine(answer, built, tmp_path, monkeypatch):
    """A driver's tool that gives this answer, and a torch that was built for these architectures."""
    tool = tmp_path / "bin" / "nvidia-smi"
    tool.parent.mkdir()
    tool.write_text(f"#!/bin/sh\ncat <<'END'\n{answer}\nEND\n")
    tool.chmod(tool.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tool.parent}:{os.environ['PATH']}")
    (tmp_path / "image").mkdir()
    (tmp_path / "image" / "torch.py").write_text(TORCH.format(built=built))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "image"))


def test_a_session_that_has_all_of_it_is_told_nothing(hub, tmp_path, monkeypatch):
    machine(f"{T4}\n{T4}", BUILT, tmp_path, monkeypatch)
    corpus = tmp_path / "kaggle/input/datasets/someone/corpus/corpus.csv"
    corpus.parent.mkdir(parents=True)
    corpus.write_text("Questions,Answers\na,b\n")
    model(hub)
    of_hub = {"base_model": f"{OWNER}/base", "base_is_of_hub": True, "repo": f"{OWNER}/runs"}
    assert check(tmp_path, gpu=True, data="someone/corpus", **of_hub) == ([], [])


def model(hub, **files):
    """A base model on the Hub, of 3000 bytes that are loaded."""
    repo = hub.create_repo(f"{OWNER}/base")
    files = {"config.json": b"{}" * 500, "model.safetensors": b"w" * 2000, "pytorch_model.bin": b"w" * 9000, **files}
    from huggingface_hub import CommitOperationAdd, HfApi

    operations = [CommitOperationAdd(name, content) for name, content in files.items() if content]
    HfApi(endpoint=hub.endpoint, token=hub.token).create_commit(repo.id, operations, commit_message="base")
    return repo


# GPU


def test_no_gpu(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert check(tmp_path, gpu=True)[0] == [
        "No GPU: this session has none. Choose GPU T4 x2 as accelerator (Session options, or --accelerator "
        "NvidiaTeslaT4), and run again."
    ]


def test_a_gpu_that_the_images_torch_has_no_code_for(tmp_path, monkeypatch):
    machine(f"{T4}\n{P100}", BUILT, tmp_path, monkeypatch)
    assert check(tmp_path, gpu=True)[0] == [
        "GPU 1 is a Tesla P100-PCIE-16GB (compute capability 6.0), and this image's torch 2.11.0+cu128 has no code for "
        "it (only sm_75, sm_80, sm_86, sm_90, sm_100, sm_120, compute_120). Choose GPU T4 x2 as accelerator (Session "
        "options, or --accelerator NvidiaTeslaT4), and run again."
    ]


def test_a_torch_that_cannot_be_imported_is_told_by_its_last_line(tmp_path, monkeypatch):
    machine(T4, BUILT, tmp_path, monkeypatch)
    (tmp_path / "image" / "torch.py").write_text("raise ImportError('libcudart.so.12: no such file')")
    assert check(tmp_path, gpu=True)[0] == [
        "This image's torch cannot be used: ImportError: libcudart.so.12: no such file. "
        "Choose the image's newest environment."
    ]


@pytest.mark.parametrize(
    ("capability", "built", "runs"),
    [
        ("7.5", ["sm_70", "sm_75"], True),
        ("7.5", ["sm_70"], True),  # the same major version, a lower minor one
        ("7.0", ["sm_75"], False),
        ("6.0", ["sm_50"], False),
        ("9.0", ["sm_80", "compute_80"], True),
        ("6.0", ["sm_75", "compute_75"], False),
        ("12.0", ["sm_90a", "sm_120"], True),
        ("7.5", [], False),
    ],
)
def test_which_code_runs_on_which_gpu(capability, built, runs):
    assert torch_build.has_code(built, capability) is runs


# Network


def test_no_internet_is_one_line_within_the_limit(tmp_path, monkeypatch):
    def fails(*_, **__):
        raise socket.gaierror(-3, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", fails)
    assert check(tmp_path, repo="someone/runs", base_model="a/b", base_is_of_hub=True)[0] == [
        "No Internet: https://huggingface.co does not answer (Temporary failure in name resolution). Switch it on in "
        "the notebook's editor, on the right under Session options (Internet on; the account needs a verified phone "
        "number), or push with enable_internet, and run again."
    ]


def test_a_resolver_that_never_answers_is_not_waited_for(tmp_path, monkeypatch):
    waiting = __import__("threading").Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: waiting.wait() and [])
    monkeypatch.setattr(asking, "SECONDS", 0.2)
    [line] = check(tmp_path, repo="someone/runs")[0]
    waiting.set()
    assert line.startswith("No Internet: https://huggingface.co does not answer (no answer in 0 s). Switch it on")


def test_a_client_that_was_told_to_stay_offline(hub, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert check(tmp_path, repo="a/b")[0] == [
        "The Hub may not be asked: HF_HUB_OFFLINE is set in this session, and the run needs it. Unset it."
    ]
    assert hub.requests == []


def test_all_that_is_missing_is_told_at_once(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    problems, _ = check(tmp_path, gpu=True, repo="a/b", data="someone/corpus")
    assert [line.split(":")[0] for line in problems] == ["No GPU", "data", "No Internet"]
    wanted = {**SMALL, "gpu": True, "repo": "a/b", "data": "someone/corpus"}
    with pytest.raises(first_cell.Refused) as refused:
        first_cell.begin(wanted, tmp_path / "x", lambda _: None)
    assert str(refused.value) == "\n".join(problems)


# The token


@pytest.mark.parametrize(
    ("secret", "problem"),
    [
        ("{}\n", None),
        ("", "is empty"),
        ("   ", "holds only spaces"),
        ('"{}"', "has quotes around it"),
        ("{}\u200b", "has a character that is in no token, U+200B, at place 38"),
    ],
)
def test_a_secret_that_was_pasted_wrong(secret, problem, hub, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", secret.format(hub.token))
    problems, _ = check(tmp_path, repo=f"{OWNER}/runs")
    if problem is None:
        assert (problems, os.environ["HF_TOKEN"]) == ([], hub.token)
        return
    assert problems == [
        f"The Hugging Face token in HF_TOKEN {problem}. "
        "Store it anew, from https://huggingface.co/settings/tokens, or remove it there."
    ]


def test_no_secret(hub, tmp_path, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    todo = "Attach the secret HF_TOKEN in the notebook's editor (Add-ons, Secrets), and run again."
    assert check(tmp_path, repo="a/b")[0] == [f"No Hugging Face token: store=hf://a/b needs one. {todo}"]
    assert check(tmp_path, repo="a/b", token_dataset="a/token")[0] == [
        f"No Hugging Face token: store=hf://a/b needs one, and the dataset a/token brings none. {todo}"
    ]
    assert check(tmp_path) == ([], [])  # a folder needs none


def test_a_token_that_only_reads_is_found_by_a_write(hub, tmp_path, monkeypatch):
    store = f"{OWNER}/runs"
    assert check(tmp_path, repo=store)[0] == []  # makes the repo, as the run would
    assert hub.repo(store).private
    assert check(tmp_path, repo=store)[0] == []  # it is there: a branch is made, and removed
    assert sorted(hub.repo(store).branches) == ["main"]
    written = [(one.method, one.path.split("?")[0]) for one in hub.requests if one.method in ("POST", "DELETE")]
    probe = f"/api/models/{store}/branch/kaggle-lib-write-check"
    assert written == [("POST", "/api/repos/create"), ("POST", probe), ("DELETE", probe)]
    monkeypatch.setenv("HF_TOKEN", hub.read_token)
    todo = "Store one that may write to it, from https://huggingface.co/settings/tokens."
    for repo in (store, f"{OWNER}/new"):
        assert check(tmp_path, repo=repo)[0] == [
            f"The Hugging Face token in HF_TOKEN may not write to {repo} (HTTP 403). {todo}"
        ]
    monkeypatch.setenv("HF_TOKEN", "hf_thatwasdeleted")
    assert check(tmp_path, repo=store)[0] == [
        f"The Hugging Face token in HF_TOKEN is not valid any more (HTTP 401). {todo}"
    ]


def test_a_branch_left_by_a_killed_check_is_no_problem(hub, tmp_path):
    repo = hub.create_repo(f"{OWNER}/runs")
    repo.add_ref(repo.branches, asking.PROBE, "main")
    assert check(tmp_path, repo=repo.id) == ([], [])
    assert sorted(repo.branches) == ["main"]


def test_nothing_is_written_where_something_else_is_missing(hub, tmp_path):
    check(tmp_path, repo=f"{OWNER}/runs", data="someone/corpus")
    assert {one.method for one in hub.requests} <= {"HEAD", "GET"}


def test_a_hub_that_fails_for_a_moment_ends_no_session(hub, tmp_path):
    hub.faults.add(action="503", method="GET", path=f"/api/models/{OWNER}/runs")
    assert check(tmp_path, repo=f"{OWNER}/runs") == (
        [], [f"The Hub answers 503 for {OWNER}/runs: going on, it will be asked again."]
    )  # fmt: skip


@pytest.mark.parametrize(("action", "shown"), [("307", "307"), ("drop_before", None)])
def test_a_base_model_that_moved_or_a_connection_that_breaks_ends_no_session(action, shown, hub, tmp_path):
    hub.faults.add(action=action, method="GET", path=f"/api/models/{OWNER}/base")
    problems, [note] = check(tmp_path, base_model=f"{OWNER}/base", base_is_of_hub=True)
    assert problems == []
    assert note.startswith(f"The Hub answers {shown or ''}")
    assert note.endswith(f" for {OWNER}/base: going on, it will be asked again.")


# The base model, the corpus, the disk


def test_a_base_model_that_cannot_be_had(hub, tmp_path, monkeypatch):
    what = f"The base model {OWNER}/base cannot be had:"
    base = {"base_model": f"{OWNER}/base", "base_is_of_hub": True}
    nobody = f"{what} there is no model of that name on the Hub that"
    assert check(tmp_path, **base)[0] == [f"{nobody} the token may read. Check base_model, and the token."]
    model(hub)
    assert check(tmp_path, **base)[0] == []
    assert check(tmp_path, **base, revision="v9")[0] == [f"{what} it has no revision 'v9' on the Hub. Check revision."]
    monkeypatch.delenv("HF_TOKEN")
    assert check(tmp_path, **base)[0] == [f"{nobody} can be read without a token. Check base_model, and the token."]


def test_a_gated_base_model(hub, tmp_path, monkeypatch):
    model(hub)
    hub.faults.add(action="403", method="HEAD", path="/config.json", code="GatedRepo", times=9)
    [line] = check(tmp_path, base_model=f"{OWNER}/base", base_is_of_hub=True)[0]
    assert line == (
        f"The base model {OWNER}/base cannot be had: its licence has to be accepted first, on "
        f"https://huggingface.co/{OWNER}/base, with the account that the token is of."
    )


def test_a_base_model_that_is_not_attached(tmp_path):
    folder = tmp_path / "kaggle/input/llama"
    [line] = check(tmp_path, base_model=str(folder))[0]
    assert line == (
        f"The base model {folder} is not attached: there is no config.json in it. "
        "Attach the model (Add Input), or give an id of the Hub."
    )
    folder.mkdir(parents=True)
    (folder / "config.json").touch()
    assert check(tmp_path, base_model=str(folder))[0] == []


def test_a_corpus_that_is_not_attached(tmp_path):
    inputs = tmp_path / "kaggle" / "input"
    [line] = check(tmp_path, data="someone/corpus")[0]
    assert line == (
        "data: there is no file 'someone/corpus', and no dataset of that name is attached (looked in "
        f"{inputs}/corpus, {inputs}/datasets/someone/corpus, {inputs}/d/someone/corpus). "
        "Attach the dataset to the notebook (Add Input), or give the path of the file."
    )


def test_no_space_is_told_with_what_shares_the_disk(hub, tmp_path, monkeypatch):
    model(hub, **{"model.safetensors": b"w" * 10_000_000})
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(0, 0, 4_005_000_000))
    wanted = {"base_model": f"{OWNER}/base", "base_is_of_hub": True, "requirements": {"no-such-package": "==1"}}
    [line] = check(tmp_path, **wanted)[0]
    assert line == (
        f"No space: {tmp_path / 'kaggle'} has 4.0 GB free, and this run needs 4.0 GB there. "
        "Free the disk, or start a new session."
    )
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(0, 0, 4_020_000_000))
    assert check(tmp_path, **wanted)[0] == []


# What is installed, and where


def package(folder, name, version, *needs):
    """A wheel of one module that says its version."""
    folder.mkdir(exist_ok=True)
    about = f"{name}-{version}.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    metadata += "".join(f"Requires-Dist: {one}\n" for one in needs)
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as made:
        made.writestr(f"{name}.py", f"version = {version!r}\n")
        made.writestr(f"{about}/METADATA", metadata)
        made.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        made.writestr(f"{about}/RECORD", "")


INSTALL = """
import json, sys
from pathlib import Path
import livepkg
from kaggle_lib.kaggle import overlay
said = []
try:
    python = overlay.install(json.loads(sys.argv[1]), Path(sys.argv[2]), said.append)
except Exception as error:
    python = f"{type(error).__name__}: {error}"
print(json.dumps([python, said, livepkg.version, "torch" in sys.modules]))
"""
SHOW = "import json, livepkg, newpkg, torch; print(json.dumps([livepkg.version, newpkg.version, torch.version]))"


@pytest.fixture
def image(tmp_path):
    """A Python whose image has torch 2.11 and livepkg 1.0, and an index with newer ones."""
    index, place = tmp_path / "index", tmp_path / "image" / "site-packages"
    package(tmp_path / "old", "livepkg", "1.0")
    package(tmp_path / "old", "torch", "2.11.0+cu128")
    for path in (tmp_path / "old").iterdir():
        with zipfile.ZipFile(path) as files:
            files.extractall(place)
    package(index, "livepkg", "2.0")
    package(index, "torch", "2.13.0")
    package(index, "newpkg", "3.0", "torch>=2", "livepkg")
    env = {"PYTHONPATH": f"{place}:{ROOT}", "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(index)}
    return {**os.environ, **env, "HF_TOKEN": "hf_x"}


def install(image, wanted, folder, **more):
    words = [sys.executable, "-c", INSTALL, json.dumps(wanted), str(folder)]
    done = subprocess.run(words, env={**image, **more}, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def test_what_the_image_lacks_goes_beside_it_and_its_torch_and_what_the_kernel_has_imported_stay(image, tmp_path):
    wanted = {"livepkg": "==2.0", "newpkg": "==3.0", "torch": ">=2.10,<2.12"}
    before = {path: path.read_bytes() for path in (tmp_path / "image").rglob("*.py")}
    python, said, live, torch = install(image, wanted, tmp_path / "environment")
    assert said[0] == ("Installing what this image lacks: livepkg==2.0, newpkg==3.0. Its torch 2.11.0+cu128 stays.")
    assert (python, live, torch) == (str(tmp_path / "environment/bin/python"), "1.0", False)
    assert {path: path.read_bytes() for path in (tmp_path / "image").rglob("*.py")} == before
    shown = subprocess.run([python, "-c", SHOW], capture_output=True, text=True, check=True, env={"PATH": ""}).stdout
    assert json.loads(shown) == ["2.0", "3.0", "2.11.0+cu128"]
    # Once is enough for a kernel that runs the cell again; pip would have to be asked for anything else.
    assert install(image, wanted, tmp_path / "environment", PIP_FIND_LINKS="/nowhere")[:2] == [python, []]


def test_an_image_that_has_it_all_is_used_as_it_is(image, tmp_path):
    wanted = {"livepkg": "==1.0", "torch": ">=2.10,<2.11"}
    assert install(image, wanted, tmp_path / "environment")[:2] == [sys.executable, []]
    assert not (tmp_path / "environment").exists()


def test_nothing_brings_another_torch(image, tmp_path):
    package(tmp_path / "index", "needy", "1.0", "torch>=2.12")
    told, said, *_ = install(image, {"needy": "==1.0", "torch": ">=2.10"}, tmp_path / "environment")
    assert told == "UserError: pip cannot install what this image lacks; its last lines are above. Run it again."
    assert "The user requested (constraint) torch" in said[1]


def test_pip_that_fails_says_its_last_lines(image, tmp_path):
    told, said, *_ = install(image, {"newpkg": "==4.0"}, tmp_path / "environment")
    assert told == "UserError: pip cannot install what this image lacks; its last lines are above. Run it again."
    assert "No matching distribution found for newpkg==4.0" in said[1]
    assert not (tmp_path / "environment" / "ready").exists()


def test_an_index_that_is_not_reached_is_no_internet(image, tmp_path):
    offline = {
        "PIP_NO_INDEX": "0",
        "PIP_FIND_LINKS": "",
        "PIP_INDEX_URL": "http://127.0.0.1:9/simple",
        "PIP_RETRIES": "1",
    }
    told, *_ = install(image, {"newpkg": "==3.0"}, tmp_path / "environment", **offline)
    assert told == "UserError: " + overlay.NO_INTERNET.format("the package index does not answer")


def test_half_removed_packages_are_no_error(tmp_path, monkeypatch):
    (tmp_path / "torchvision-0.26.dist-info").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    assert "pydantic" in overlay.installed()


def test_the_first_cell_imports_the_standard_library_alone():
    """The image's packages may be old, or broken; `-S` hides them all."""
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from kaggle_lib.kaggle import cell, first_cell"
    subprocess.run([sys.executable, "-I", "-S", "-c", code], check=True)


@pytest.fixture(scope="module")
def cell_alone(tmp_path_factory):
    """A whole first cell as a file, for a run that needs nothing."""
    made = wheel.build(ROOT)
    path = tmp_path_factory.mktemp("cell") / "cell.py"
    path.write_text(kernel._first_cell(SMALL, wheel.pack(made), hashlib.sha256(made).hexdigest()).source)
    return path


@pytest.mark.parametrize("python", ["3.10", "3.11", "3.12", "3.13"])
def test_the_whole_cell_runs_on_it_without_any_package(python, cell_alone):
    installed = Path(os.environ.get("PYENV_ROOT") or HOME / ".pyenv") / "versions"
    found = [*sorted(installed.glob(f"{python}.*/bin/python")), *filter(None, [shutil.which(f"python{python}")])]
    # A pyenv shim may be on the path and lead nowhere.
    found = [one for one in found if subprocess.run([one, "-c", ""], capture_output=True, check=False).returncode == 0]
    if not found:
        pytest.skip(f"there is no Python {python} here")
    done = subprocess.run([found[0], "-I", "-S", cell_alone], capture_output=True, text=True, check=False)
    if python == "3.10":
        assert done.returncode == 1
        line = done.stderr.splitlines()[-1]
        assert line.startswith("__main__.Refused: Python 3.11 or newer is needed, and this image has 3.10.")
        return
    assert (done.returncode, done.stderr) == (0, "")
    begins, ends = done.stdout.splitlines()
    assert begins == "kaggle_lib 0.1.0, run first: looking at this session."
    assert re.fullmatch(r"Ready after \d+ s\.", ends)


def test_a_disk_that_is_full_is_one_line(cell_alone, tmp_path):
    if not can_mount():
        pytest.skip("a small disk cannot be mounted here")
    disk = tmp_path / "kaggle" / "temp"
    disk.mkdir()
    words = ["unshare", "--mount", "sh", "-c", f'mount -t tmpfs -o size=64k tmpfs {disk} && exec "$@"', "-"]
    words += [sys.executable, "-I", "-S", str(cell_alone)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    line = re.sub(r"kaggle_lib-[0-9a-f]{12}", "ID", done.stderr.splitlines()[-1])
    assert line == (
        f"Refused: No space: {disk}/ID cannot be written (No space left on device). Free the disk, and run again."
    )


def test_hooks_are_written_and_the_library_stands_where_a_cell_imports_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "kaggle_lib", sys.modules["kaggle_lib"])
    (tmp_path / "x" / "lib").mkdir(parents=True)
    said = []
    first_cell.begin({**SMALL, "files": {"mine.py": "eCA9IDEK"}}, tmp_path / "x", said.append)
    assert Path("mine.py").read_text() == "x = 1\n"
    assert said[0] == "kaggle_lib 0.1.0, run first: looking at this session."
    import kaggle_lib as kl

    assert kl.__doc__ == "The library, each call in a process of its own."
    with pytest.raises(UserError, match=r"^load: this kernel runs the library in processes of its own"):
        kl.load()
    with pytest.raises(AttributeError):
        kl._nothing  # noqa: B018
