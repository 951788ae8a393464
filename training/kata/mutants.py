"""Single-edit mutants of a program, as text edits at the places that its syntax tree points to.

Text edits keep the teacher's formatting, so a mutant looks like something that the student could have written.
"""

from __future__ import annotations

import ast
import itertools
from collections.abc import Iterator
from dataclasses import dataclass

from training.kata.render import INDENT

_COMPARISONS = {
    ast.Lt: ("<", ("<=", ">", ">=")),
    ast.LtE: ("<=", ("<", ">", ">=")),
    ast.Gt: (">", (">=", "<", "<=")),
    ast.GtE: (">=", (">", "<", "<=")),
    ast.Eq: ("==", ("!=", ">=", "<=")),
    ast.NotEq: ("!=", ("==",)),
    ast.In: ("in", ("not in",)),
    ast.NotIn: ("not in", ("in",)),
}
_ARITHMETIC = {
    ast.Add: ("+", ("-", "*")),
    ast.Sub: ("-", ("+",)),
    ast.Mult: ("*", ("+",)),
    ast.FloorDiv: ("//", ("%", "*")),
    ast.Mod: ("%", ("//",)),
}
_CALLS = {
    "min": "max",
    "max": "min",
    "any": "all",
    "all": "any",
    "upper": "lower",
    "lower": "upper",
    "isupper": "islower",
    "islower": "isupper",
}
_TRANSPARENT = ("abs", "sorted", "len", "set")  # calls that a forgetful author leaves out

# Edits that change the tree; the others ("literal") change one leaf or operator.
STRUCTURAL = ("drop_statement", "unwrap", "swap_branches", "move", "exit", "drop_operand", "drop_call", "clause")


@dataclass(frozen=True)
class Mutant:
    kind: str
    source: str


def mutants(source: str) -> list[Mutant]:
    """All single-edit mutants, each text once, without the original. A few do not compile: see `compiles`."""
    found: dict[str, Mutant] = {}
    for kind, text in _Editor(source).edits():
        if text != source:
            found.setdefault(text, Mutant(kind, text))
    return list(found.values())


def compiles(source: str) -> bool:
    """Whether Python accepts the program (`break` moved out of its loop, for one, it does not)."""
    try:
        compile(source, "<mutant>", "exec")
    except SyntaxError:
        return False
    return True


