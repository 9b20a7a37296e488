"""`make lock` on an index that is a folder of wheels: what moves, what stays and why, and what is not written."""

import zipfile

import pytest
from support import lock

# name: its versions, newest last; what the newest of `capper` allows.
INDEX = {
    "torch": ("2.11.0", "2.13.0", "2.14.0"), "trl": ("1.14.2", "1.14.9", "1.15.0"), "unsloth": ("2026.10.9",),
    "unsloth_zoo": ("2026.10.9", "2026.10.10"), "peft": ("0.21.2", "0.21.3"), "capper": ("1.0",),
    "capped": ("4.8", "5.0"), "PyYAML": ("6.0.3", "6.0.4"), "xformers": ("0.0.35", "0.0.36"),
}  # fmt: skip
KAGGLE = """\
# The image's own.
torch>=2.10,<2.12
peft==0.21.2
trl==1.14.2  # see the facts
unsloth==2026.10.9
unsloth_zoo==2026.10.9
xformers==0.0.35
capped==4.8
"""
CPU = "torch==2.13.0\npeft==0.21.2\ntrl==1.14.2\ncapped==4.8\ncapper==1.0\n# Tests\nPyYAML==6.0.3\n"
CPU_UNSLOTH = "unsloth==2026.10.9\nunsloth_zoo==2026.10.9\n"


@pytest.fixture
def place(tmp_path):
    """A repository's root with requirements files, and the index beside it."""
    index = tmp_path / "index"
    index.mkdir()
    for name, versions in INDEX.items():
        for version in versions:
            wheel(index, name, version, *(["capped<5"] if name in ("capper", "unsloth") else []))
    root = tmp_path / "root"
    root.mkdir()
    for name, text in ((lock.KAGGLE, KAGGLE), (lock.CPU, CPU), (lock.CPU_UNSLOTH, CPU_UNSLOTH)):
        (root / name).write_text(text)
    return root


def wheel(index, name, version, *requires, tag="py3-none-any"):
    about = f"{name}-{version}.dist-info"
    head = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    with zipfile.ZipFile(index / f"{name}-{version}-{tag}.whl", "w") as file:
        file.writestr(f"{about}/METADATA", head + "".join(f"Requires-Dist: {one}\n" for one in requires))
        file.writestr(f"{about}/WHEEL", f"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: {tag}\n")
        file.writestr(f"{about}/RECORD", "")


def words(root):
    return "--no-index", "--find-links", str(root.parent / "index")


def files(root):
    return {path.name: path.read_text() for path in root.iterdir()}


def test_pins_move_as_far_as_they_resolve_and_what_stays_says_why(place, capsys):
    assert lock.main(place, words(place)) == 0
    assert capsys.readouterr().out.splitlines() == [
        "requirements.txt: peft 0.21.2 -> 0.21.3",
        "requirements.txt: trl 1.14.2 -> 1.14.9",
        "requirements.txt: unsloth_zoo 2026.10.9 -> 2026.10.10",
        "requirements-cpu.txt: peft 0.21.2 -> 0.21.3",
        "requirements-cpu.txt: trl 1.14.2 -> 1.14.9",
        "requirements-cpu.txt: PyYAML 6.0.3 -> 6.0.4",
        "requirements-cpu-unsloth.txt: unsloth_zoo 2026.10.9 -> 2026.10.10",
        "stays: capped 4.8 (5.0 is out): with the other pins no newer one resolves",
        "stays: torch 2.13.0 (2.14.0 is out): every saved byte depends on it, and a CPU build has to be on the index",
        "stays: trl 1.14.9 (1.15.0 is out): the loss of 1.15.0 needs Triton, and dies on a CPU",
        "stays: xformers 0.0.35 (0.0.36 is out): built for the torch of Kaggle's image",
        "Now `make setup test`; the versions that were tried stand in tests/integration/test_pins.py, too.",
    ]
    new = {"peft==0.21.2": "peft==0.21.3", "trl==1.14.2": "trl==1.14.9", "PyYAML==6.0.3": "PyYAML==6.0.4"}
    new["unsloth_zoo==2026.10.9"] = "unsloth_zoo==2026.10.10"
    for name, text in ((lock.KAGGLE, KAGGLE), (lock.CPU, CPU), (lock.CPU_UNSLOTH, CPU_UNSLOTH)):
        for old, renewed in new.items():
            text = text.replace(old, renewed)
        assert files(place)[name] == text  # comments and ranges as they were


def test_a_pin_that_one_python_lacks_is_not_written(place, capsys):
    wheel(place.parent / "index", "peft", "0.22.0", tag="cp311-none-any")
    before = files(place)
    assert lock.main(place, words(place)) == 1
    error = capsys.readouterr().err
    assert error.startswith("The pins do not resolve, and nothing was written:\n")
    assert "peft==0.22.0 has no wheels" in error
    assert files(place) == before


def test_what_installed_packages_ask_for_is_named():
    told = list(lock._askers("huggingface_hub", "2.0.0"))
    assert "datasets 4.8.5 asks for <2.0,>=0.25.0" in told
    assert "transformers 5.17.0 asks for <2.0,>=1.5.0" in told
    assert not any(line.startswith("peft ") for line in told)
