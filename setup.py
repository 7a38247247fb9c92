"""Says why `pip install .` is not the way; without this file, setuptools names the folders."""

raise SystemExit(
    "This program is not a package: its folders models and datasets would hide others of these "
    "names. Install what it needs, `pip install -r requirements.txt`, and call `python "
    "PATH/main.py`; docs/other-programs.md has the ways to use it from a project of your own."
)