class _Editor:
    def __init__(self, source: str) -> None:
        self.lines = source.split("\n")
        function = ast.parse(source).body[0]
        assert isinstance(function, ast.FunctionDef)
        self.function = function
        # `total *= total` squares at each step: numbers with millions of digits, in a program that never ends.
        self.squaring = {
            (name.lineno, name.col_offset): node.target.id
            for node in ast.walk(function)
            if isinstance(node, ast.AugAssign) and isinstance(node.op, ast.Mult) and isinstance(node.target, ast.Name)
            for name in ast.walk(node.value)
            if isinstance(name, ast.Name)
        }
        # Another receiver of `append` is either no list or the list that the loop walks over.
        self.receivers = {
            (node.value.lineno, node.value.col_offset)
            for node in ast.walk(function)
            if isinstance(node, ast.Attribute) and node.attr in ("append", "add")
        }
        self.variables = sorted(
            {argument.arg for argument in function.args.args}
            | {node.id for node in ast.walk(function) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
        )

    # -- text edits

    def _replace(self, line: int, start: int, end: int, text: str) -> str:
        lines = list(self.lines)
        old = lines[line - 1]
        lines[line - 1] = old[:start] + text + old[end:]
        return "\n".join(lines)

    def _put(self, node: ast.expr, text: str) -> str:
        assert node.end_col_offset is not None
        return self._replace(node.lineno, node.col_offset, node.end_col_offset, text)

    def _text(self, node: ast.expr) -> str:
        return self.lines[node.lineno - 1][node.col_offset : node.end_col_offset]

    def _swap(self, left: ast.expr, right: ast.expr, old: str, new: str) -> str:
        """Replaces an operator between two expressions."""
        line = self.lines[left.lineno - 1]
        assert left.end_col_offset is not None
        gap = line[left.end_col_offset : right.col_offset]
        return self._replace(left.lineno, left.end_col_offset, right.col_offset, gap.replace(old, new, 1))

    def _block(self, statements: list[ast.stmt]) -> tuple[int, int]:
        """First and last line (0-based, end exclusive) of consecutive statements."""
        end = statements[-1].end_lineno
        assert end is not None
        return statements[0].lineno - 1, end

    def _with_lines(self, start: int, end: int, new: list[str]) -> str:
        return "\n".join([*self.lines[:start], *new, *self.lines[end:]])

    # -- the edits

    def edits(self) -> Iterator[tuple[str, str]]:
        for node in ast.walk(self.function):
            if isinstance(node, ast.expr):
                yield from self._expression(node)
            elif isinstance(node, ast.AugAssign):
                for new in {"+": ("-=", "*="), "-": ("+=",), "*": ("+=",)}.get(self._operator(node.op), ()):
                    yield "arithmetic", self._swap(node.target, node.value, self._operator(node.op) + "=", new)
            elif isinstance(node, (ast.If, ast.While)):
                yield "negate", self._put(node.test, f"not ({self._text(node.test)})")
            if isinstance(node, (ast.GeneratorExp, ast.ListComp)):
                yield from self._clauses(node)
            yield from self._statements(node)
        yield from self._moves()

    @staticmethod
    def _operator(operator: ast.operator) -> str:
        return _ARITHMETIC[type(operator)][0] if type(operator) in _ARITHMETIC else "?"

    def _expression(self, node: ast.expr) -> Iterator[tuple[str, str]]:
        if isinstance(node, ast.Compare):
            operands = [node.left, *node.comparators]
            for operator, left, right in zip(node.ops, operands, operands[1:], strict=False):
                old, others = _COMPARISONS[type(operator)]
                for new in others:
                    yield "comparison", self._swap(left, right, old, new)
        elif isinstance(node, ast.BinOp):
            old, others = _ARITHMETIC[type(node.op)]
            for new in others:
                yield "arithmetic", self._swap(node.left, node.right, old, new)
            yield "drop_operand", self._put(node, self._text(node.left))
            yield "drop_operand", self._put(node, self._text(node.right))
        elif isinstance(node, ast.BoolOp):
            old, new = ("and", "or") if isinstance(node.op, ast.And) else ("or", "and")
            yield "logic", self._swap(node.values[0], node.values[1], old, new)
            yield "drop_operand", self._put(node, self._text(node.values[0]))
            yield "drop_operand", self._put(node, self._text(node.values[1]))
        elif isinstance(node, ast.UnaryOp):
            yield "drop_call", self._put(node, self._text(node.operand))
        elif isinstance(node, ast.Constant):
            yield from self._constant(node)
        elif isinstance(node, ast.Call):
            yield from self._call(node)
        elif isinstance(node, ast.IfExp):
            yield (
                "swap_branches",
                self._put(node, f"{self._text(node.orelse)} if {self._text(node.test)} else {self._text(node.body)}"),
            )
        elif isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Slice):
            yield "clause", self._put(node, self._text(node.value))
            lower, upper = node.slice.lower, node.slice.upper
            if (lower is None) != (upper is None):
                bound = f"[:{self._text(lower)}]" if lower is not None else f"[{self._text(upper)}:]"  # type: ignore[arg-type]
                yield "clause", self._put(node, self._text(node.value) + bound)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) and node.id in self.variables:
            if (node.lineno, node.col_offset) in self.receivers:
                return
            # Two wrong variables a place, not always the same ones: enough, and not a quadratic number.
            avoided = (node.id, self.squaring.get((node.lineno, node.col_offset)))
            names = [name for name in self.variables if name not in avoided]
            for shift in range(min(2, len(names))):
                other = names[(node.lineno + node.col_offset + shift) % len(names)]
                yield "variable", self._put(node, other)

    def _constant(self, node: ast.Constant) -> Iterator[tuple[str, str]]:
        value = node.value
        if isinstance(value, bool):
            yield "constant", self._put(node, str(not value))
        elif isinstance(value, int):
            yield "constant", self._put(node, str(value + 1))
            yield "constant", self._put(node, str(value - 1))
        elif isinstance(value, str):
            if len(value) > 1:
                yield "constant", self._put(node, f'"{value[1:]}"')
                yield "constant", self._put(node, f'"{value[:-1]}"')
            elif value.isalpha():
                for shift in (1, -1):
                    yield "constant", self._put(node, f'"{chr(ord(value) + shift)}"')
            else:
                yield "constant", self._put(node, '" "')

    def _call(self, node: ast.Call) -> Iterator[tuple[str, str]]:
        if isinstance(node.func, ast.Name):
            if node.func.id in _CALLS:
                yield "call", self._put(node.func, _CALLS[node.func.id])
            if node.func.id in _TRANSPARENT and len(node.args) == 1:
                yield "drop_call", self._put(node, self._text(node.args[0]))
            if node.func.id in ("min", "max", "range"):
                for argument in node.args if len(node.args) > 1 else ():
                    rest = ", ".join(self._text(other) for other in node.args if other is not argument)
                    if node.func.id == "range":
                        yield "drop_operand", self._put(node, f"range({rest})")
                    else:
                        yield "drop_operand", self._put(node, rest if len(node.args) == 2 else self._text(node))
        elif isinstance(node.func, ast.Attribute):
            receiver = self._text(node.func.value)
            if node.func.attr in _CALLS:
                yield "call", self._put(node, f"{receiver}.{_CALLS[node.func.attr]}()")
            if node.func.attr in ("upper", "lower", "replace"):
                yield "drop_call", self._put(node, receiver)

    def _clauses(self, node: ast.GeneratorExp | ast.ListComp) -> Iterator[tuple[str, str]]:
        for clause in node.generators:
            for condition in clause.ifs:
                line = self.lines[condition.lineno - 1]
                assert condition.end_col_offset is not None
                start = line.rindex(" if ", 0, condition.col_offset)
                yield "clause", self._replace(condition.lineno, start, condition.end_col_offset, "")
                yield "negate", self._put(condition, f"not ({self._text(condition)})")
            if not isinstance(node.elt, ast.Name) and isinstance(clause.target, ast.Name):
                yield "clause", self._put(node.elt, clause.target.id)

    def _statements(self, node: ast.AST) -> Iterator[tuple[str, str]]:
        for block in (getattr(node, "body", None), getattr(node, "orelse", None)):
            if not isinstance(block, list):
                continue
            for statement in block:
                yield from self._statement(statement, block)

    def _statement(self, statement: ast.stmt, block: list[ast.stmt]) -> Iterator[tuple[str, str]]:
        start, end = self._block([statement])
        pad = " " * statement.col_offset
        yield "drop_statement", self._with_lines(start, end, [pad + "pass"] if len(block) == 1 else [])
        if isinstance(statement, (ast.Break, ast.Continue)):
            other = "continue" if isinstance(statement, ast.Break) else "break"
            yield "exit", self._with_lines(start, end, [pad + other])
        if isinstance(statement, (ast.For, ast.While)):
            last_start, last_end = self._block(statement.body[-1:])
            moved = [line.removeprefix(INDENT) for line in self.lines[last_start:last_end]]
            if len(statement.body) > 1:
                yield "move", self._with_lines(last_start, last_end, moved)
        if isinstance(statement, ast.If):
            then_start, then_end = self._block(statement.body)
            unwrapped = [line.removeprefix(INDENT) for line in self.lines[then_start:then_end]]
            yield "unwrap", self._with_lines(start, end, unwrapped)
            if statement.orelse:
                else_start, else_end = self._block(statement.orelse)
                then_lines, else_lines = self.lines[then_start:then_end], self.lines[else_start:else_end]
                yield (
                    "swap_branches",
                    self._with_lines(start, end, [self.lines[start], *else_lines, pad + "else:", *then_lines]),
                )
                yield "unwrap", self._with_lines(start, end, self.lines[start:then_end])
                yield "unwrap", self._with_lines(then_end, end, [line.removeprefix(INDENT) for line in else_lines])
            elif len(statement.body) > 1:
                # The condition guards only what comes before its last statement.
                last_start, last_end = self._block(statement.body[-1:])
                moved = [line.removeprefix(INDENT) for line in self.lines[last_start:last_end]]
                yield "move", self._with_lines(last_start, last_end, moved)

    def _moves(self) -> Iterator[tuple[str, str]]:
        """The final return into the loop; what stands right before a loop into it."""
        statements = self.function.body
        for before, loop in itertools.pairwise(statements):
            if not isinstance(loop, (ast.For, ast.While)):
                continue
            if isinstance(before, ast.Assign):
                line = self.lines[before.lineno - 1]
                header = self.lines[loop.lineno - 1]
                yield "move", self._with_lines(before.lineno - 1, loop.lineno, [header, INDENT + line])
        if len(statements) > 1 and isinstance(statements[-2], (ast.For, ast.While)):
            start, end = self._block(statements[-1:])
            moved = [INDENT + line for line in self.lines[start:end]]
            yield "move", self._with_lines(start, end, moved)
