"""push, by the real command lines: ours, and the real `kaggle` against a loopback Kaggle that lies as Kaggle does."""

import pytest
from support.loopback_hub import LoopbackHub
from support.quick_sessions import KERNEL, Laptop, quick_kaggle, saves

pytestmark = pytest.mark.slow
BENGALI = "আপনি একজন সহানুভূতিশীল শ্রোতা।"


@pytest.fixture
def hub(tmp_path):
    with LoopbackHub(tmp_path / "hub") as hub:
        yield hub


@pytest.fixture
def kaggle(tmp_path, hub):
    with quick_kaggle(tmp_path / "kaggle", hub) as kaggle:
        yield kaggle


def test_what_cannot_be_meant_is_refused_before_anything_is_sent(tmp_path, hub, kaggle):
    laptop = Laptop(tmp_path / "clone", hub, kaggle)
    folder = laptop.call("push", store="store", code=2)
    assert folder["reason"] == "store: 'store' would be lost with Kaggle's machine. Give store=hf://user/repo"
    slug = laptop.call("push", "--kernel", "loopback/Quick_Run", code=2)
    assert "id: 'loopback/Quick_Run' is no kernel's. Write owner/slug: a-z, 0-9 and -, at most 50" in slug["reason"]
    short = laptop.call("push", "--kernel", "loopback/run", code=2)
    assert short["reason"] == "title: 'run' has 4 characters, and Kaggle wants 5 to 50".replace("4", "3")
    asked = laptop.call("push", "--token-dataset", code=2)
    assert asked["reason"] == "--token-dataset: nothing was made. Say yes when asked, or give --yes"
    assert "makes the private Kaggle dataset loopback/kaggle-lib-hub-token" in asked["stderr"]
    assert hub.token not in asked["stderr"]
    assert (saves(kaggle), kaggle.datasets, kaggle.sessions) == ([], {}, [])


def test_not_now_and_refused_are_told_apart_and_a_lost_reply_starts_one_session(tmp_path, hub, kaggle):
    laptop = Laptop(tmp_path / "clone", hub, kaggle)
    kaggle.faults.add("slots")
    full = laptop.call("push", code=75)
    assert (full["outcome"], full["reason"]) == (
        "paused",
        "Kaggle has no room for a session now: Maximum batch GPU session count of 2 reached. Run this again later.",
    )
    kaggle.faults.add("error(The kernel is locked.)")
    assert laptop.call("push", code=1)["reason"] == (
        f"Kaggle refused the kernel {KERNEL}: The kernel is locked. Nothing was started."
    )
    assert kaggle.sessions == []

    kaggle.faults.add("drop_reply", call="SaveKernel")
    kaggle.session_environment["QUICK_SECONDS"] = "300"
    lost = laptop.call("push")
    assert (lost["outcome"], lost["kernel"], lost["version"]) == ("pushed", KERNEL, None)
    assert (len(saves(kaggle)), len(kaggle.sessions)) == (3, 1)

    live = laptop.call("push", code=75)
    assert live["reason"].startswith((f"A session of {KERNEL} is ", "Session 2"))
    assert (len(saves(kaggle)), len(kaggle.sessions)) == (3, 1)


def test_a_source_that_is_refused_in_silence_fails_the_push(tmp_path, hub, kaggle):
    laptop = Laptop(tmp_path / "clone", hub, kaggle)
    kaggle.add_dataset("loopback/extra-rows", {"rows.csv": "a,b\n1,2\n"})
    kaggle.session_environment["QUICK"] = "fail"
    kaggle.faults.add("refuse(datasets)")
    refused = laptop.call("push", "--dataset", "loopback/extra-rows", code=1)
    assert f"Kaggle started version 1 of {KERNEL} without dataset loopback/extra-rows." in refused["reason"]
    kaggle.sessions[-1].cancel()
    kaggle.sessions[-1].wait()
    model = "maker/tiny/transformers/small/1"
    kaggle.add_dataset(model, {"config.json": "{}"}, model=True)
    metadata = laptop.clone / "kernel-metadata.json"
    metadata.write_text(metadata.read_text().replace('"model_sources": []', f'"model_sources": ["{model}"]'))
    kaggle.faults.add("refuse(models)")
    silent = laptop.call("push", code=1)
    assert f"Kaggle started version 2 of {KERNEL} without model {model}." in silent["reason"]


def test_the_newer_token_a_legacy_locale_and_a_token_dataset(tmp_path, hub, kaggle):
    laptop = Laptop(tmp_path / "clone", hub, kaggle, token=True)
    laptop.environment |= {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": "cp1252"}
    kaggle.secrets.clear()
    pushed = laptop.call("push", "--token-dataset", "--yes", system_prompt=BENGALI)
    assert (pushed["outcome"], pushed["version"], pushed["kernel"]) == ("pushed", 1, KERNEL)
    [call] = saves(kaggle)
    assert call.user == "loopback"
    assert BENGALI in kaggle.kernels[KERNEL].versions[0].source.encode().decode("unicode_escape", "replace") or (
        BENGALI.encode("ascii", "backslashreplace").decode().replace("\\u", "\\\\u")
        in kaggle.kernels[KERNEL].versions[0].source
    )
    dataset = kaggle.datasets["loopback/kaggle-lib-hub-token"]
    assert dataset.private
    assert (dataset.content / "HF_TOKEN").read_text() == hub.token
    assert call.body["datasetDataSources"] == ["loopback/kaggle-lib-hub-token"]
    assert hub.token not in call.body["text"]
    session = kaggle.sessions[0].wait(600)
    assert (session.status, "claimed 2" in session.text) == ("COMPLETE", True)

    # What the resume policy refuses, and then what a finished run needs no push for.
    code = laptop.clone / "kaggle_lib" / "training" / "step.py"
    before = code.read_text()
    code.write_text(before + "\n# another step\n")
    changed = laptop.call("push", code=2)
    assert changed["reason"].startswith("allow_code_change: this library's code")
    other = laptop.call("push", learning_rate="0.5", code=2)
    assert other["reason"].startswith("learning_rate: this run has 0.0002, you gave 0.5.")
    assert len(saves(kaggle)) == 1
    code.write_text(before)
    early = laptop.call("push", "--notebook", "evaluate", code=75)
    assert (early["outcome"], early["reason"]) == (
        "not finished",
        "Run 'quick-run' is not finished, so evaluate was not pushed. Train it.",
    )
