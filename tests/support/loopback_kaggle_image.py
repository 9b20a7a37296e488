"""The image that sessions of the loopback Kaggle run in: this environment's packages without the library under test.

A virtual environment of its own, whose site-packages are links to the packages of the running one. The library and the
import hook of its editable installation are left out, so that what a notebook imports is what was pushed in it. Added
are Kaggle's `kaggle_secrets` and an `nvidia-smi` that shows the GPUs which the session was given.
"""

from __future__ import annotations

import site
import sys
import sysconfig
import venv
from pathlib import Path

LEFT_OUT = ("kaggle_lib", "__editable__", "kaggle_secrets")
# Name, memory in MiB, driver, compute capability.
GPUS = {
    "Tesla T4": ("15360", "580.105.08", "7.5"),
    "Tesla P100-PCIE-16GB": ("16384", "580.105.08", "6.0"),
}
MACHINES = {"NvidiaTeslaT4": ("Tesla T4", "Tesla T4"), "NvidiaTeslaP100": ("Tesla P100-PCIE-16GB",)}

SECRETS = '''"""Kaggle's client for a notebook's secrets, as the image has it: the same calls, errors and HTTP."""
import json
import os
import socket
import urllib.error
import urllib.request


class CredentialError(Exception):
    pass


class BackendError(Exception):
    pass


class ValidationError(Exception):
    pass


class NotFoundError(Exception):
    pass


class UserSecretsClient:
    def __init__(self):
        self._base = os.getenv("KAGGLE_URL_BASE", "https://www.kaggle.com")
        self._token = os.getenv("KAGGLE_USER_SECRETS_TOKEN")
        if self._token is None:
            raise CredentialError(
                "A JWT Token is required to call Kaggle, please ensure environment variable "
                '"KAGGLE_USER_SECRETS_TOKEN" is set.'
            )

    def get_secret(self, label):
        if label is None or len(label) == 0:
            raise ValidationError("Label must be non-empty.")
        told = self._post({"Label": label}, "/requests/GetUserSecretByLabelRequest")
        if "secret" not in told:
            raise BackendError(f"Unexpected response from the service. Response: {told}")
        return told["secret"]

    def _post(self, data, path):
        headers = {"Content-type": "application/json", "X-Kaggle-Authorization": f"Bearer {self._token}"}
        request = urllib.request.Request(self._base + path, data=json.dumps(data).encode(), headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=40) as reply:
                told = json.loads(reply.read())
        except urllib.error.HTTPError as error:
            if error.code in (401, 403):
                raise CredentialError("Service responded with error code {}.".format(error.code)) from error
            raise BackendError(f"Unexpected response from the service. Response: {error.code}.") from error
        except (urllib.error.URLError, socket.timeout) as error:
            timed_out = isinstance(getattr(error, "reason", error), socket.timeout)
            what = "Timeout error" if timed_out else "Connection error"
            what += " trying to communicate with service. Please ensure internet is on."
            raise ConnectionError(what) from error
        if not told.get("wasSuccessful") or "result" not in told:
            raise BackendError(f"Unexpected response from the service. Response: {told}.")
        return told["result"]
'''

NVIDIA_SMI = """#!{python} -ES
import json, os, sys

gpus = json.loads(os.environ.get("LOOPBACK_GPUS", "[]"))
if not gpus:
    print(
        "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver. Make sure that the latest "
        "NVIDIA driver is installed and running."
    )
    sys.exit(9)
query = next((word.partition("=")[2] for word in sys.argv if word.startswith("--query-gpu=")), None)
if query is None:
    for number, gpu in enumerate(gpus):
        print(f"GPU {{number}}: {{gpu['name']}} (UUID: GPU-loopback-{{number}})")
    sys.exit(0)
fields = [field.strip() for field in query.split(",")]
shape = next((word.partition("=")[2] for word in sys.argv if word.startswith("--format=")), "csv").split(",")
if "noheader" not in shape:
    print(", ".join(fields))
for number, gpu in enumerate(gpus):
    known = {{"index": str(number), "uuid": f"GPU-loopback-{{number}}", "memory.used": "0", **gpu}}
    units = {{"memory.total": " MiB", "memory.used": " MiB"}} if "nounits" not in shape else {{}}
    print(", ".join(known.get(field, "[N/A]") + units.get(field, "") for field in fields))
"""


def gpu(name: str) -> dict[str, str]:
    """What nvidia-smi tells of a GPU of that name."""
    memory, driver, capability = GPUS[name]
    return {"name": name, "memory.total": memory, "driver_version": driver, "compute_cap": capability}


def build(folder: Path, without: tuple[str, ...] = ()) -> Path:
    """Make the image in `folder`; the path of its Python. `without`: beginnings of more names to leave out."""
    if not folder.exists():
        venv.EnvBuilder(symlinks=True).create(folder)
        packages = Path(sysconfig.get_path("purelib", "venv", vars={"base": str(folder)}))
        for source in filter(Path.is_dir, map(Path, site.getsitepackages())):  # Debian's Python names some that are not
            for path in source.iterdir():
                if path.suffix != ".pth" and not path.name.startswith((*LEFT_OUT, *without)):
                    (packages / path.name).symlink_to(path)
        (packages / "kaggle_secrets.py").write_text(SECRETS)
        (folder / "share").mkdir(exist_ok=True)
        (folder / "share" / "jupyter").symlink_to(Path(sys.prefix) / "share" / "jupyter")
        smi = folder / "bin" / "nvidia-smi"
        smi.write_text(NVIDIA_SMI.format(python=folder / "bin" / "python"))
        smi.chmod(0o755)
    return folder / "bin" / "python"
