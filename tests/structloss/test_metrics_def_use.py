"""Reaching definitions against what really happens: random programs are run, and each read is recorded."""

from __future__ import annotations

import ast
import random
from contextlib import suppress

import pytest

from structloss.metrics.def_use import DefUse

Position = tuple[int, int]
NAMES = ("a", "b", "c")


def random_program(generator: random.Random, with_exceptions: bool) -> str:
    lines = [f"{name} = 0" for name in NAMES]

    def simple() -> str:
        target, left, right = (generator.choice(NAMES) for _ in range(3))
        kind = generator.random()
        if kind < 0.6:
            return f"{target} = {left} + {right}"
        return f"{target} += {left}" if kind < 0.8 else f"print({left})"

    def block(depth: int, in_loop: bool) -> None:
        pad = " " * depth
        for _ in range(generator.randint(1, 3)):
            kind = generator.random() if depth < 3 else 0.0
            if kind < 0.45:
                lines.append(pad + simple())
            elif kind < 0.6:
                lines.append(pad + "if coin():")
                block(depth + 1, in_loop)
                if generator.random() < 0.5:
                    lines.append(pad + "elif coin():")
                    block(depth + 1, in_loop)
                if generator.random() < 0.5:
                    lines.append(pad + "else:")
                    block(depth + 1, in_loop)
            elif kind < 0.85:
                name = generator.choice(NAMES)
                head = f"for {name} in some():" if generator.random() < 0.5 else "while coin():"
                lines.append(pad + head)
                block(depth + 1, True)
                if generator.random() < 0.3:
                    lines.append(pad + "else:")
                    block(depth + 1, in_loop)
            elif with_exceptions:
                lines.append(pad + "try:")
                block(depth + 1, in_loop)
                lines.append(pad + "except E:")
                block(depth + 1, in_loop)
                if generator.random() < 0.4:
                    lines.append(pad + "finally:")
                    lines.append(pad + " " + simple())
            else:
                lines.append(pad + "pass")
        if in_loop and generator.random() < 0.4:
            lines.append(pad + generator.choice(["break", "continue"]))

    block(0, False)
    lines.append(f"print({', '.join(NAMES)})")
    return "\n".join(lines)


class Record(ast.NodeTransformer):
    """Report every read and every definition of a variable to `_read` and `_wrote`, with its position."""

    def visit_Name(self, node: ast.Name) -> ast.AST:
        if isinstance(node.ctx, ast.Store) or node.id not in NAMES:
            return node
        return self.call("_read", node, node)

    def visit_Assign(self, node: ast.Assign) -> list[ast.stmt]:
        node.value = self.visit(node.value)
        return [node, self.wrote(node.targets[0])]

    def visit_AugAssign(self, node: ast.AugAssign) -> list[ast.stmt]:
        node.value = self.visit(node.value)
        read = ast.copy_location(ast.Name(node.target.id, ast.Load()), node.target)
        value = ast.BinOp(self.call("_read", node.target, read), node.op, node.value)
        return [ast.Assign([node.target], value), self.wrote(node.target)]

    def visit_For(self, node: ast.For) -> ast.AST:
        self.generic_visit(node)
        node.body.insert(0, self.wrote(node.target))
        return node

    def wrote(self, target: ast.expr) -> ast.stmt:
        return ast.Expr(self.call("_wrote", target, ast.Constant(0)))

    def call(self, function: str, name: ast.expr, value: ast.expr) -> ast.expr:
        position = ast.Constant((name.lineno, name.col_offset))
        return ast.Call(ast.Name(function, ast.Load()), [ast.Constant(name.id), position, value], [])


def static_pairs(source: str) -> set[tuple[Position, Position]]:
    graph = DefUse(ast.parse(source))
    site_of = {number: site for (site, _), number in graph._definition_at.items()}
    return {
        ((site_of[definition].lineno, site_of[definition].col_offset), (use.lineno, use.col_offset))
        for definition, use, _ in graph._flows
    }


class Trace:
    """Runs of one program, the way chosen by a coin."""

    def __init__(self, source: str, seed: int, raises: float) -> None:
        tree = ast.fix_missing_locations(Record().visit(ast.parse(source)))
        self.code = compile(tree, "program", "exec")
        self.generator = random.Random(seed)
        self.raises = raises
        self.pairs: set[tuple[Position, Position]] = set()

    def run(self) -> None:
        last: dict[str, Position] = {}
        steps = 0

        class E(Exception):
            pass

        def tick() -> None:
            nonlocal steps
            steps += 1
            if steps > 400:
                raise StopIteration

        def read(name: str, position: Position, value: int) -> int:
            self.pairs.add((last[name], position))
            return 0

        def wrote(name: str, position: Position, _: int) -> None:
            last[name] = position
            tick()
            if steps > 3 and self.generator.random() < self.raises:
                raise E

        def coin() -> bool:
            tick()
            return self.generator.random() < 0.5

        def some() -> list[int]:
            tick()
            return [0] * self.generator.randint(0, 2)

        names = {"_read": read, "_wrote": wrote, "coin": coin, "some": some, "E": E, "print": lambda *_: None}
        with suppress(E, StopIteration):
            exec(self.code, names)


@pytest.mark.parametrize("seed", range(40))
def test_exactly_the_pairs_that_happen(seed: int) -> None:
    source = random_program(random.Random(seed), with_exceptions=False)
    expected = static_pairs(source)
    trace = Trace(source, seed, raises=0.0)
    for _ in range(3000):
        trace.run()
        assert trace.pairs <= expected, source
        if trace.pairs == expected:
            break
    assert trace.pairs == expected, source


@pytest.mark.parametrize("seed", range(40))
def test_no_pair_is_missed_when_exceptions_fly(seed: int) -> None:
    source = random_program(random.Random(1000 + seed), with_exceptions=True)
    expected = static_pairs(source)
    trace = Trace(source, seed, raises=0.1)
    for _ in range(100):
        trace.run()
    assert trace.pairs <= expected, source
