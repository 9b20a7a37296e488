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
# # Quickstart
#
# A tiny random-initialised Llama with LoRA on the sample corpus: two minutes on two CPU cores, no account, no download.
# Interrupt the training and run its cell again: it goes on where the last checkpoint was made. The values below can be
# given from outside, as text: `papermill notebooks/quickstart.ipynb out.ipynb -r run second`.

# %%
import kaggle_lib as kl

# %% tags=["parameters"]
preset: str = "tiny-cpu"
run: str = "quickstart"
store: str = "store"
work_dir: str = "work"
max_steps: int = 60

# %% [markdown]
# From here on these are the settings of every call.

# %%
kl.configure(globals())

# %% [markdown]
# Train: fresh, resumed, or finished already. A session that has to end early returns with `outcome='paused'`.

# %%
outcome = kl.train()

# %% [markdown]
# How the run stands, as its store knows it.

# %%
state = kl.status()

# %% [markdown]
# The base model beside the tuned one, on answers that neither has seen.

# %%
scored = kl.evaluate()

# %% [markdown]
# One page with all of it.

# %%
page = kl.report()
