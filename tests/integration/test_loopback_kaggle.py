"""The loopback Kaggle, asked by the real command line and SDK: what it runs, keeps, loses, refuses and lies about."""

import io
import json
import os
import re
import shlex
import signal
import stat
import subprocess
import sys
import urllib.error
import urllib.request
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import nbformat
import pytest
from support.loopback_hub import LoopbackHub
from support.loopback_kaggle import USER, LoopbackKaggle
from support.loopback_kaggle_records import Account
from support.loopback_kaggle_session import NO_MACHINE, OVER_LIMIT
from support.sessions import gone

from kaggle_lib.runs.launch import descendants

ROOT = Path(__file__).parents[2]
OTHER = Account("someone", "f" * 32, "KGAT_" + "f" * 32)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with LoopbackKaggle(tmp_path_factory.mktemp("kaggle"), accounts=(USER, OTHER)) as kaggle:
        yield kaggle


@pytest.fixture
def kaggle(server, monkeypatch):
    for name, value in server.environment().items():
        monkeypatch.setenv(name, value)
    yield server
    server.faults.clear()
    server.limit, server.secrets_travel, server.gpu_hours, server.processing_seconds = 3600.0, False, 0.0, 0.0
    for session in server.sessions:
        session.cancel()
    for session in server.sessions:
        session.wait()


def cli(*words):
    """Exit code and text of the command line, in this process: another would take two seconds to start."""
    import kaggle as client
    from kaggle.cli import main

    client.api._authenticated, client.api.config_values = False, {}
    said, argv = io.StringIO(), sys.argv
    sys.argv, code = ["kaggle", *map(str, words)], 0
    try:
        with redirect_stdout(said), redirect_stderr(said):
            main()
    except SystemExit as end:
        code = end.code
    finally:
        sys.argv = argv
    return code, said.getvalue()


def sdk():
    from kaggle.api.kaggle_api_extended import KaggleApi

    api = KaggleApi()
    api.authenticate()
    return api.build_kaggle_client().kernels.kernels_api_client


def kernel(folder, slug, source="", **more):
    """A folder to push: one cell, a machine with two T4."""
    folder.mkdir(exist_ok=True)
    made = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)])
    made.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(made, folder / "code.ipynb")
    given = {"id": f"loopback/{slug}", "title": slug, "code_file": "code.ipynb", "language": "python"}
    given |= {"kernel_type": "notebook", "enable_gpu": True, "machine_shape": "NvidiaTeslaT4", **more}
    (folder / "kernel-metadata.json").write_text(json.dumps(given))
    return folder


def pushed(kaggle, folder, slug, source="", **more):
    """The session of a push that went well."""
    code, said = cli("kernels", "push", "-p", kernel(folder / slug, slug, source, **more))
    assert (code, "successfully pushed" in said) == (0, True), said
    return kaggle.sessions[-1]


def status(slug):
    code, said = cli("kernels", "status", f"loopback/{slug}")
    assert code == 0, said
    return re.search(r"KernelWorkerStatus\.(\w+)", said)[1], said


def processes_of(session):
    named = session.container_name.encode()
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            found += [int(path.parent.name)] if named in path.read_bytes() else []
        except OSError:
            continue
    return found


SEEN = """
import importlib.metadata, importlib.util, json, os, pathlib, subprocess
smi = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version,compute_cap", "--format=csv,noheader,nounits"]
pathlib.Path("kept/inner").mkdir(parents=True)
pathlib.Path("kept/inner/file.txt").write_text("বাংলা", encoding="utf-8")
os.chmod("kept/inner/file.txt", 0o755)
os.symlink("kept/inner/file.txt", "link")
os.mkdir("empty")
root = pathlib.Path(os.environ["KAGGLE_LIB_ROOT"])
print(json.dumps({
    "cwd": os.getcwd() == str(root / "working"),
    "folders": sorted(path.name for path in root.iterdir()),
    "library": importlib.util.find_spec("kaggle_lib"),
    "installed": [one.name for one in importlib.metadata.distributions() if one.name in ("kaggle_lib", "papermill")],
    "torch": importlib.util.find_spec("torch") is not None,
    "run_type": os.environ["KAGGLE_KERNEL_RUN_TYPE"],
    "python_path": os.environ.get("PYTHONPATH"),
    "gpus": subprocess.run(smi, capture_output=True, text=True).stdout.splitlines(),
}))
"""


