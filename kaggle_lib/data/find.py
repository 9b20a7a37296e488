"""Where a corpus lies: a path, a folder with one table, a dataset attached on Kaggle, or the sample."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from kaggle_lib.errors import DataError
from kaggle_lib.session.where import root

SAMPLE = Path(__file__).parent / "sample" / "bengali_sample.csv"
TABLES = (".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".parquet")
DESCRIPTIONS = ("dataset-metadata.json", "dataset_infos.json")  # of Kaggle's and the Hub's datasets: no tables
SLUG = re.compile(r"[A-Za-z0-9._-]+/[A-Za-z0-9._-]+")
DEPTH = 2  # folders below a dataset's own that are looked into


def find(data: str) -> Path:
    """The file that `data` names. Raises DataError saying where it was looked for, or which of several to name."""
    if data == "sample":
        return SAMPLE
    try:
        return _find(data)
    except (OSError, RuntimeError) as error:  # a name too long, a folder that may not be read, no such home
        why = getattr(error, "strerror", None) or error
        raise DataError(f"data: {data[:200]!r} cannot be looked up ({why}).", todo="Check the path.") from error


def _find(data: str) -> Path:
    path = Path(data).expanduser()
    if path.is_file():
        if path.suffix.lower() not in TABLES:
            raise DataError(
                f"{path.name}: is none of {', '.join(TABLES)}.", todo="Give a CSV, JSON Lines or Parquet file."
            )
        return path
    if path.is_dir():
        return _only(path, data)
    if not SLUG.fullmatch(data):
        raise DataError(f"data: there is no file or folder {data!r}.", todo="Check the path; `sample` needs none.")
    owner, name = data.split("/")
    inputs = root() / "input"
    # How Kaggle has mounted a dataset at one time or another.
    places = [inputs / name, inputs / "datasets" / owner / name, inputs / "d" / owner / name]
    for place in places:
        if place.is_dir():
            return _only(place, data)
    raise DataError(
        f"data: there is no file {data!r}, and no dataset of that name is attached "
        f"(looked in {', '.join(str(place) for place in places)}).",
        todo="Attach the dataset to the notebook (Add Input), or give the path of the file.",
    )


def _only(folder: Path, data: str) -> Path:
    tables = sorted(_tables(folder, DEPTH))
    if len(tables) == 1:
        return tables[0]
    if not tables:
        raise DataError(f"data: {folder} holds no {', '.join(TABLES)} file.", todo="Give the path of the file.")
    names = ", ".join(path.relative_to(folder).as_posix() for path in tables[:8])
    raise DataError(f"data: {data!r} holds several tables ({names}).", todo="Give the path of the one that is meant.")


def _tables(folder: Path, depth: int) -> Iterator[Path]:
    for path in folder.iterdir():
        if path.name.startswith("."):
            continue
        if path.is_dir():
            if depth:
                yield from _tables(path, depth - 1)
        elif path.suffix.lower() in TABLES and path.name not in DESCRIPTIONS:
            yield path
