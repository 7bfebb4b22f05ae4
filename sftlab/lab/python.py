"""A small part of Python, evaluated by walking its syntax tree: nothing is executed, every step and size is bounded.

Functions over integers and lists of integers: assignment, arithmetic, comparison, if, for over a list or range, append,
len, sum, min, max, abs, return. Anything else is refused. Lists hold integers alone: a list of lists could name itself,
or take 2^n steps to compare.
"""

from __future__ import annotations

import ast
import operator
import warnings
from collections.abc import Callable
from typing import Any

_MAX_INTEGER, _MAX_ITEMS, _MAX_SOURCE = 10**12, 1000, 10_000
_BINARY: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
_COMPARE: dict[type, Callable[[Any, Any], bool]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}
_CALLS: dict[str, Callable[..., Any]] = {"len": len, "sum": sum, "min": min, "max": max, "abs": abs}


class LabPythonError(ValueError):
    """The source is outside the subset, fails, or does not end."""


class _Return(Exception):
    def __init__(self, value: Any) -> None:
        self.value = value


def run_function(source: str, arguments: list[Any], max_steps: int = 2000) -> Any:
    """Call the first function of a source with some arguments.

    Args:
        source: Python text that defines a function.
        arguments: Integers and lists of integers.
        max_steps: Maximum number of visited nodes of the syntax tree.

    Raises:
        LabPythonError: There is no value; the message says why.
    """
    function = _parse(source)
    names = [argument.arg for argument in function.args.args]
    if len(names) != len(arguments):
        raise LabPythonError(f"takes {len(names)} arguments, not {len(arguments)}")
    walker = _Walker(
        {name: list(v) if isinstance(v, list) else v for name, v in zip(names, arguments, strict=True)}, max_steps
    )
    try:
        walker.block(function.body)
    except _Return as result:
        return result.value
    except (TypeError, ZeroDivisionError, IndexError, RecursionError, ValueError) as error:
        if isinstance(error, LabPythonError):
            raise
        raise LabPythonError(f"{type(error).__name__} while running") from None
    return None


def _parse(source: str) -> ast.FunctionDef:
    """Parse a source with one plain function."""
    if len(source) > _MAX_SOURCE:
        raise LabPythonError(f"longer than {_MAX_SOURCE} characters")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on odd but valid literals
            body = ast.parse(source).body
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        raise LabPythonError(f"no valid Python: {type(error).__name__}") from None
    if len(body) != 1 or not isinstance(body[0], ast.FunctionDef):
        raise LabPythonError("a single function is expected")
    function, given = body[0], body[0].args
    special = (given.posonlyargs, given.kwonlyargs, given.vararg, given.kwarg, given.defaults)
    if function.decorator_list or any(special):
        raise LabPythonError("only plain arguments, and no decorators")
    return function


class _Walker:
    """The variables and the remaining steps."""

    def __init__(self, variables: dict[str, Any], steps: int) -> None:
        self.variables, self.steps = variables, steps

    def block(self, body: list[ast.stmt]) -> None:
        for statement in body:
            self._spend()
            handler = getattr(self, f"_{type(statement).__name__.lower()}", None)
            if handler is None:
                raise LabPythonError(f"{type(statement).__name__} is outside of the subset")
            handler(statement)

    def _spend(self) -> None:
        self.steps -= 1
        if self.steps < 0:
            raise LabPythonError("too many steps")

    def _return(self, node: ast.Return) -> None:
        raise _Return(None if node.value is None else self.value(node.value))

    def _assign(self, node: ast.Assign) -> None:
        if len(node.targets) != 1 or not isinstance(node.targets[0], ast.Name):
            raise LabPythonError("only plain names are assigned to")
        self.variables[node.targets[0].id] = self.value(node.value)

    def _augassign(self, node: ast.AugAssign) -> None:
        if not isinstance(node.target, ast.Name):
            raise LabPythonError("only plain names are assigned to")
        binary = ast.BinOp(ast.Name(node.target.id, ast.Load()), node.op, node.value)
        self.variables[node.target.id] = self.value(binary)

    def _if(self, node: ast.If) -> None:
        self.block(node.body if self.value(node.test) else node.orelse)

    def _for(self, node: ast.For) -> None:
        if not isinstance(node.target, ast.Name) or node.orelse:
            raise LabPythonError("only plain for loops are known")
        items = self.value(node.iter)
        if not isinstance(items, (list, range)):
            raise LabPythonError("a for loop goes over a list or range")
        if len(items) > _MAX_ITEMS:
            raise LabPythonError(f"a loop over more than {_MAX_ITEMS} items")
        for item in list(items):
            self.variables[node.target.id] = item
            self.block(node.body)

    def _pass(self, node: ast.Pass) -> None:
        pass

    def _expr(self, node: ast.Expr) -> None:
        call = node.value
        appends = isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr == "append"
        if not appends or len(call.args) != 1 or call.keywords:  # type: ignore[attr-defined]
            raise LabPythonError("only append stands alone")
        items = self.value(call.func.value)  # type: ignore[attr-defined]
        if not isinstance(items, list) or len(items) >= _MAX_ITEMS:
            raise LabPythonError("append needs a list that is not too long")
        items.append(self._integer(call.args[0]))  # type: ignore[attr-defined]

    def value(self, node: ast.expr) -> Any:
        """Evaluate an expression."""
        self._spend()
        if isinstance(node, ast.Constant) and isinstance(node.value, int):
            return _bounded(node.value)
        if isinstance(node, ast.Name):
            if node.id not in self.variables:
                raise LabPythonError(f"the name {node.id} has no value")
            return self.variables[node.id]
        if isinstance(node, ast.List):
            return [self._integer(item) for item in node.elts]
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            return _bounded(-self._integer(node.operand))
        if isinstance(node, ast.BinOp) and type(node.op) in _BINARY:
            return self._binary(node)
        if isinstance(node, ast.Compare) and len(node.ops) == 1 and type(node.ops[0]) in _COMPARE:
            return _COMPARE[type(node.ops[0])](self.value(node.left), self.value(node.comparators[0]))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.keywords:
            return self._call(node.func.id, [self.value(argument) for argument in node.args])
        raise LabPythonError(f"{type(node).__name__} is outside of the subset")

    def _integer(self, node: ast.expr) -> int:
        value = self.value(node)
        if not isinstance(value, int):
            raise LabPythonError(f"an integer is needed, not a {type(value).__name__}")
        return value

    def _binary(self, node: ast.BinOp) -> int:
        left, right = self._integer(node.left), self._integer(node.right)
        return _bounded(_BINARY[type(node.op)](left, right))

    def _call(self, name: str, arguments: list[Any]) -> Any:
        if name == "range" and all(type(a) is int and abs(a) <= _MAX_ITEMS for a in arguments):
            return range(*arguments)
        if name not in _CALLS:
            raise LabPythonError(f"{name} is outside of the subset")
        return _bounded(_CALLS[name](*arguments))


def _bounded(value: int) -> int:
    if not isinstance(value, int):
        raise LabPythonError(f"an integer is needed, not a {type(value).__name__}")
    if abs(value) > _MAX_INTEGER:
        raise LabPythonError("a number grows too large")
    return value