def test_a_push_runs_its_notebook_away_from_the_repository_and_its_output_comes_back(kaggle, tmp_path):
    folder = kernel(tmp_path / "seen", "what-is-seen", SEEN)
    words = [str(Path(sys.executable).with_name("kaggle")), "kernels", "push", "-p", str(folder), "--timeout", "1"]
    done = subprocess.run(words, capture_output=True, encoding="utf-8", check=False)
    assert done.stdout == (
        "Kernel version 1 successfully pushed.  Please check progress at "
        "https://www.kaggle.com/code/loopback/what-is-seen\n"
    ), done.stderr
    session = kaggle.sessions[-1]
    assert (session.live, cli("kernels", "output", "loopback/what-is-seen", "-p", tmp_path / "early")[0]) == (True, 0)
    assert list((tmp_path / "early").iterdir()) == []
    session.wait()
    assert (session.status, session.exit_code) == ("COMPLETE", 0), session.text
    seen = json.loads(next(line for line in session.text.splitlines() if line.startswith("{")))
    assert seen == {
        "cwd": True,
        "folders": ["input", "temp", "working"],
        "library": None,
        "installed": ["papermill"],
        "torch": True,
        "run_type": "Batch",
        "python_path": None,
        "gpus": 2 * ["Tesla T4, 15360, 580.105.08, 7.5"],
    }
    assert status("what-is-seen")[0] == "COMPLETE"
    assert cli("kernels", "output", "loopback/what-is-seen", "-p", tmp_path / "out")[0] == 0
    got = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*")}
    assert got == {"__notebook__.ipynb", "kept", "kept/inner", "kept/inner/file.txt", "what-is-seen.log"}
    assert (tmp_path / "out/kept/inner/file.txt").read_text(encoding="utf-8") == "বাংলা"
    assert not (session.output / "kept/inner/file.txt").stat().st_mode & stat.S_IXUSR
    log = json.loads((tmp_path / "out/what-is-seen.log").read_text(encoding="utf-8"))
    assert "".join(event["data"] for event in log) == session.text
    assert cli("kernels", "logs", "-f", "loopback/what-is-seen")[1] == session.text
    [sent] = [call for call in kaggle.calls if call.call == "SaveKernel"]
    assert (sent.user, sent.body["sessionTimeoutSeconds"], sent.body["isPrivate"]) == ("loopback", 1, True)
    assert "ref" not in sent.body
    assert session.version.source == sent.body["text"]


STUBBORN = """
import pathlib, subprocess, sys, time
pathlib.Path("result.txt").write_text("half")
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
print("at work", flush=True)
while True:
    try:
        time.sleep(600)
    except KeyboardInterrupt:
        print("asked to end", flush=True)
"""


@pytest.mark.parametrize("contained", [True, False])
def test_at_the_limit_the_kernel_is_interrupted_then_killed_and_its_output_is_lost(
    kaggle, tmp_path, monkeypatch, contained
):
    if not contained:
        monkeypatch.setattr(kaggle, "enter", [])  # as on a system that lets nobody open a container
    kaggle.limit = 600.0
    session = pushed(kaggle, tmp_path, "too-long", STUBBORN)
    session.wait_for("at work")
    assert len(processes_of(session)) >= 3
    kaggle.limit = 0.0
    session.wait()
    assert (session.status, session.exit_code, session.output) == ("ERROR", 137, None)
    lines = session.text.splitlines()
    assert lines[-3:] == ["asked to end", "Timeout waiting for execute reply (0s).", "^C"]
    assert processes_of(session) == []
    assert status("too-long") == (
        "ERROR",
        f'loopback/too-long has status "KernelWorkerStatus.ERROR"\nFailure message: "{OVER_LIMIT}"\n',
    )
    assert cli("kernels", "output", "loopback/too-long", "-p", tmp_path / "out")[0] == 0
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["too-long.log"]
    assert kaggle.gpu_hours_used() * 3600 == pytest.approx(sum(one.seconds for one in kaggle.sessions))


