"""Pairs of real functions to align: the inputs of the tree studies.

The functions come from the standard library of the running interpreter. An *unrelated* pair is two functions from
different files; a *near-identical* pair is a function and itself after three small edits of its source. Nothing is
drawn by a clock: the same interpreter gives the same pairs.
"""

from __future__ import annotations

import ast
import hashlib
import itertools
import random
import sysconfig
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from structloss.tree_alignment.reference import exact_cells
from structloss.trees import Tree, TreeBatch, parse

SETS = ("unrelated", "near-identical")
_SKIPPED = {"test", "tests", "site-packages", "idlelib", "lib2to3"}
_EDITS_PER_PAIR = 3
_ATTEMPTS = 8  # a deleted statement may take a function out of its size
_SMALL_STATEMENT = 12  # nodes of Python's own syntax tree
_FEW_USES = 5


@dataclass(frozen=True)
class PairSet:
    """B pairs of trees with about `size` nodes, those first whose cell counts are nearest to the mean."""

    name: str
    size: int
    trees: list[tuple[Tree, Tree]]
    cells: list[int]  # of the dynamic program, on the cheaper side

    def __len__(self) -> int:
        return len(self.trees)

    def batches(self) -> tuple[TreeBatch, TreeBatch]:
        first, second = zip(*self.trees, strict=True)
        return TreeBatch.from_trees(first), TreeBatch.from_trees(second)


def pair_sets(sizes: Sequence[int], count: int, names: Sequence[str] = SETS) -> list[PairSet]:
    """`count` pairs for every size and every name, sizes within 10 percent.

    Raises ValueError where the standard library has too few functions of a size.
    """
    trees: dict[int, list[Tree]] = {size: [] for size in sizes}
    changed: dict[int, list[tuple[Tree, Tree]]] = {size: [] for size in sizes}
    for functions in _files():
        missing = {size for size in sizes if len(trees[size]) <= count or len(changed[size]) < count}
        if not missing:
            break
        for source, tree in functions:
            size = next((size for size in missing if _near(tree, size)), None)
            if size is None:
                continue
            missing.remove(size)  # at most one function a file
            trees[size].append(tree)
            twin = _changed(source, tree, size, len(trees[size]))
            if twin is not None:
                changed[size].append((tree, twin))
    sets = []
    for size in sizes:
        for name in names:
            pairs = changed[size] if name == "near-identical" else _unrelated(trees[size])
            sets.append(_typical_first(name, size, list(itertools.islice(pairs, count))))
            if len(sets[-1]) < count:
                raise ValueError(f"the standard library has {len(sets[-1])} {name} pairs of {size} nodes, not {count}")
    return sets


def _typical_first(name: str, size: int, trees: list[tuple[Tree, Tree]]) -> PairSet:
    cells = [exact_cells(a.leftmost.tolist(), b.leftmost.tolist()) for a, b in trees]
    order = sorted(range(len(trees)), key=lambda k: abs(len(trees) * cells[k] - sum(cells)))
    return PairSet(name, size, [trees[k] for k in order], [cells[k] for k in order])


def _files() -> Iterator[Iterator[tuple[str, Tree]]]:
    """The functions of every file of the standard library, the files in an order that mixes the packages."""
    root = Path(sysconfig.get_paths()["stdlib"])
    files = [path.relative_to(root) for path in root.rglob("*.py")]
    files = [path for path in files if not _SKIPPED.intersection(path.parts)]
    for path in sorted(files, key=lambda path: hashlib.blake2b(path.as_posix().encode()).digest()):
        yield _functions_of(root / path)


def _functions_of(path: Path) -> Iterator[tuple[str, Tree]]:
    """Every function in a file: its source, normalised by Python's own unparser, and its tree."""
    try:
        module = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):
        return
    for node in ast.walk(module):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            source = ast.unparse(node)
            yield source, parse(source)


def _near(tree: Tree, size: int) -> bool:
    return abs(tree.size - size) <= size // 10


def _unrelated(trees: Sequence[Tree]) -> Iterator[tuple[Tree, Tree]]:
    for step in range(1, len(trees)):
        for i in range(len(trees) - step):
            yield trees[i], trees[i + step]


