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
# # Train
#
# QLoRA of Llama 3.1 8B on a Bengali corpus, over as many sessions as it takes. Run this notebook again after each
# session, whatever ended it: it goes on from the newest good checkpoint on the store, and once the run is finished it
# says so and ends. The small run that needs neither GPU nor account is `quickstart`.

# %%
try:
    import kaggle_lib as kl
except ImportError:
    raise ImportError("kaggle_lib is not in this image: push from a clone, `python -m kaggle_lib push`.") from None

# %% [markdown]
# **The parameters.** `preset` has every key that is not in this cell; what the cell says counts before it, and any
# other key of docs/configuration.md can be added as a line. A run keeps the values that its first session gave, as far
# as the weights depend on them: to try others, give it another name. Your own rows: their file and columns here. A
# format of your own: `format_row` in a Python file, which a `%%writefile` cell can write; see docs/hooks.md.

# %% tags=["parameters"]
preset: str = "bengali-8b-t4"
run: str = "bengali-8b-t4"  # name of the run
store: str = "store"  # where checkpoints outlive the machine
work_dir: str = "work"  # may be lost at any time
base_model: str = "meta-llama/Llama-3.1-8B-Instruct"  # Hub id or folder
strategy: str = "peft"
data: str = "raseluddin/bengali-empathetic-conversations-corpus"  # file, folder, or attached Kaggle dataset
question_column: str = "Questions"
answer_column: str = "Answers"
hooks: str = ""  # Python file with a row format, callbacks or an adapter of your own
system_prompt: str = ""
rows: int = 6000  # None: all of them
max_length: int = 4096  # tokens
train_batch_size: int = 4  # samples of one step
learning_rate: float = 2e-4
epochs: float = 2.0
lora_r: int = 16
lora_alpha: int = 32
save_steps: int = 50
session_hours: float = 11.5  # saves and pauses before they are over
keep: int = 2  # checkpoints

# %% [markdown]
# A name or a value that cannot be is refused here, before anything is loaded.

# %%
kl.configure(globals())

# %% [markdown]
# What is here, and what this run would miss: GPU, memory, disk, versions, data, store.

# %%
here = kl.doctor()

# %% [markdown]
# Interrupt once to save and pause, twice to stop at once. A session that has to end early returns with
# `outcome.outcome == "paused"`; that is no error.

# %%
outcome = kl.train()

# %% [markdown]
# One page: the curve over all sessions, what each of them did, and how long it took.

# %%
page = kl.report()
