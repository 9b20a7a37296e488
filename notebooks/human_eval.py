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
# # People rate the answers
#
# First a page for your raters: base against tuned, blind. Then, when their files are back, what they found. The run
# must have been evaluated; its answers are on its store.

# %%
try:
    import kaggle_lib as kl
except ImportError:
    raise ImportError("kaggle_lib is not in this image: push from a clone, `python -m kaggle_lib push`.") from None

# %% tags=["parameters"]
run: str = "bengali-8b-t4"  # name of the run
store: str = "store"  # where its checkpoints are
work_dir: str = "work"  # the page is written to work_dir/run/rating
pairs: int = 50  # messages with both answers side by side
singles: int = 20  # messages whose two answers are rated one by one
ratings: str = ""  # folder with the raters' files; empty as long as there are none
judge: str = ""  # a model's ratings in the same form, to be tested against the people

# %%
kl.configure(globals())

# %% [markdown]
# Give your raters `page.html`, or `sheet.csv` for a spreadsheet, and keep `key.json`: it alone tells which answer is
# whose. The same settings give the same sheet again.

# %%
sheet = kl.rate_build(pairs=pairs, singles=singles)

# %% [markdown]
# Means, win rate, intervals and agreement, once there are ratings.

# %%
result = kl.rate_score(files=ratings, judge=judge or None) if ratings else None
