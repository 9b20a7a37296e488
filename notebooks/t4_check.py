# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
#   language_info:
#     name: python
# ---

# %% [markdown]
# # What two T4s do
#
# About twenty minutes: tokens per second, peak memory, two GPUs against one, whether a killed run ends with the same
# bytes, and how fast a checkpoint gets to the store. The numbers are in `t4-check.json`, here and on the store.

# %%
try:
    import kaggle_lib as kl
except ImportError:
    raise ImportError("kaggle_lib is not in this image: push from a clone, `python -m kaggle_lib push`.") from None

# %% [markdown]
# **The parameters.** `strategy = "unsloth"` checks both strategies, `"peft"` that one alone. `base_model = "sample"`
# with `data = "sample"`, `precision = "fp32"` and `optim = "adamw_torch"` is the same on a CPU, in small.

# %% tags=["parameters"]
preset: str = "t4-check"
run: str = "t4-check"  # name of the run
store: str = "store"  # hf://user/repo: what it measures goes there
work_dir: str = "work"  # may be lost at any time
base_model: str = "meta-llama/Llama-3.1-8B-Instruct"  # Hub id or folder
strategy: str = "unsloth"
data: str = "raseluddin/bengali-empathetic-conversations-corpus"  # file, folder, or attached Kaggle dataset
precision: str = "fp16"
optim: str = "adamw_8bit"
max_length: int = 4096  # tokens
processes: str = "auto"  # one per GPU
max_steps: int = 12
save_steps: int = 6  # the middle
hang_minutes: float = 5.0

# %%
kl.configure(globals())

# %%
found = kl.t4_check(minutes=20)
