"""The workflows: pinned actions, and the release's own script, which puts a notebook where the badge opens it."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import nbformat
import pytest
import yaml
from support import loopback_kaggle_image

import kaggle_lib
from kaggle_lib.files import read_json
from kaggle_lib.kaggle.kernel import NOBODY

ROOT = Path(__file__).parents[2]
WORKFLOWS = {path.stem: path.read_text(encoding="utf-8") for path in (ROOT / ".github/workflows").glob("*.yml")}
[DOCUMENTED] = re.findall(
    r"^```\n(name: chain\n.*?)^```$", (ROOT / "docs/kaggle.md").read_text(), re.DOTALL | re.MULTILINE
)
ALL = {**WORKFLOWS, "chain": DOCUMENTED}
BADGE = r"\]\(https://kaggle\.com/kernels/welcome\?src=(https://github\.com/[^/]+/[^/]+)/blob/([^/]+)/([^/)]+)\)"
VERSION = f"v{kaggle_lib.__version__}"
CLONE = (
    *("kaggle_lib", "notebooks", "README.md", "pyproject.toml", "requirements.txt", "requirements-cpu.txt"),
    "kernel-metadata.json",
)


def jobs(name):
    return yaml.safe_load(ALL[name])["jobs"].values()


def steps(name):
    return [step for job in jobs(name) for step in job["steps"]]


def script(name):
    """What the release's step of that name runs."""
    [found] = [step["run"] for step in steps("release") if step.get("name") == name]
    return found


@pytest.mark.parametrize("name", sorted(ALL))
def test_a_workflow_may_little_and_ends(name):
    workflow = yaml.safe_load(ALL[name])
    assert workflow["permissions"] == {"contents": "write" if name == "release" else "read"}
    assert all(job["timeout-minutes"] <= 120 and job["runs-on"] == "ubuntu-24.04" for job in jobs(name))
    for step in steps(name):
        assert ("run" in step) != ("uses" in step)
        # What an event brings goes through the environment, never into a script.
        assert "${{" not in step.get("run", "")


@pytest.mark.parametrize("name", sorted(ALL))
def test_every_action_is_pinned_by_its_commit_with_the_version_beside_it(name):
    used = re.findall(r"uses: *(.*)", ALL[name])
    assert len(used) == sum("uses" in step for step in steps(name))
    for line in used:
        assert re.fullmatch(r"actions/[a-z-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", line), line


def test_one_version_of_each_action():
    used = {line for text in ALL.values() for line in re.findall(r"uses: *(.*)", text)}
    assert len({line.split("@")[0] for line in used}) == len(used) == 2


def test_ci_is_what_a_change_has_to_pass():
    assert [step["run"] for step in steps("ci") if "run" in step] == [".ci/run"]
    assert os.access(ROOT / ".ci/run", os.X_OK)