def test_a_session_is_followed_live_and_cancelled_by_the_account_that_started_it(kaggle, tmp_path, monkeypatch):
    from kagglesdk.kernels.types import kernels_api_service as types

    source = "import os\nprint(os.environ['KAGGLE_CONTAINER_NAME'], flush=True)\n" + STUBBORN
    session = pushed(kaggle, tmp_path, "to-be-cancelled", source)
    stream = types.ApiGetKernelSessionLogsStreamRequest()
    stream.user_name, stream.kernel_slug = "loopback", "to-be-cancelled"
    reply = sdk().get_kernel_session_logs_stream(stream)
    assert reply.headers["Content-Type"] == "text/event-stream"
    lines = (line.removeprefix("data: ") for line in reply.iter_lines(decode_unicode=True) if line)
    said = (line if line == "END_OF_LOG" else json.loads(line)["data"] for line in lines)
    name = next(line for line in said if line.startswith("kaggle_")).strip()
    assert next(line for line in said if line == "at work\n")
    request = types.ApiCancelKernelSessionRequest()
    request.kernel_session_id = int(re.fullmatch(r"kaggle_\w+-(\d+)-webtier", name)[1])
    assert request.kernel_session_id == session.id
    with monkeypatch.context() as patch:
        for variable, value in kaggle.environment(OTHER).items():
            patch.setenv(variable, value)
        with pytest.raises(Exception, match=r"Permission 'kernelSessions\.cancel' was denied"):
            sdk().cancel_kernel_session(request)
    assert session.status == "RUNNING"
    sdk().cancel_kernel_session(request)
    assert list(said)[-2:] == ["asked to end\n", "END_OF_LOG"]
    session.wait()
    assert (session.status, status("to-be-cancelled")[0]) == ("CANCEL_ACKNOWLEDGED", "CANCEL_ACKNOWLEDGED")
    assert (session.output / "result.txt").read_text() == "half"
    assert processes_of(session) == []


def test_a_crash_keeps_its_output_which_another_kernel_attaches_beside_a_private_dataset(kaggle, tmp_path):
    crash = pushed(kaggle, tmp_path, "that-crashes", "open('left.txt', 'w').write('left')\nraise ValueError('no')")
    data = tmp_path / "data"
    data.mkdir()
    (data / "HF_TOKEN").write_text("hf_of_the_dataset")
    told = {"id": "loopback/the-token", "title": "the-token", "licenses": [{"name": "CC0-1.0"}]}
    (data / "dataset-metadata.json").write_text(json.dumps(told))
    assert "Your private Dataset is being created" in cli("datasets", "create", "-p", data)[1]
    assert "already in use by a dataset" in cli("datasets", "create", "-p", data)[1]
    (data / "HF_TOKEN").write_text("hf_of_version_2")
    kaggle.processing_seconds = 600.0
    assert "Dataset version is being created" in cli("datasets", "version", "-p", data, "-m", "two")[1]
    assert cli("datasets", "status", "loopback/the-token") == (0, "blobs_received")
    crash.wait()
    assert (crash.status, crash.exit_code, (crash.output / "left.txt").read_text()) == ("ERROR", 1, "left")
    assert "ValueError: no" in crash.text

    read = (
        "import os, pathlib\nroot = pathlib.Path(os.environ['KAGGLE_LIB_ROOT'], 'input')\n"
        "for path in sorted(root.rglob('*.txt')) + sorted(root.rglob('HF*')):\n"
        "    print(path.relative_to(root), path.read_text())"
    )
    sources = {"dataset_sources": ["loopback/the-token"], "kernel_sources": ["loopback/that-crashes"]}
    folder = kernel(tmp_path / "second", "that-attaches", read, **sources)
    code, said = cli("kernels", "push", "-p", folder)
    assert (code, said.splitlines()[0]) == (1, "Dataset loopback/the-token is still being processed.")
    kaggle.datasets["loopback/the-token"].ready = 0.0
    assert cli("datasets", "status", "loopback/the-token") == (0, "ready")
    second = pushed(kaggle, tmp_path, "that-attaches", read, **sources).wait()
    assert "that-crashes/left.txt left\nthe-token/HF_TOKEN hf_of_version_2\n" in second.text, second.text
    assert cli("datasets", "delete", "-y", "loopback/the-token")[0] == 0
    assert "loopback/the-token" not in kaggle.datasets


