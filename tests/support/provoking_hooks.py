"""A hooks file whose run meets an accident wherever a file in the folder $PROVOKE asks for one.

The file `raise-7` there makes step 7 raise; it is taken away before, so that the accident happens once. `slow` holds
the seconds that every step takes. Without such files the hooks change nothing, so an uninterrupted run has the same.
"""

import ctypes
import os
import signal
import time
from pathlib import Path

import torch
from transformers import TrainerCallback

FOLDER = Path(os.environ.get("PROVOKE", "/nonexistent"))
step = 0


def asked(what):
    try:
        (FOLDER / f"{what}-{step}").unlink()
    except FileNotFoundError:
        return False
    return True


class Accidents(TrainerCallback):
    def on_step_begin(self, args, state, control, **kwargs):
        global step
        step = state.global_step + 1
        if (FOLDER / "slow").exists():
            time.sleep(float((FOLDER / "slow").read_text()))
        if asked("raise"):
            raise RuntimeError(f"an accident in step {step}")
        if asked("freeze"):
            os.kill(os.getpid(), signal.SIGSTOP)
        if asked("block"):
            ctypes.PyDLL(None).sleep(3600)  # a C call that holds the GIL
        if asked("kill"):
            os.kill(os.getpid(), signal.SIGKILL)

    def on_step_end(self, args, state, control, **kwargs):
        if asked("fill"):
            with (Path(os.environ["FILL"]) / "ballast").open("wb", buffering=0) as file:
                try:
                    while True:
                        file.write(bytes(2**16))
                except OSError:  # no space left on device
                    pass


def exhaust(gradient):
    torch.empty(2**46, dtype=torch.uint8)  # the CPU allocator refuses


def adapt(model, config):
    def watch(module, inputs, output):
        if output.requires_grad and asked("memory"):
            output.register_hook(exhaust)
        if output.requires_grad and asked("loss"):
            return output * float("nan")
        return None

    model.get_base_model().model.layers[-1].register_forward_hook(watch)
    return model


def callbacks(config):
    return [Accidents()]
