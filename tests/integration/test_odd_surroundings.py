"""A locale of long ago, Bengali in every place, and a logger that asks for a key: nothing of it matters to a run."""

import json

import pytest
from support.bad_input import ROOT, ask, ask_all, refused, sets, state

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def bengali(tmp_path_factory):
    """The same Bengali run under a locale of long ago (with a wandb that asks for a key) and under UTF-8: folders."""
    folders = {name: tmp_path_factory.mktemp(name) for name in ("old", "utf8")}
    wandb = folders["old"] / "stub/wandb/__init__.py"
    wandb.parent.mkdir(parents=True)
    wandb.write_text(
        "from pathlib import Path\n"
        "run = None\n"  # by this transformers knows that it is really installed
        "def init(*given, **more):\n"
        "    Path(__file__).with_name('asked').touch()\n"
        "    return input('Your API key: ')\n"
        "login = init\n"
    )
    questions = {}
    for name, folder in folders.items():
        (folder / "তথ্য").mkdir()
        lines = [f"প্রশ্ন {n}?,উত্তর {n} হলো ক্ষমা।\n" for n in range(24)]
        (folder / "তথ্য/প্রশ্নোত্তর.csv").write_text(f"প্রশ্ন,উত্তর\n{''.join(lines)}", encoding="utf-8")
        questions[name] = (folder, *BENGALI_TRAIN)
    answers = ask_all(questions, {"old": old_locale(wandb.parents[1]), "utf8": {"LC_ALL": "C.UTF-8"}})
    for answer in answers.values():
        assert (answer.code, answer.told["outcome"]) == (0, "finished"), answer
    return folders


PLACE = sets(run="run", store="ভাণ্ডার", work_dir="কাজ")
COLUMNS = {"data": "তথ্য/প্রশ্নোত্তর.csv", "question_column": "প্রশ্ন", "answer_column": "উত্তর"}
PROMPT = "তুমি একজন সহানুভূতিশীল শ্রোতা। র‍্যাব ৎ"
BENGALI_TRAIN = (
    *("train", "--preset", "tiny-cpu", *PLACE),
    *sets(
        **COLUMNS, system_prompt=PROMPT, rows=16, max_length=192, max_steps=2, save_steps=2, eval_steps=2, eval_rows=2
    ),
)


def old_locale(*first):
    path = ":".join(str(one) for one in (*first, ROOT))
    return {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": "cp1252", "PYTHONPATH": path}


def test_locale_of_long_ago_writes_the_same_bytes(bengali):
    old, utf8 = (
        {path: content for path, content in state(folder).items() if "stub/" not in path} for folder in bengali.values()
    )
    same = ("adapter_model.safetensors", "adapter_config.json", "optimizer.pt", "tokenizer.json", "counts.json", ".csv")
    compared = [path for path in old if path.endswith(same)]
    assert {path.split("/")[0] for path in compared} == {"তথ্য", "কাজ", "ভাণ্ডার"}
    for path in compared:
        assert old[path] == utf8[path], path
    frozen = [json.loads(files["ভাণ্ডার/run/config.json"].decode("utf-8")) for files in (old, utf8)]
    assert frozen[0]["config"] == frozen[1]["config"]
    assert frozen[0]["config"]["system_prompt"] == PROMPT
    assert PROMPT.encode() in old["ভাণ্ডার/run/config.json"]
    for path, content in old.items():
        if path.endswith((".json", ".jsonl", ".csv", ".jinja")):
            assert "\ufffd" not in content.decode("utf-8"), path


def test_locale_of_long_ago_looks_and_reports(bengali):
    folder = bengali["old"]
    status = ask(folder, "status", *PLACE, env=old_locale())
    assert (status.code, status.told["state"], status.told["step"]) == (0, "finished", 2)
    report = ask(folder, "report", *PLACE, env=old_locale())
    assert report.code == 0
    page = folder / report.told["page"]
    assert page.is_relative_to(folder / "কাজ")
    assert "প্রশ্নোত্তর.csv" in page.read_text(encoding="utf-8")
    says = "data: this run has 'তথ্য/প্রশ্নোত্তর.csv', you gave 'অন্য.csv'. "
    refused(folder, "train", *PLACE, *sets(data="অন্য.csv"), code=2, says=says, env=old_locale())


def test_installed_logger_is_never_asked(bengali):
    assert (bengali["old"] / "stub/wandb/__init__.py").exists()
    assert not (bengali["old"] / "stub/wandb/asked").exists()