ASK = """
from kaggle_secrets import UserSecretsClient
try:
    print("secret", UserSecretsClient().get_secret("HF_TOKEN"))
except Exception as error:
    print(type(error).__name__, error)
"""


def test_attached_secrets_are_of_runs_in_the_editor_and_of_a_push_only_where_asked(kaggle, tmp_path):
    kaggle.attach_secret("loopback/with-secret", "HF_TOKEN", "hf_x\n")
    first = pushed(kaggle, tmp_path, "with-secret", ASK)
    second = kaggle.run_in_editor("loopback/with-secret")
    assert "BackendError Unexpected response from the service. Response: " in first.wait().text
    assert "No user secrets exist for kernel id" in first.text
    assert "secret hf_x\n" in second.wait().text
    assert second.version.number == 2
    kaggle.secrets_travel = True
    kaggle.faults.add("capacity")
    assert pushed(kaggle, tmp_path, "with-secret", ASK).secrets == {"HF_TOKEN": "hf_x\n"}


def test_without_internet_no_name_resolves_and_nothing_is_reached(kaggle, tmp_path):
    source = (
        "import os, socket, urllib.request\n"
        "for reach in (lambda: socket.getaddrinfo('huggingface.co', 443),\n"
        "              lambda: urllib.request.urlopen(os.environ['KAGGLE_URL_BASE'])):\n"
        "    try:\n        print(reach())\n    except OSError as error:\n        print(error)\n"
        "here = socket.create_server(('127.0.0.1', 0))\n"
        "print('itself', socket.create_connection(here.getsockname()).getpeername()[0])\n"
    )
    if not kaggle.enter:
        pytest.skip("this system lets nobody open a network of their own")
    text = pushed(kaggle, tmp_path, "without-internet", source + ASK, enable_internet=False).wait().text
    assert "[Errno -3] Temporary failure in name resolution\n" in text
    assert "Connection refused" in text
    assert "itself 127.0.0.1\n" in text
    assert "ConnectionError Connection error trying to communicate with service. Please ensure internet is on." in text


def test_tokens_and_keys_are_known_and_others_are_not(kaggle, monkeypatch):
    kaggle.gpu_hours = 12.0 - kaggle.gpu_hours_used()
    code, said = cli("quota")
    assert (code, said.splitlines()[2].split()[:4]) == (0, ["GPU", "12.00h", "18.00h", "30.00h"])
    monkeypatch.setenv("KAGGLE_KEY", "wrong")
    assert cli("quota")[0] == 1
    for name, value in kaggle.environment(token=True).items():
        monkeypatch.setenv(name, value)
    seen = len(kaggle.calls)
    assert cli("kernels", "list", "-m")[0] == 0
    assert [(call.call, call.user) for call in kaggle.calls[seen:]] == [
        ("IntrospectToken", "loopback"),
        ("ListKernels", "loopback"),
    ]
    kaggle.faults.add(429, call="IntrospectToken")
    with pytest.raises(Exception, match="429 Client Error: Too Many Requests"):
        cli("quota")  # a raw traceback, where it is a process


