"""What is read first stays short, and so does every function."""

import ast

from tests.command_line import ROOT

SOURCES = [ROOT / "main.py", ROOT / "proc_images.py"]
SOURCES += [path for room in ("maml", "benchmarks", "tests", "examples") for path in (ROOT / room).rglob("*.py")]


def lines_of(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """A function's lines without its docstring."""
    first = function.body[0]
    said = ast.get_docstring(function) is not None
    return function.end_lineno - function.lineno + 1 - (first.end_lineno - first.lineno + 1 if said else 0)


def test_no_function_is_long():
    functions = [
        (f"{path.relative_to(ROOT)}: {node.name}", lines_of(node))
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    assert len(functions) > 1000
    assert [function for function in functions if function[1] > 40] == []


def test_the_pages_that_are_read_first_are_short():
    for page in ("README.md", "maml/maml.py"):
        assert len((ROOT / page).read_text(encoding="utf-8").splitlines()) <= 150, page
