"""From chosen operations to function bodies in several equivalent structures, and to the reasoning in front of them."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from training.kata.operations import Fold, Operation

INDENT = "    "

Setting = tuple[Operation, tuple[int | str, ...]]  # an operation with its parameter values


def fill(template: str, values: Sequence[int | str], **names: str) -> str:
    """Puts parameters (a, b) and names (x, y, e, g, r) into a template."""
    return template.format(**dict(zip("ab", values, strict=False)), **names)


def indented(lines: Iterable[str]) -> list[str]:
    return [INDENT + line for line in lines]


def body(lines: Iterable[str]) -> str:
    """The lines of a function body, indented once."""
    return "\n".join(indented(lines))


_OPPOSITE = {
    ast.Lt: ">=",
    ast.LtE: ">",
    ast.Gt: "<=",
    ast.GtE: "<",
    ast.Eq: "!=",
    ast.NotEq: "==",
    ast.In: "not in",
    ast.NotIn: "in",
}


def negated(condition: str) -> str:
    """The opposite condition, by its opposite comparison where there is a single one."""
    tree = ast.parse(condition, mode="eval").body
    if isinstance(tree, ast.Compare) and len(tree.ops) == 1:
        left = condition[: tree.left.end_col_offset]
        right = condition[tree.comparators[0].col_offset :]
        if left.count("(") == left.count(")"):
            return f"{left} {_OPPOSITE[type(tree.ops[0])]} {right}"
        return f"not {condition}"
    return f"not ({condition})" if isinstance(tree, (ast.BoolOp, ast.Compare)) else f"not {condition}"


@dataclass(frozen=True)
class Parts:
    """What a frame builds a function from. Missing steps are None; `a` and `b` are the frame's own parameters."""

    a: int | str
    b: int | str
    filter: Setting | None
    map: Setting | None
    reduce: Setting | None
    post: Setting | None

    def condition(self, x: str = "x", y: str = "y") -> str:
        """The filter's condition; empty without a filter."""
        return fill(self.filter[0].code, self.filter[1], x=x, y=y) if self.filter else ""

    def value(self, x: str = "x", y: str = "y") -> str:
        return fill(self.map[0].code, self.map[1], x=x, y=y) if self.map else x

    def factor(self, x: str = "x", y: str = "y") -> str:
        """The value, safe as an operand of a product or a method call."""
        value = self.value(x, y)
        return value if re.fullmatch(r"[\w\[\]]+", value) else f"({value})"

    @property
    def fold(self) -> Fold:
        assert self.reduce is not None
        assert self.reduce[0].fold is not None
        return self.reduce[0].fold

    @property
    def _reduce_values(self) -> tuple[int | str, ...]:
        return self.reduce[1] if self.reduce else ()

    def init(self) -> list[str]:
        return [fill(line, self._reduce_values) for line in self.fold.init]

    def update(self, x: str = "x", y: str = "y") -> list[str]:
        value = self.value(x, y)
        if " if " in value and any(re.search(r"\{e\} [^)]|[^(] \{e\}\)?:", u) for u in self.fold.update):
            value = f"({value})"
        return [fill(line, self._reduce_values, e=value) for line in self.fold.update]

    def guarded_update(self, x: str = "x", y: str = "y") -> list[str]:
        """The update, under the condition if there is a filter."""
        update, condition = self.update(x, y), self.condition(x, y)
        return [f"if {condition}:", *indented(update)] if condition else update

    def with_post(self, result: str) -> str:
        """The result after the finishing step."""
        if self.post is None:
            return result
        operator = self.post[0].code.startswith("{r} ") or self.post[0].code.startswith("{r}[")
        atomic = re.fullmatch(r"\w+|[\w.]*\(.*\)|\[.*\]|\"[^\"]*\"\.join\(.*\)|\(\[.*\]\)\[-1\]", result)
        return fill(self.post[0].code, self.post[1], r=result if atomic or not operator else f"({result})")

    def finish(self) -> str:
        """The last line."""
        if not self.fold.result:
            return fill(self.fold.otherwise, self._reduce_values)
        return "return " + self.with_post(fill(self.fold.result, self._reduce_values))

    def one_line(self, clauses: str, x: str = "x", y: str = "y", condition: str | None = None) -> str | None:
        """`return ...` with a comprehension over `clauses`; None where the reduction has no such form."""
        if not self.fold.one:
            return None
        value = self.value(x, y)
        if " if " in value and "{e} " in self.fold.element:
            value = f"({value})"
        element = fill(self.fold.element, self._reduce_values, e=value)
        condition = self.condition(x, y) if condition is None else condition
        generator = f"{element} {clauses}" + (f" if {condition}" if condition else "")
        return "return " + self.with_post(fill(self.fold.one, self._reduce_values, g=generator))


