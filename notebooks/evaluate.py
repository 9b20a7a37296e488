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
# # Evaluate
#
# The base model beside the tuned one on answers that neither has seen. The run's own settings are on its store, so its
# name and places are enough. A run that is not finished is not evaluated, and that is no error.

# %%
try:
    import kaggle_lib as kl
except ImportError:
    raise ImportError("kaggle_lib is not in this image: push from a clone, `python -m kaggle_lib push`.") from None

# %% tags=["parameters"]
run: str = "bengali-8b-t4"  # name of the run
store: str = "store"  # where its checkpoints are
work_dir: str = "work"  # what is missing here is fetched from the store

# %%
kl.configure(globals())

# %% [markdown]
# How the run stands, as its store knows it.

# %%
state = kl.status()

# %% [markdown]
# Bits per byte and perplexity of both models, row by row the same answers, and samples of what they say.

# %%
outcome = kl.evaluate()

# %% [markdown]
# One page with all of it.

# %%
page = kl.report()
