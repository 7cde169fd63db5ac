"""The text form of a program: one op a line, in a small part of Python's syntax, so that it round-trips::

    "two layers"
    x = input(name="x", shape=(1, 64))
    w = weight(name="w", shape=(64, 64))
    v2 = matmul(x, w, act=relu)
    return v2

Expressions may nest (``relu(matmul(x, w))``); parameters that are left out take their defaults.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping
from typing import Any

from graphopt_gym.errors import InputError, unknown_name
from graphopt_gym.graphs.tensor_program.ops import NAMES, OPS
from graphopt_gym.graphs.tensor_program.program import ProgramBuilder, TensorProgram


def program_text(program: TensorProgram) -> str:
    """The text of a program, ops in topological order; equal programs of the same name have equal texts."""
    lines = [_value_text("str", program.name)]
    names = {node: f"v{index}" for index, node in enumerate(program.order)}
    for node in program.order:
        op, params, inputs, _ = program.nodes[node]
        given = [names[source] for source in inputs]
        for (name, (kind, default)), value in zip(OPS[op].params.items(), params, strict=True):
            if value != default:
                given.append(f"{name}={_value_text(kind, value)}")
        lines.append(f"{names[node]} = {op}({', '.join(given)})")
    lines.append("return " + ", ".join(names[output] for output in program.outputs))
    return "\n".join(lines) + "\n"


def _value_text(kind: str, value: Any) -> str:
    if kind != "str":
        return str(value)
    # JSON's escapes are Python's, but for characters past 16 bits; half of such a pair cannot be written as it is
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "backslashreplace").decode("utf-8")


def parse_program(text: str, where: str = "program") -> TensorProgram:
    """The program that a text describes.

    Args:
        where: what error messages call the text, such as its file.

    Raises:
        InputError: bad syntax, an unknown operator, parameter or name, or shapes that do not fit; with line and column.
    """
    body = parse_python(text, where)
    name = "program"
    if body and isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant):
        name = str(body[0].value.value)
        body = body[1:]
    builder = ProgramBuilder(name)
    names: dict[str, int] = {}
    for line in body:
        if isinstance(line, ast.Return) and line is body[-1] and line.value is not None:
            value = line.value
            results = value.elts if isinstance(value, ast.Tuple) else [value]
            if not results:
                raise at(where, line, "it returns nothing; name one result or more")
            return builder.finish([_operand(builder, names, result, where) for result in results])
        if not isinstance(line, ast.Assign) or len(line.targets) != 1 or not isinstance(line.targets[0], ast.Name):
            raise at(where, line, "expected `name = op(...)`, and `return ...` as the last line")
        target = line.targets[0].id
        if target in names:
            raise at(where, line, f"{target!r} is defined a second time")
        names[target] = _operand(builder, names, line.value, where)
    raise InputError(f"{where}: line {len(text.splitlines()) + 1}, column 1: it has no `return ...` at its end")


def parse_python(text: str, where: str) -> list[ast.stmt]:
    """The statements of a text, by Python's own parser.

    Raises:
        InputError: bad syntax, with line and column.
    """
    try:
        return ast.parse(text).body
    except (SyntaxError, ValueError) as error:  # a ValueError: null bytes
        line, column = getattr(error, "lineno", None) or 1, getattr(error, "offset", None) or 1
        message = getattr(error, "msg", None) or str(error)
        raise InputError(f"{where}: line {line}, column {column}: {message}") from None
    except (RecursionError, MemoryError):
        raise InputError(f"{where}: line 1, column 1: expressions nest too deeply; name the parts") from None


def at(where: str, node: ast.AST, message: object) -> InputError:
    """An error with the line and column of a syntax node."""
    line, column = getattr(node, "lineno", 1), getattr(node, "col_offset", 0) + 1
    return InputError(f"{where}: line {line}, column {column}: {message}")


def called(node: ast.AST, where: str) -> tuple[str, list[ast.expr], dict[str, ast.expr]]:
    """Operator, operands and parameters of an expression ``op(operand, ..., parameter=value, ...)``."""
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
        raise at(where, node, "expected `op(...)` or a name")
    if node.func.id not in OPS:
        raise at(where, node, unknown_name("operator", node.func.id, OPS))
    params = {}
    for keyword in node.keywords:
        if keyword.arg is None:
            raise at(where, keyword, "expected `parameter=value`")
        if keyword.arg not in OPS[node.func.id].params:
            raise at(where, keyword, unknown_name("parameter", keyword.arg, OPS[node.func.id].params))
        params[keyword.arg] = keyword.value
    return node.func.id, node.args, params


def _operand(builder: ProgramBuilder, names: Mapping[str, int], node: ast.expr, where: str) -> int:
    if isinstance(node, ast.Name):
        if node.id not in names:
            raise at(where, node, unknown_name("name", node.id, names))
        return names[node.id]
    op, operands, params = called(node, where)
    inputs = [_operand(builder, names, operand, where) for operand in operands]
    values = {}
    for name, value in params.items():
        if isinstance(value, ast.Name) and value.id in NAMES:
            values[name] = value.id
        else:
            try:
                values[name] = ast.literal_eval(value)
            except (ValueError, TypeError):
                raise at(where, value, f"{op}: {name} must be a number, a tuple of numbers, or a word") from None
    try:
        return builder.op(op, *inputs, **values)
    except InputError as error:
        raise at(where, node, error) from None