def test_what_a_push_is_refused_with_and_what_it_is_told_falsely(kaggle, tmp_path):
    push = ("kernels", "push", "-p")
    started = len(kaggle.sessions)
    kaggle.faults.add("capacity", times=None)  # no notebook needs to run for this
    folder = kernel(tmp_path / "a", "is-refused")
    kaggle.faults.add("slots")
    assert cli(*push, folder) == (0, "Kernel push error: Maximum batch GPU session count of 2 reached.\n")
    kaggle.gpu_hours = 30.0
    assert cli(*push, folder) == (0, "Kernel push error: Maximum weekly GPU quota of 30.00 hours reached.\n")
    kaggle.gpu_hours = 0.0
    kaggle.faults.add("error(Something new.)")
    assert cli(*push, folder) == (0, "Kernel push error: Something new.\n")
    kaggle.faults.add(429, call="SaveKernel")
    code, said = cli(*push, folder)
    assert (code, said.startswith("429 Client Error: Too Many Requests for url")) == (1, True), said
    kaggle.faults.add(400, call="SaveKernel")
    assert cli(*push, folder)[0] == 1
    assert cli(*push, kernel(tmp_path / "b", "much-too-large", "#" + 1_000_000 * "x"))[0] == 1
    kaggle.faults.add("drop_before", call="SaveKernel")
    assert cli(*push, folder)[0] == 1
    assert (len(kaggle.sessions), "loopback/is-refused" in kaggle.kernels) == (started, False)
    assert "Permission 'kernels.get' was denied" in cli("kernels", "status", "loopback/is-refused")[1]

    kaggle.faults.add("drop_reply", call="SaveKernel")
    assert cli(*push, folder)[0] == 1
    assert (len(kaggle.sessions), kaggle.calls[-1].status) == (started + 1, 0)
    assert status("is-refused")[0] == "ERROR"
    assert f'Failure message: "{NO_MACHINE}"' in status("is-refused")[1]

    sources = {"dataset_sources": ["loopback/none-such"], "model_sources": ["someone/model/transformers/small/1"]}
    code, said = cli(*push, kernel(tmp_path / "c", "is-believed", **sources))
    assert code == 0
    assert "not valid dataset sources and could not be added to the kernel: ['loopback/none-such']" in said
    assert "successfully pushed" in said
    assert "small" not in said
    assert kaggle.sessions[-1].version.fields["modelDataSources"] == []
    kaggle.add_dataset("loopback/is-there", {"a.csv": "a"})
    kaggle.faults.add("refuse(datasets)")
    assert (
        "['loopback/is-there']"
        in cli(*push, kernel(tmp_path / "d", "is-believed", dataset_sources=["loopback/is-there"]))[1]
    )

    code, said = cli(*push, kernel(tmp_path / "e", "the-slug", title="Another title"))
    assert (code, "does not resolve to the specified id" in said, "successfully pushed" in said) == (0, True, True)
    assert "loopback/the-slug" not in kaggle.kernels
    assert status("another-title")[0] == "ERROR"


def test_what_a_status_says_is_what_the_script_says(kaggle, tmp_path):
    kaggle.faults.add("queue(600)", times=3)
    first, second = (pushed(kaggle, tmp_path, slug) for slug in ("waits-long", "waits-too"))
    assert [status(slug)[0] for slug in ("waits-long", "waits-too")] == ["QUEUED", "QUEUED"]
    folder = kernel(tmp_path / "third", "finds-no-slot")
    said = cli("kernels", "push", "-p", folder)[1]
    assert said == "Kernel push error: Maximum batch GPU session count of 2 reached.\n"
    kaggle.faults.add("report(COMPLETE)")
    assert [status("waits-long")[0] for _ in range(2)] == ["COMPLETE", "QUEUED"]
    assert cli("kernels", "delete", "-y", "loopback/waits-long")[0] == 0
    second.cancel()
    assert (first.wait().status, second.wait().status) == ("CANCEL_ACKNOWLEDGED", "CANCEL_ACKNOWLEDGED")
    assert first.seconds == 0

    kaggle.faults.clear()
    kaggle.faults.add("end_as(CANCEL_ACKNOWLEDGED)")
    kaggle.faults.add("linger(600)")
    kaggle.faults.add("gpus(Tesla P100-PCIE-16GB)")
    third = pushed(kaggle, tmp_path, "ends-in-secret", "import subprocess\n!nvidia-smi -L\nprint('all done')")
    third.wait_for("all done")
    assert "GPU 0: Tesla P100-PCIE-16GB" in third.text
    while processes_of(third):
        os.sched_yield()
    assert status("ends-in-secret")[0] == "RUNNING"
    third._cancelled.set()  # the time to linger is over
    third.wait()
    assert (status("ends-in-secret")[0], third.exit_code) == ("CANCEL_ACKNOWLEDGED", 0)


