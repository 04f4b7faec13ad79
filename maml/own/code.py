"""What a function of the user's is, as text: the same in every process for as long as it is the same function."""

import ast
import functools
import inspect
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any


def code_of(function: Any) -> str | None:
    """The source of a function, and the numbers and texts that are bound in it; not what it calls.

    Comments, the docstring and the layout do not count, and of a lambda's line nothing else does. Of an object that
    can be called it is the class's name and the plain attributes.

    Returns:
        The text; None: there is no source, as of a function typed at a prompt.
    """
    if isinstance(function, functools.partial):
        inner = code_of(function.func)
        return inner and f"{inner} with {_plain([function.args, function.keywords])}"
    function = inspect.unwrap(function)
    if not inspect.isroutine(function):
        kind, attributes = type(function), getattr(function, "__dict__", {})
        kept = {name: value for name, value in attributes.items() if name != "name"}  # Keras numbers its names
        return f"{kind.__module__}.{kind.__qualname__} with {_plain(kept)}"
    return _of_function(function)


def _of_function(function: Any) -> str | None:
    try:
        text = textwrap.dedent(inspect.getsource(function))
    except (OSError, TypeError):
        return None
    code = function.__code__
    trees = [tree for tree in _trees(text) if _arguments(tree) == code.co_varnames[: code.co_argcount]]
    source = "\n".join(dict.fromkeys(ast.unparse(tree) for tree in trees)) or text
    return f"{source} with {_plain([_bound(function), function.__defaults__, function.__kwdefaults__])}"


def _trees(text: str) -> Iterator[ast.AST]:
    """The function that a text defines, without its docstring, or the lambdas in it."""
    try:
        tree = ast.parse(text).body[0]
    except SyntaxError:  # from the middle of a call
        tree = None
    if isinstance(tree, ast.FunctionDef):
        if ast.get_docstring(tree) is not None:
            tree.body = tree.body[1:] or [ast.Pass()]
        tree.decorator_list = []
        yield tree
        return
    start = text.find("lambda")
    while start >= 0:
        for end in range(len(text), start, -1):
            try:
                found = ast.parse(text[start:end].strip(), mode="eval").body
            except SyntaxError:
                continue
            if isinstance(found, ast.Lambda):
                yield found
                break
        start = text.find("lambda", start + 1)


def _arguments(tree: Any) -> tuple[str, ...]:
    return tuple(argument.arg for argument in [*tree.args.posonlyargs, *tree.args.args])


def _bound(function: Any) -> dict[str, Any]:
    """The values of a closure."""
    cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
    bound = {}
    for name, cell in cells:
        try:
            bound[name] = cell.cell_contents
        except ValueError:  # not bound yet
            continue
    return bound


def _plain(value: Any) -> str:
    """Numbers and texts as they are printed, and of everything else the kind: its address would differ every time."""
    if value is None or isinstance(value, bool | int | float | complex | str | bytes):
        return repr(value)
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{key}: {_plain(each)}' for key, each in value.items())}}}"
    if isinstance(value, Sequence):
        return f"[{', '.join(map(_plain, value))}]"
    return type(value).__name__