@pytest.mark.parametrize(("code", "told"), [(0, 0), (75, 0), (1, 1), (2, 1)])
def test_the_scheduled_chain_fails_only_where_a_person_has_to_look(code, told, tmp_path):
    [step] = steps("chain")
    command = step["run"][step["run"].index(".venv/bin/python -m") :]
    python = tmp_path / ".venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\necho "$@"\nexit {code}\n')
    python.chmod(0o755)
    done = subprocess.run(["bash", "-e", "-c", command], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == told
    words = "-m kaggle_lib chain --once --preset bengali-8b-t4 --set store=hf://YOUR-NAME/runs"
    assert done.stdout.split() == words.split()


def test_one_version_everywhere_and_a_citation_that_is_one():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    # What the Citation File Format 1.2.0 requires.
    assert {"cff-version", "message", "title", "authors"} <= set(citation)
    assert citation["cff-version"] == "1.2.0"
    assert all("name" in one or "family-names" in one for one in citation["authors"])
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["version"] == str(citation["version"]) == kaggle_lib.__version__
    assert project["license"] == citation["license"]


# The release


@pytest.fixture
def release(tmp_path):
    """A clone of an owner who filled in his name, with an origin; runs a step of the workflow as it is written."""
    clone, origin = tmp_path / "clone", tmp_path / "origin.git"
    clone.mkdir()
    for name in CLONE:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, clone / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, clone / name)
    (clone / "README.md").write_text((ROOT / "README.md").read_text(encoding="utf-8").replace(NOBODY, "somebody"))
    (clone / ".venv").symlink_to(Path(sys.prefix))
    subprocess.run(["git", "init", "-q", "--bare", origin], check=True)
    subprocess.run(["git", "init", "-q", clone], check=True)
    subprocess.run(["git", "remote", "add", "origin", origin], cwd=clone, check=True)

    def run(step, code=0, **more):
        environment = {"GITHUB_REF_NAME": VERSION, "GITHUB_REPOSITORY": "somebody/kaggle_lib"}
        environment |= {"GITHUB_REPOSITORY_OWNER": "somebody", "PYTHONPATH": str(clone), **more}
        [env] = [job["env"] for job in jobs("release")]
        done = subprocess.run(
            ["bash", "-e", "-c", script(step)],  # as GitHub's runner does
            cwd=clone, env={**os.environ, **env, **environment}, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == code, done.stderr
        return done.stderr

    run.clone, run.origin = clone, origin
    return run


def test_the_release_refuses_another_version_and_a_badge_of_nobody(release):
    assert release("Build", code=1, GITHUB_REF_NAME="v9.9.9") == (
        f"The tag is v9.9.9 and the code's version {VERSION}: give both the same.\n"
    )
    shutil.copy(ROOT / "README.md", release.clone / "README.md")
    assert release("Build", code=1) == (
        "The README's badge opens another repository's notebook: put somebody/kaggle_lib there.\n"
    )
    assert not (release.clone / "build").exists()


def git(folder, *words):
    return subprocess.run(["git", *words], cwd=folder, capture_output=True, check=True).stdout


@pytest.mark.slow
def test_the_badge_opens_what_the_release_builds_and_it_runs_where_there_is_no_library(release, tmp_path, monkeypatch):
    release("Build")
    release("Put it on dist")
    release("Put it on dist", GITHUB_REF_NAME="again")  # whatever is there already
    [(repository, branch, path)] = re.findall(BADGE, (release.clone / "README.md").read_text(encoding="utf-8"))
    assert repository == "https://github.com/somebody/kaggle_lib"
    assert git(release.origin, "ls-tree", "--name-only", branch).decode().split() == [path]
    text = git(release.origin, "show", f"{branch}:{path}").decode()
    notebook = nbformat.reads(text, as_version=4)
    nbformat.validate(notebook)
    committed = nbformat.read(ROOT / "notebooks/quickstart.ipynb", as_version=4)
    # The library, then the notebook as it is: its own parameters, and no second cell of them.
    assert [cell.source for cell in notebook.cells[1:]] == [cell.source for cell in committed.cells]
    image = loopback_kaggle_image.build(tmp_path / "image")
    working = tmp_path / "kaggle" / "working"
    working.mkdir(parents=True)
    (tmp_path / "quickstart.ipynb").write_text(text, encoding="utf-8")
    short = ("-r", "max_steps", "2", "-r", "rows", "48", "-r", "max_length", "128", "-r", "eval_steps", "0")
    short += ("-r", "answer_rows", "2")
    hidden = ("PYTHONPATH", "HF_TOKEN", "HF_ENDPOINT")
    own = {name: value for name, value in os.environ.items() if name not in hidden and not name.endswith("_proxy")}
    own |= {"HOME": str(tmp_path / "home"), "PATH": f"{image.parent}:/usr/bin:/bin", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(
        [image, "-m", "papermill", "--no-progress-bar", tmp_path / "quickstart.ipynb", tmp_path / "out.ipynb", *short],
        cwd=working, env={**own, "KAGGLE_LIB_ROOT": str(tmp_path / "kaggle")},
        stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    outputs = [
        one for cell in nbformat.read(tmp_path / "out.ipynb", as_version=4).cells for one in cell.get("outputs", [])
    ]
    printed = "".join(one["text"] for one in outputs if one.output_type == "stream")
    assert printed.startswith(
        f"kaggle_lib {kaggle_lib.__version__}, run quickstart: looking at this session.\nReady after "
    )
    assert "Finished: all steps are done. The checkpoint of step 2 is on the store.\n" in printed
    assert (working / "store/quickstart/checkpoints/step-00000002/manifest.json").is_file()
    says_its_version(tmp_path, notebook, monkeypatch)


def says_its_version(root, kernel, monkeypatch):
    """Every file that a run leaves, and what is made of it, names the library's version."""
    version, named = kaggle_lib.__version__, f"kaggle_lib {kaggle_lib.__version__}"
    stored, folder = root / "kaggle/working/store/quickstart", root / "kaggle/temp/work/quickstart"
    monkeypatch.setenv("KAGGLE_LIB_ROOT", str(root / "kaggle"))
    monkeypatch.chdir(root / "kaggle/working")
    kaggle_lib.rate_build(run="quickstart", store="store", work_dir="work", pairs=0, singles=2)
    assert f"\n# {named}\n" in kernel.cells[0].source
    manifest = read_json(stored / "checkpoints/step-00000002/manifest.json")
    assert manifest["versions"]["kaggle_lib"] == version
    ledger = [read_json(path) for path in sorted(stored.glob("ledger/*.json"))]
    assert [one["versions"]["kaggle_lib"] for one in ledger] == 2 * [version]
    assert read_json(folder / "evaluation/result.json")["kaggle_lib"] == version
    assert read_json(folder / "rating/key.json")["kaggle_lib"] == version
    for page in ("report/index.html", "rating/page.html"):
        assert f'<meta name="generator" content="{named}">' in (folder / page).read_text(encoding="utf-8")
