"""docs/configuration.md, made from the configuration itself: `python tests/support/docs.py` writes it anew."""

from pathlib import Path

from kaggle_lib.config import POLICY, describe

PAGE = Path(__file__).parents[2] / "docs" / "configuration.md"
HEAD = """# All keys

Given by `--set key=value`, in a YAML file (`--config`), in a preset, or as keywords in a notebook. Text is read by the
key's own type: `run=007` is the run "007", `1e-4` a number, `false` false, and nothing behind `=` means empty. With
papermill use `-r key value`; what `-p` has already turned into another type (007 into 7) is refused for a text key.

The last column says what a later session of the same run may do: **frozen** keys decide the weights and stay as the
first session set them; **free** ones may be given anew. This page is made from `kaggle_lib/config.py`.

| key | takes | default | what it does | in a later session |
|---|---|---|---|---|
"""


def page() -> str:
    rows = [
        f"| `{name}` | {takes} | {default if default in ('required', 'empty') else f'`{default}`'} | {text} | "
        f"{'frozen' if POLICY[name] == 'same' else 'free'} |"
        for name, takes, default, text in describe()
    ]
    return HEAD + "\n".join(rows) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
