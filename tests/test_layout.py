"""The house: what lies in the root, and which folder may import which.

Read off the files, without running them: docs/architecture.md says why.
"""

import ast
import functools
import os
from pathlib import Path

ROOT = Path(__file__).parents[1]

# from the bottom; a folder imports from those before it
FLOORS = (
    *("runtime", "parallel", "storage", "formats", "datasets", "models", "engine"),
    *("evaluation", "detection"),
)
# root files, above all folders; likewise
LUA = ("opts", "checkpoints", "dataloader", "train", "main")  # the original's five
COMMANDS = ("convert", "plot", "evaluate", "detect", "complexity", "hubconf")
SCRIPTS = ("benchmarks", "pretrained")  # folders of scripts, which nothing imports
# tables that the root's opts.py reads; like it, they come before everything
BEFORE_OPTS = {"datasets", "models.depths", "runtime.errors"}


@functools.cache
def files():
    """Every Python file of the program and its tests: (dotted name, path)."""
    found = []
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        if not any(part.startswith(".") for part in parts):
            found.append((".".join(parts).removesuffix(".__init__"), path))
    return found


def imports(text, folders):
    """The modules of this program that the text of a file in these folders imports, anywhere."""
    known = dict(files())
    for node in ast.walk(ast.parse(text)):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = folders[: len(folders) + 1 - node.level] if node.level else ()
            module = ".".join([*above, *([node.module] if node.module else [])])
            inner = [f"{module}.{alias.name}".lstrip(".") for alias in node.names]
            names = [name if name in known else module for name in inner]
        yield from (name for name in names if name in known)


@functools.cache
def program():
    """The files that are not tests: {dotted name: the modules it imports}."""
    found = {}
    for name, path in files():
        if name.split(".")[0] != "tests":
            folders = path.relative_to(ROOT).parent.parts
            found[name] = set(imports(path.read_text(), folders)) - {name}
    return found


def test_imports_of_every_form_are_seen():
    text = "import models.fold as f, os\nfrom models import depths, conv\nfrom . import forms\n"
    text += "from .blocks import conv\nfrom ..runtime import errors\nfrom .. import opts"
    found = list(imports(text, ("models",)))
    assert found[:3] == ["models.fold", "models.depths", "models"]
    assert found[3:] == ["models.forms", "models.blocks", "runtime.errors", "opts"]


def test_the_root_holds_the_originals_files_and_the_commands():
    found = {path.stem for path in ROOT.glob("*.py")}
    assert found == {*LUA, *COMMANDS}


def test_every_folder_has_a_floor():
    holding = {name.split(".")[0] for name, _ in files() if "." in name}
    assert holding == {*FLOORS, *SCRIPTS, "tests"}


def test_imports_go_down():
    order = [*FLOORS, *LUA, *COMMANDS]
    for name, imported in program().items():
        top = name.split(".")[0]
        for other in imported:
            below = other.split(".")[0]
            assert below not in SCRIPTS or below == top, f"{name} imports the script {other}"
            if top in SCRIPTS or below == top:
                continue
            assert below in order and order.index(below) < order.index(top), f"{name} -> {other}"


def test_no_circle():
    graph, done = program(), set()

    def visit(name, way):
        assert name not in way, " -> ".join([*way[way.index(name) :], name])
        if name not in done:
            for other in sorted(graph.get(name, ())):
                visit(other, [*way, name])
            done.add(name)

    for name in graph:
        visit(name, [])


def test_options_are_read_without_anything_heavy():
    """opts.py, and what it imports, imports only the standard library."""
    graph, seen, todo = program(), set(), ["opts"]
    while todo:
        name = todo.pop()
        seen.add(name)
        tree = ast.parse(dict(files())[name].read_text())
        for node in tree.body:  # at the top only: functions may import later
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                words = (
                    [a.name for a in node.names]
                    if isinstance(node, ast.Import)
                    else [node.module or ""]
                )
                assert not {word.split(".")[0] for word in words} & {"torch", "numpy", "PIL"}, name
        todo += [other for other in graph[name] if other in BEFORE_OPTS and other not in seen]
    assert seen == {"opts", *BEFORE_OPTS}


def test_no_file_is_named_after_nothing():
    vague = {"utils", "util", "misc", "common", "helpers", "helper"}
    assert not vague & {os.path.basename(name.replace(".", "/")) for name, _ in files()}


def test_no_message_shows_the_number_of_an_oserror():
    """runtime.errors.cause gives the text alone."""
    shown = []
    for name, path in files():
        program = ast.parse("" if name.startswith("tests.") else path.read_text())
        for node in ast.walk(program):
            if isinstance(node, ast.ExceptHandler) and node.type:
                kinds = {n.id for n in ast.walk(node.type) if isinstance(n, ast.Name)}
                values = [n.value for n in ast.walk(node) if isinstance(n, ast.FormattedValue)]
                if kinds & {"OSError", "Exception"}:
                    shown += [name for value in values if ast.unparse(value) == node.name]
    assert shown == []