def nest(headers: Sequence[str], inner: Sequence[str]) -> list[str]:
    lines = list(inner)
    for header in reversed(headers):
        lines = [header, *indented(lines)]
    return lines


def loops(
    parts: Parts,
    headers: Sequence[str],
    x: str = "x",
    y: str = "y",
    before: Sequence[str] = (),
    after: Sequence[str] = (),
) -> str:
    """Nested loops around the guarded update; `before` precedes the loops, `after` ends the innermost body."""
    inner = [*parts.guarded_update(x, y), *after]
    return body([*parts.init(), *before, *nest(headers, inner), parts.finish()])


def skipping_loops(parts: Parts, headers: Sequence[str], x: str = "x", y: str = "y") -> str | None:
    """The same with `continue` where the filter says no."""
    condition = parts.condition(x, y)
    if not condition:
        return None
    inner = [f"if {negated(condition)}:", INDENT + "continue", *parts.update(x, y)]
    return body([*parts.init(), *nest(headers, inner), parts.finish()])


def one_liner(parts: Parts, headers: Sequence[str], x: str = "x", y: str = "y") -> str | None:
    line = parts.one_line(" ".join(header[:-1] for header in headers), x, y)
    return None if line is None else body([line])


def two_steps(parts: Parts, header: str, x: str = "x") -> str | None:
    """First the kept elements, then the reduction over them."""
    if parts.filter is None or parts.map is None:
        return None
    variable, iterable = header[len("for ") : -1].split(" in ")
    line = parts.one_line(f"for {variable} in kept", x, condition="")
    if line is None:
        return None
    return body([f"kept = [{variable} for {variable} in {iterable} if {parts.condition(x)}]", line])


_ACCUMULATORS = re.compile(r"(total|best|out|last|text|seen|count|counts|run|sign|plus|on) = (?!.* for )(.*)")


def explain(structure: str, code: str) -> str:
    """Step-by-step reasoning for a body: the structure's name, then each statement in words.

    The steps come in code order, but for the accumulators' first values: these are said after the loop, so that
    all the parameters come in the order of the sentence.
    """
    said = [f"{structure}."]
    starts: list[str] = []
    lines = [line.strip() for line in code.splitlines()]
    for position, line in enumerate(lines):
        top = code.splitlines()[position].startswith(INDENT + line[:1])
        if top and (match := _ACCUMULATORS.fullmatch(line)):
            starts.append(f"start {match[1]} at {match[2]}.")
            continue
        if top and position == len(lines) - 1:
            said += starts
        if line in ("continue", "break"):
            if not (position and lines[position - 1].startswith("if ")):
                said.append("skip." if line == "continue" else "stop.")
        elif line.startswith("if ") and lines[position + 1] in ("continue", "break"):
            said.append(f"{'skip' if lines[position + 1] == 'continue' else 'stop'} {line[:-1]}.")
        elif line.endswith(":"):
            said.append(line[:-1] + ",")
        else:
            said.append(_statement(line))
    return " ".join(said)


def _statement(line: str) -> str:
    if re.search(r"\bfor \w+(, \w+)? in ", line):
        return _comprehension(line)
    if match := re.fullmatch(r"(\w+) \+= (.*)", line):
        return f"add {match[2]} to {match[1]}."
    if match := re.fullmatch(r"(\w+) -= (.*)", line):
        return f"take {match[2]} from {match[1]}."
    if match := re.fullmatch(r"(\w+) \*= (.*)", line):
        return f"multiply {match[1]} by {match[2]}."
    if match := re.fullmatch(r"(\w+) = (.*)", line):
        return f"set {match[1]} to {match[2]}."
    if match := re.fullmatch(r"(\w+)\.(?:append|add)\((.*)\)", line):
        return f"add {match[2]} to {match[1]}."
    return f"{line}."


def _comprehension(line: str) -> str:
    tree = ast.parse(line.removeprefix("return ")).body[0]
    offset = len("return ") if line.startswith("return ") else 0
    for node in ast.walk(tree):
        if isinstance(node, (ast.GeneratorExp, ast.ListComp)):
            break
    else:
        return f"{line}."
    source = line[offset:]

    def text(part: ast.expr) -> str:
        return source[part.col_offset : part.end_col_offset]

    said = []
    for clause in node.generators:
        said.append(f"for {text(clause.target)} in {text(clause.iter)},")
        said += [f"if {text(condition)}," for condition in clause.ifs]
    before, after = source[: node.col_offset], source[node.end_col_offset :]
    rest = f"{before}(it){after}" if isinstance(node, ast.GeneratorExp) else f"{before}it{after}"
    last = _statement(line[:offset] + rest) if " for " not in rest else f"{line[:offset]}{rest}."
    return " ".join([*said, f"take {text(node.elt)}.", last])
