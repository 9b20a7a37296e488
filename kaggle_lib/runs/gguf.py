"""A GGUF file of merged weights, by llama.cpp's own converter, and the Modelfile that Ollama makes a model with."""

from __future__ import annotations

import difflib
import importlib.util
import shutil
import subprocess
import sys
import unicodedata
from dataclasses import dataclass
from pathlib import Path

from kaggle_lib.data.formats import Format
from kaggle_lib.errors import ConfigError, UserError
from kaggle_lib.runs import launch

# Bits a weight, for the room they need; the first three are written by the converter, the others by llama-quantize.
KINDS = {"f16": 16.0, "bf16": 16.0, "q8_0": 8.5, "q6_k": 6.6, "q5_k_m": 5.7, "q4_k_m": 4.9, "q4_k_s": 4.6}
CONVERTED = ("f16", "bf16", "q8_0")
USUAL = Path("~/.unsloth/llama.cpp")  # where Unsloth puts it


@dataclass(frozen=True)
class Tools:
    """llama.cpp's programs; `quantizer` is None where the converter writes the kind by itself."""

    converter: Path
    quantizer: Path | None


def check(kind: str) -> None:
    """Raises ConfigError for a quantisation that is none."""
    if kind not in KINDS:
        near = difflib.get_close_matches(kind.lower(), KINDS, 1, 0.4)
        meant = f"; did you mean {near[0]!r}?" if near else ""
        raise ConfigError([f"--quantization: {kind!r} is none of {', '.join(KINDS)}{meant}"])


def find(llama_cpp: str | None, kind: str) -> Tools:
    """llama.cpp's programs in the folder `llama_cpp`, or where Unsloth puts them. Raises UserError for one that is
    missing, or where the package that reads the file back is."""
    folder = Path(llama_cpp or USUAL).expanduser()
    converter = folder / "convert_hf_to_gguf.py"
    programs = (folder / "llama-quantize", folder / "build" / "bin" / "llama-quantize", shutil.which("llama-quantize"))
    quantizer = next((Path(path) for path in programs if path and Path(path).is_file()), None)
    missing, todo = "", f"Clone llama.cpp's repository to {folder}, or say where it is: --llama-cpp FOLDER."
    if importlib.util.find_spec("gguf") is None:
        missing, todo = "the package gguf", "Install it: pip install gguf."
    elif not converter.is_file():
        missing = f"llama.cpp's converter {converter}"
    elif said := _refuses([sys.executable, str(converter), "--help"]):
        missing, todo = f"what {converter} itself needs ({said})", "Install that, with pip."
    elif kind not in CONVERTED and quantizer is None:
        missing = f"llama.cpp's llama-quantize, which makes {kind},"
        todo = f"Build it in {folder} (cmake -B build && cmake --build build --target llama-quantize), or take q8_0."
    if missing:
        raise UserError(
            f"A GGUF file cannot be made here: {missing} is missing.", kept="Nothing was written or sent.", todo=todo
        )
    return Tools(converter, None if kind in CONVERTED else quantizer)


def _refuses(words: list[str]) -> str:
    """The last line that a program says where it does not start; a converter lacks a package, mostly."""
    done = subprocess.run(words, capture_output=True, text=True, env=launch.environment(0), check=False)
    return (done.stderr.strip() or "no word").splitlines()[-1] if done.returncode else ""


def most_bytes(count: int, kind: str) -> int:
    """Bytes on disk for `count` parameters: the file, and what it is quantised from while that is done."""
    return int(count * (KINDS[kind] / 8 * 1.1 + (0 if kind in CONVERTED else 2.02)))


def convert(tools: Tools, merged: Path, file: Path, kind: str, log: Path) -> None:
    """Write `file`. Raises UserError with the last lines of what a program said where it fails."""
    first = file if tools.quantizer is None else file.with_suffix(".f16")
    outtype = kind if tools.quantizer is None else "f16"
    _call([sys.executable, str(tools.converter), str(merged), "--outfile", str(first), "--outtype", outtype], log)
    if tools.quantizer is not None:
        _call([str(tools.quantizer), str(first), str(file), kind.upper()], log)
        first.unlink()


def _call(words: list[str], log: Path) -> None:
    with log.open("wb") as output:
        done = subprocess.run(
            launch.tied(words),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=launch.environment(0),
            check=False,
        )
    if done.returncode:
        program = next(Path(word).name for word in words if word != sys.executable)
        raise UserError(
            f"llama.cpp's {program} ended with {done.returncode}.",
            kept="The merged model is kept, and nothing was sent.",
            todo=f"The end of {log}:\n{launch.last_lines(log, 8)}",
        )


def modelfile(file: str, form: Format, system_prompt: str | None) -> str:
    """What `ollama create` reads: the file, the template that was trained with, its stops, greedy answers.

    Raises ConfigError for a family without a turn of the system's, and for a system prompt that it cannot hold.
    """
    if form.preamble is None:
        raise ConfigError([f"--form: a Modelfile cannot say where {form.family} has its system prompt; take merged"])
    text = unicodedata.normalize("NFC", system_prompt or "").strip()
    if '"""' in text:
        raise ConfigError(['system_prompt: it holds """, which a Modelfile cannot'])
    lines = [f"FROM ./{file}", f'TEMPLATE """{template(form)}"""']
    lines += [f'SYSTEM """{text}"""'] if text else []
    lines += [f'PARAMETER stop "{stop}"' for stop in form.stops]
    return "\n".join([*lines, "PARAMETER temperature 0", ""])


def template(form: Format) -> str:
    """The chat template in Go's language, without the begin-of-text token, which llama.cpp puts before a prompt."""
    system = f"{form.before['system']}{form.preamble}{{{{ .System }}}}{form.after['system']}"
    turns = "".join(
        f'{{{{ if eq .Role "{role}" }}}}{form.before[role]}{{{{ .Content }}}}{form.after[role]}{{{{ end }}}}'
        for role in ("user", "assistant")
    )
    first = system if form.preamble else f"{{{{ if .System }}}}{system}{{{{ end }}}}"
    return f"{first}{{{{ range .Messages }}}}{turns}{{{{ end }}}}{form.before['assistant']}"
