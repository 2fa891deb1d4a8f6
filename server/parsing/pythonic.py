"""Calls as a list of Python's: `[f(x=1), g(y="a")]`."""

import ast
from typing import Any

from server.parsing.parts import Call
from server.parsing.spans import as_call


def read_pythonic(span: str) -> list[Call] | None:
    """The calls of a list; arguments have names, and are literals."""
    try:
        tree = ast.parse(span.strip(), mode="eval").body
        if not isinstance(tree, ast.List) or not tree.elts:
            return None
        return [_call(node) for node in tree.elts]
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        return None


def _call(node: ast.expr) -> Call:
    if not isinstance(node, ast.Call) or node.args:
        raise ValueError("not a call by names")
    return as_call(_name(node.func), {_keyword(k): _value(k.value) for k in node.keywords})


def _name(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return f"{_name(node.value)}.{node.attr}"
    if not isinstance(node, ast.Name):
        raise ValueError("not a name")
    return node.id


def _keyword(keyword: ast.keyword) -> str:
    if keyword.arg is None:
        raise ValueError("not a named argument")
    return keyword.arg


def _value(node: ast.expr) -> Any:
    """A literal; JSON's names of true, false and null are as good as Python's."""
    match node:
        case ast.Name(id="true"):
            return True
        case ast.Name(id="false"):
            return False
        case ast.Name(id="null"):
            return None
        case ast.List(elts=items) | ast.Tuple(elts=items):
            return [_value(item) for item in items]
        case ast.Dict(keys=keys, values=values):
            if None in keys:
                raise ValueError("not a literal")
            pairs = zip(keys, values, strict=True)
            return {ast.literal_eval(key): _value(value) for key, value in pairs if key}
    return ast.literal_eval(node)