def test_what_is_pulled_pins_the_image_and_a_saved_version_does_not_run(kaggle, tmp_path):
    started = len(kaggle.sessions)
    said = cli("kernels", "push", "-p", kernel(tmp_path / "a", "only-saved", "print(1)"), "--no-run")[1]
    assert said.startswith("Kernel version 1 successfully saved without running.")
    assert (len(kaggle.sessions), status("only-saved")[0]) == (started, "NEW_SCRIPT")
    assert cli("kernels", "pull", "-m", "loopback/only-saved", "-p", tmp_path / "back")[0] == 0
    told = json.loads((tmp_path / "back/kernel-metadata.json").read_text())
    assert (told["machine_shape"], told["docker_image"][:34]) == (
        "NvidiaTeslaT4",
        "gcr.io/kaggle-gpu-images/python@sha256"[:34],
    )
    [cell] = nbformat.read(tmp_path / "back/only-saved.ipynb", as_version=4).cells
    assert cell.source == "print(1)"


def test_its_proxy_leads_to_a_loopback_hub_and_nowhere_else(kaggle, tmp_path):
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({"http": kaggle.endpoint}))
    with LoopbackHub(tmp_path / "hub") as hub:
        asked = urllib.request.Request(
            f"{hub.endpoint.replace('127.0.0.1', 'localhost')}/api/whoami-v2",
            headers={"Authorization": f"Bearer {hub.token}"},
        )
        assert json.loads(opener.open(asked).read())["name"] == "loopback"
    with pytest.raises(urllib.error.HTTPError, match="502"):
        opener.open("http://example.com/")


def test_by_itself_it_prints_how_to_reach_it_and_its_death_ends_its_sessions(tmp_path):
    words = [sys.executable, "-m", "support.loopback_kaggle", "--root", str(tmp_path / "root"), "--set", "limit=900"]
    server = subprocess.Popen(words, cwd=ROOT / "tests", stdout=subprocess.PIPE, encoding="utf-8")
    try:
        printed = iter(server.stdout.readline, "\n")
        endpoint = next(printed).removeprefix("# ").partition(";")[0]
        environment = dict(shlex.split(line)[1].split("=", 1) for line in printed)
        folder = kernel(tmp_path / "left", "is-left-alone", STUBBORN)
        words = [str(Path(sys.executable).with_name("kaggle")), "kernels", "push", "-p", str(folder)]
        done = subprocess.run(words, env={**os.environ, **environment}, capture_output=True, text=True, check=False)
        assert "successfully pushed" in done.stdout, done

        def state():
            return json.loads(urllib.request.urlopen(endpoint + "/_state").read())

        while "at work\n" not in (seen := state())["sessions"][0]["log"]:
            assert seen["sessions"][0]["ended"] is None, seen
        assert (seen["settings"]["limit"], seen["calls"][0]["call"]) == (900.0, "SaveKernel")
        tree = descendants(server.pid)
        assert len(tree) >= 3
    finally:
        os.kill(server.pid, signal.SIGKILL)
        server.wait()
    assert gone(tree)
