"""A corpus is found by path, in a folder with one table, or under Kaggle's mounts, without walking whole trees."""

from pathlib import Path

import pytest

from kaggle_lib.data import find
from kaggle_lib.errors import DataError

HEAD = "Questions,Answers\n"
CORPUS = "raseluddin/bengali-empathetic-conversations-corpus"


@pytest.mark.parametrize("mount", ["{slug}", "datasets/{owner}/{slug}", "d/{owner}/{slug}"])
def test_attached_dataset_is_found_under_each_of_kaggles_mounts(tmp_path, monkeypatch, mount):
    monkeypatch.setenv("KAGGLE_LIB_ROOT", str(tmp_path))
    owner, slug = CORPUS.split("/")
    folder = tmp_path / "input" / mount.format(owner=owner, slug=slug)
    folder.mkdir(parents=True)
    path = folder / "BengaliEmpatheticConversationsCorpus .csv"  # Kaggle's file has the space
    path.write_text(HEAD + "ক,খ\n", encoding="utf-8")
    for name in ("README.md", ".hidden.csv"):
        (folder / name).write_text("")
    other = tmp_path / "input" / "someone-elses" / "deep" / "deeper"
    other.mkdir(parents=True)
    (other / "big.csv").write_text("")
    seen = []
    iterdir = Path.iterdir
    monkeypatch.setattr(Path, "iterdir", lambda self: seen.append(self) or iterdir(self))
    assert find.find(CORPUS) == path
    assert seen == [folder]


def test_dataset_that_is_not_attached_names_where_it_was_looked_for(tmp_path, monkeypatch):
    monkeypatch.setenv("KAGGLE_LIB_ROOT", str(tmp_path))
    with pytest.raises(DataError) as told:
        find.find("me/corpus")
    places = ", ".join(str(tmp_path / "input" / place) for place in ("corpus", "datasets/me/corpus", "d/me/corpus"))
    assert str(told.value) == (
        f"data: there is no file 'me/corpus', and no dataset of that name is attached (looked in {places}). "
        "Attach the dataset to the notebook (Add Input), or give the path of the file."
    )


def test_folder_with_one_table_is_that_table(tmp_path):
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "a.parquet").write_bytes(b"")
    (tmp_path / "notes.txt").write_text("")
    assert find.find(str(tmp_path)) == tmp_path / "train" / "a.parquet"


def test_folder_is_looked_into_two_levels_deep(tmp_path):
    deep = tmp_path / "one" / "two"
    (deep / "three").mkdir(parents=True)
    (deep / "three" / "b.csv").write_text(HEAD)
    with pytest.raises(DataError) as told:
        find.find(str(tmp_path))
    assert str(told.value) == (
        f"data: {tmp_path} holds no .csv, .tsv, .jsonl, .ndjson, .json, .parquet file. Give the path of the file."
    )
    (deep / "a.csv").write_text(HEAD)
    assert find.find(str(tmp_path)) == deep / "a.csv"


def test_description_of_a_dataset_is_no_table(tmp_path):
    for name in ("a.CSV", "dataset-metadata.json", "dataset_infos.json", ".a.csv"):
        (tmp_path / name).write_text("{}")
    assert find.find(str(tmp_path)) == tmp_path / "a.CSV"


def test_several_tables_are_told_by_name(tmp_path):
    (tmp_path / "in").mkdir()
    for name in ("b.csv", "in/a.jsonl"):
        (tmp_path / name).write_text(HEAD)
    with pytest.raises(DataError) as told:
        find.find(str(tmp_path))
    assert str(told.value) == (
        f"data: {str(tmp_path)!r} holds several tables (b.csv, in/a.jsonl). Give the path of the one that is meant."
    )


@pytest.mark.parametrize(
    ("data", "why"),
    [
        ("a" * 5000 + ".csv", "File name too long"),
        ("~nobody-of-this-name/a.csv", "Could not determine home directory."),
    ],
)
def test_path_that_cannot_be_looked_up_is_told(data, why):
    with pytest.raises(DataError) as told:
        find.find(data)
    assert str(told.value) == f"data: {data[:200]!r} cannot be looked up ({why}). Check the path."


def test_sample_needs_no_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find.find("sample").name == "bengali_sample.csv"