def _changed(source: str, tree: Tree, size: int, number: int) -> Tree | None:
    """The function after small edits, where that changes its tree and keeps its size within the 10 percent."""
    for attempt in range(_ATTEMPTS):
        changed = parse(edited(source, number + len(_EDITS) * attempt))
        same = tree.size == changed.size and (tree.label == changed.label).all()
        if not same and _near(changed, size):
            return changed
    return None


def edited(source: str, number: int) -> str:
    """The function after three edits: `number` says with which of the five kinds to begin, and where to make them.

    >>> print(edited("def f(x):\\n    y = x + 1\\n    return y", 1))
    def f(x):
        y = x - 2
    """
    function = ast.parse(source)
    rng = random.Random(number)
    made = 0
    for edit in itertools.islice(itertools.cycle(_EDITS), number, number + len(_EDITS)):
        sites = edit(function)
        if sites and made < _EDITS_PER_PAIR:
            rng.choice(sites)()
            made += 1
    return ast.unparse(function)


def _rename(function: ast.AST) -> list[Callable[[], object]]:
    """An identifier of few uses, everywhere that it is read, written or a parameter."""
    names: dict[str, list[tuple[ast.AST, str]]] = {}
    for node in ast.walk(function):
        if isinstance(node, ast.Name):
            names.setdefault(node.id, []).append((node, "id"))
        elif isinstance(node, ast.arg):
            names.setdefault(node.arg, []).append((node, "arg"))

    def change(name: str) -> None:
        for node, field in names[name]:
            setattr(node, field, f"{name}_2")

    rare = [name for name in sorted(names) if len(names[name]) <= _FEW_USES]
    return [partial(change, name) for name in rare]


_OTHER_OPERATOR: dict[type[ast.AST], type[ast.AST]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.FloorDiv, ast.Mod: ast.Mult, ast.Lt: ast.LtE, ast.LtE: ast.Lt,
    ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq, ast.In: ast.NotIn, ast.NotIn: ast.In,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.And: ast.Or, ast.Or: ast.And,
}  # fmt: skip


def _operator(function: ast.AST) -> list[Callable[[], object]]:
    def change(node: ast.AST) -> None:
        if isinstance(node, ast.Compare):
            node.ops[0] = _OTHER_OPERATOR[type(node.ops[0])]()
        else:
            node.op = _OTHER_OPERATOR[type(node.op)]()

    def first(node: ast.AST) -> ast.AST | None:
        return node.ops[0] if isinstance(node, ast.Compare) else getattr(node, "op", None)

    nodes = [node for node in ast.walk(function) if type(first(node)) in _OTHER_OPERATOR]
    return [partial(change, node) for node in nodes]


def _literal(function: ast.AST) -> list[Callable[[], object]]:
    def change(node: ast.Constant) -> None:
        value = node.value
        node.value = not value if isinstance(value, bool) else value + 1 if isinstance(value, int) else f"{value}s"

    nodes = [n for n in ast.walk(function) if isinstance(n, ast.Constant) and isinstance(n.value, bool | int | str)]
    return [partial(change, node) for node in nodes]


def _blocks(function: ast.AST) -> list[list[ast.stmt]]:
    """The statement lists of two or more."""
    lists = [getattr(node, field, None) for node in ast.walk(function) for field in ("body", "orelse", "finalbody")]
    return [block for block in lists if isinstance(block, list) and len(block) > 1]


def _small(statement: ast.stmt) -> bool:
    return len(list(ast.walk(statement))) <= _SMALL_STATEMENT


def _delete(function: ast.AST) -> list[Callable[[], object]]:
    sites = [(block, k) for block in _blocks(function) for k in range(len(block)) if _small(block[k])]
    return [partial(block.pop, k) for block, k in sites]


def _swap(function: ast.AST) -> list[Callable[[], object]]:
    def change(block: list[ast.stmt], k: int) -> None:
        block[k], block[k + 1] = block[k + 1], block[k]

    sites = [(block, k) for block in _blocks(function) for k in range(len(block) - 1) if _small(block[k])]
    return [partial(change, block, k) for block, k in sites]


_EDITS = (_rename, _operator, _literal, _delete, _swap)
