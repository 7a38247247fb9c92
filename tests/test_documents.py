"""The documents: every relative link, every file and every line of code that they name exists."""

import functools
import os
import re
from pathlib import Path

import pytest

import convert
import detect
import evaluate
import opts
import plot

ROOT = Path(__file__).parents[1]
# the examples of datasets/README.md and models/README.md, and what stands for any name
EXAMPLES = {"plain.py", "stripes.py", "stripes_gen.py", "NAME.py", "NAME_gen.py", "X_gen.py"}


def documents():
    """The repository's .md files, as paths from its root."""
    found = (path.relative_to(ROOT) for path in ROOT.rglob("*.md"))
    hidden = (path for path in found if not any(part.startswith(".") for part in path.parts))
    return sorted(map(str, hidden))


@functools.cache
def prose(name):
    """The text of a document without its blocks of code."""
    text = (ROOT / name).read_text(encoding="utf-8")
    text = re.sub(r"^```.*?^```", "", text, flags=re.S | re.M)
    return re.sub(r"^ {4}\S.*$", "", text, flags=re.M)


@functools.cache
def anchors(name):
    """What GitHub calls the headings of a document."""
    found = []
    for heading in re.findall(r"^#+ (.*)$", prose(name), re.M):
        shown = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading)
        slug = re.sub(r"[^\w\- ]", "", shown.lower()).replace(" ", "-")
        number = found.count(slug)
        found.append(f"{slug}-{number}" if number else slug)
    return found


def links(name):
    """The targets of a document's links that do not lead to the web."""
    targets = re.findall(r"\]\(([^)\s]+)\)", prose(name))
    return [target for target in targets if not re.match(r"[a-z]+:", target)]


def test_there_are_documents_and_links():
    assert {"README.md", "docs/options.md", "models/README.md"} <= set(documents())
    assert sum(len(links(name)) for name in documents()) > 100


@pytest.mark.parametrize("name", documents())
def test_every_link_leads_somewhere(name):
    for target in links(name):
        path, _, anchor = target.partition("#")
        file = os.path.normpath(os.path.join(os.path.dirname(name), path)) if path else name
        assert (ROOT / file).exists(), target
        if anchor and file.endswith(".md"):
            assert anchor in anchors(file), f"{target}: {file} has {anchors(file)}"


def test_every_page_is_linked_from_the_readme():
    pages = {name for name in documents() if name.startswith("docs/")}
    assert pages == {target for target in links("README.md") if target in pages}


@pytest.mark.parametrize("name", documents())
def test_every_python_file_that_is_named_exists(name):
    for file in re.findall(r"`([\w/]+\.py)`", prose(name)):
        near = (ROOT / name).parent / file
        if name != "docs/architecture.md":  # which names them below a heading for their folder
            assert near.name in EXAMPLES or (ROOT / file).exists() or near.exists(), file


def test_the_architecture_has_every_file_of_the_program():
    sections = prose("docs/architecture.md").split("\n### ")[1:]
    said = {}
    for section in sections:
        folder = (re.match(r"`(\w+)/`", section) or [None, "."])[1]
        said.setdefault(folder, set()).update(re.findall(r"`(\w+\.py)`", section))
    for folder, names in said.items():
        paths = (ROOT / folder).glob("*.py" if folder == "." else "**/*.py")
        there = {path.name for path in paths} - {"__init__.py"}
        assert {name for name in there if not name.endswith("_gen.py")} == names, folder
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"tests"}
    assert packages < set(said)


@pytest.mark.parametrize("program", [opts, detect, evaluate, convert, plot])
def test_every_option_stands_on_a_page(program):
    text = "".join((ROOT / name).read_text(encoding="utf-8") for name in documents())
    for name, *_ in program.OPTIONS:
        assert re.search(rf"-{name}(?!\w)", text), name


def test_the_way_to_backward():
    """The rows (file, code) of docs/architecture.md's way from the command to backward()."""
    steps = re.findall(r"^\| ([\w/]+\.py) \| `(.*?)` \|", prose("docs/architecture.md"), re.M)
    assert len(steps) > 10
    for file, code in steps:
        assert code in (ROOT / file).read_text(encoding="utf-8"), f"{file} has no {code}"


def test_the_dataset_contract_names_every_hook():
    """datasets/README.md has each attribute that the program looks for in a split."""
    contract = prose("datasets/README.md")
    hooks = set()
    for file in ("dataloader.py", "datasets/workers.py", "evaluation/ensemble.py"):
        text = (ROOT / file).read_text(encoding="utf-8")
        hooks |= set(re.findall(r"""(?:has|get)attr\((?:self\.)?(?:dataset|s), "(\w+)\"""", text))
    assert {"fast_path", "augment", "name", "stack", "fingerprint", "odd"} <= hooks
    assert [hook for hook in hooks if not re.search(rf"`{hook}[`(]", contract)] == []
