"""The data sheet on the page: every count, escaped text, and a leak that cannot be overlooked."""

import re

import pytest

from kaggle_lib.config import RunConfig
from kaggle_lib.data import tokenise
from kaggle_lib.errors import UserError
from kaggle_lib.files import read_json, write_json
from kaggle_lib.report import page
from kaggle_lib.runs.folder import RunFolder


@pytest.fixture
def made(tmp_path):
    """(folder, configuration, sheet) of a run whose data are curated and nothing else."""
    path = tmp_path / "<b>.csv"
    rows = [f"বিষয় <i>,ঘটনা {n},আমি কেমন আছি {n}?,ভালো {n}।\n" for n in range(30)]
    path.write_text("Topics,Question-Title,Questions,Answers\n" + "".join(rows) + "ক,খ,,ঘ\nক,খ\n", encoding="utf-8")
    config = RunConfig.create(
        {"run": "r", "base_model": "sample", "data": str(path), "work_dir": str(tmp_path / "work"), "rows": 20}
    )
    folder = RunFolder(tmp_path / "work" / "r")
    folder.create()
    sheet = tokenise.curated(config, folder.cache).sheet
    sheet["tokens"] = {name: [10, 20, 1234] for name in sheet["splits"]}
    write_json(folder.data_sheet, sheet)
    return folder, config, sheet


def text_of(path):
    html = path.read_text(encoding="utf-8")
    return html, " ".join(re.sub(r"<[^>]*>", " ", html[html.index("<h2>Data") :]).split())


def test_each_count_and_length_stands_there(made):
    folder, config, sheet = made
    html, text = text_of(page.build(folder, config, []))
    assert sheet["counts"] == {
        "read": 31,
        "set aside: it has 2 fields and the header 4": 1,
        "dropped: empty": 1,
        "kept": 30,
        "not drawn": 6,
        "train": 20,
        "validation": 2,
        "test": 2,
    }
    for name, number in sheet["counts"].items():
        assert f"{name} {number}" in text
    assert "32 records of &lt;b&gt;.csv . No dialogue, no thread, no look-alike" in text
    assert "train 20 20 20 0 0 10 / 20 / 1234" in text
    assert "dialogue 24 16 / 16 / 16 4 / 4 / 4 8 / 8 / 8 2 / 2 / 2" in text
    assert "1 topics, 0 rows without one বিষয় &lt;i&gt; 24" in text
    assert "Licence: Nothing is known here of this file&#39;s licence" in text
    assert "<b>.csv" not in html
    assert "<i>" not in html[html.index("<h2>Data") : html.index("<h2>What each")]


def test_a_leak_is_said_in_red(made):
    folder, config, sheet = made
    write_json(folder.data_sheet, {**sheet, "leaks": {"dialogues": 1, "look_alikes": 0, "near_duplicates": 2}})
    html, text = text_of(page.build(folder, config, []))
    assert '<strong class="bad">The splits leak: 3 pairs are on two sides.</strong>' in html
    assert "No dialogue, no thread" not in text


def test_a_run_without_a_sheet_has_no_section_and_a_damaged_one_is_named(made):
    folder, config, _ = made
    for content in ("{", "[]", '{"counts": {}}'):
        folder.data_sheet.write_text(content, encoding="utf-8")
        with pytest.raises(UserError, match=r"data\.json is damaged"):
            page.build(folder, config, [])
    folder.data_sheet.unlink()
    assert "<h2>Data" not in page.build(folder, config, []).read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "whose"),
    [("BengaliEmpatheticConversationsCorpus .csv", "CC BY-NC 4.0"), ("mine.csv", "its user's to check")],
)
def test_licence_is_told_by_the_files_name(tmp_path, name, whose):
    path = tmp_path / name
    path.write_text("Questions,Answers\nক,খ\n", encoding="utf-8")
    config = RunConfig.create({"run": "r", "base_model": "sample", "data": str(path)})
    assert whose in tokenise.curated(config, None).sheet["licence"]
    sample = RunConfig.create({"run": "r", "base_model": "sample", "data": "sample"})
    assert "Written for this project" in tokenise.curated(sample, None).sheet["licence"]


def test_curated_rows_come_from_the_cache_byte_for_byte_or_are_made_anew(made, monkeypatch):
    folder, config, _ = made
    (kept,) = folder.cache.glob("rows-*.json")
    once = tokenise.curated(config, None)

    def refuse(*_):
        raise AssertionError("curated again")

    with monkeypatch.context() as patch:
        patch.setattr(tokenise.curate, "curate", refuse)
        assert tokenise.curated(config, folder.cache) == once
        for change in ({"seed": 7}, {"rows": 5}, {"conversations": "dialogues"}, {"test_fraction": 0.3}):
            with pytest.raises(AssertionError, match="curated again"):
                tokenise.curated(config.model_copy(update=change), folder.cache)
        assert tokenise.curated(config.model_copy(update={"epochs": 9.0, "run": "s"}), folder.cache) == once
        path = tokenise.find(config.data)
        path.write_text(path.read_text(encoding="utf-8") + "ক,খ,গ,ঘ\n", encoding="utf-8")
        with pytest.raises(AssertionError, match="curated again"):
            tokenise.curated(config, folder.cache)
    assert tokenise.curated(config, folder.cache).counts["read"] == 32
    for damage in (b"", b"\n", kept.read_bytes()[:-9], kept.read_bytes().replace(b"kept", b"keqt")):
        for path in folder.cache.glob("rows-*.json"):
            path.write_bytes(damage)
        assert tokenise.curated(config, folder.cache).counts["read"] == 32


def test_lengths_are_nearest_rank(made):
    from kaggle_lib.data.sheet import spread

    assert spread([5]) == [5, 5, 5]
    assert spread([3, 1, 2, 4]) == [2, 4, 4]
    assert spread(range(1, 101)) == [50, 95, 100]
    assert spread([]) == [0, 0, 0]
    assert read_json(made[0].data_sheet)["lengths"]["dialogue"]["answer"]["characters"] == [8, 8, 8]
