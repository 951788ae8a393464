"""Syntax match: which sub-trees two programs share."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator
from hashlib import blake2b

from structloss.trees import Tree, parse

from .python_source import clipped_f1, parse_candidate, parse_reference


def syntax_match(candidate: str, reference: str, *, language: str = "python") -> float:
    """Clipped F1 between the sub-trees of two programs, in [0, 1].

        S(p) = multiset of the sub-trees of p that have at least two nodes
        syntax_match = 2 |S(candidate) & S(reference)| / (|S(candidate)| + |S(reference)|)

    ``&`` is the multiset intersection: a sub-tree that the reference holds three times and the candidate once
    counts once. A sub-tree is equal to another one if everything below is equal: node types and their order,
    operators, constants with their type, attribute, method, keyword and import names, and names that the
    program does not bind itself (``len``). Names that it binds (variables, parameters, functions, classes,
    import aliases) are all one placeholder, so renaming changes nothing; which variable stands where is the
    business of :func:`dataflow_match`. Layout, comments and docstrings do not count.

    A candidate that does not parse scores 0.0. Two empty programs score 1.0.

    Python is read by Python's own parser. Any other language is read by :func:`structloss.parse`, and that says less:
    names count by their text, so renaming changes the score, and broken code is compared by what can be recognised.
    The values of two languages are not comparable.

    Raises ValueError where a Python `reference` does not parse or for an unknown language, TypeError for anything but
    str.

    Source: the syntax component of CodeBLEU (Ren et al. 2020, arXiv:2009.10297), which is a recall without
    clipping and without leaves.

    >>> syntax_match("def f(a): return a + 1", "def g(b): return b + 1")
    1.0
    >>> syntax_match("x = 1", "x = 2")
    0.0
    """
    if language != "python":
        for name, source in (("candidate", candidate), ("reference", reference)):
            if not isinstance(source, str):
                raise TypeError(f"{name}: got {type(source).__name__}, wants str")
        return clipped_f1(
            _labelled_subtrees(parse(candidate, language)), _labelled_subtrees(parse(reference, language))
        )
    wanted = _subtrees(parse_reference(reference))
    module = parse_candidate(candidate)
    return 0.0 if module is None else clipped_f1(_subtrees(module), wanted)


def _labelled_subtrees(tree: Tree) -> Counter[bytes]:
    """Digests of all sub-trees of `tree` with at least two nodes: its label and, in order, those of its children."""
    counts: Counter[bytes] = Counter()
    below: list[list[bytes]] = [[] for _ in range(tree.size)]
    for label, parent, children in zip(tree.label.tolist(), tree.parent.tolist(), below, strict=True):
        digest = blake2b(label.to_bytes(8, "little") + b"".join(children), digest_size=16).digest()
        if children:
            counts[digest] += 1
        if parent >= 0:
            below[parent].append(digest)
    return counts


def _subtrees(module: ast.Module) -> Counter[bytes]:
    """Digests of all sub-trees with at least two nodes, bottom-up without recursion."""
    bound = bound_names(module)
    methods = {
        id(statement)
        for node in ast.walk(module)
        if isinstance(node, ast.ClassDef)
        for statement in node.body
        if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    counts: Counter[bytes] = Counter()
    digests: dict[int, bytes] = {}
    stack: list[tuple[ast.AST, bool]] = [(module, False)]
    while stack:
        node, children_done = stack.pop()
        fields = list(_fields(node))
        below = [child for _, value in fields for child in _nodes(value)]
        if not children_done:
            stack.append((node, True))
            stack += [(child, False) for child in below]
            continue
        parts = [type(node).__name__.encode()]
        for name, value in fields:
            parts.append(b"." + name.encode())
            items = value if isinstance(value, list) else [value]
            for item in items:
                if isinstance(item, ast.AST):
                    parts.append(digests[id(item)])
                else:
                    parts.append(_text(node, name, item, bound, id(node) in methods))
        # Lengths in front, so that no text can pass for structure.
        digest = blake2b(b"".join(b"%d:%b" % (len(part), part) for part in parts), digest_size=16).digest()
        digests[id(node)] = digest
        if below:
            counts[digest] += 1
    return counts


# Fields that repeat what the tree says already (`ctx`) or that no program sees.
_SKIPPED = frozenset(["ctx", "type_comment", "type_ignores", "kind", "simple"])


def _fields(node: ast.AST) -> Iterator[tuple[str, object]]:
    """The fields that carry meaning.

    Empty ones are skipped, so that a field added by a newer Python changes nothing.
    """
    for name, value in ast.iter_fields(node):
        if name in _SKIPPED or (value is None and not isinstance(node, ast.Constant | ast.MatchSingleton)):
            continue
        if isinstance(value, list):
            if name == "body" and _has_docstring(node):
                value = value[1:]
            if not value:
                continue
        yield name, value


def _has_docstring(node: ast.AST) -> bool:
    if not isinstance(node, ast.Module | ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return False
    match node.body:
        case [ast.Expr(value=ast.Constant(value=str())), *_]:
            return True
    return False


def _nodes(value: object) -> list[ast.AST]:
    """The syntax nodes of a field."""
    items = value if isinstance(value, list) else [value]
    return [item for item in items if isinstance(item, ast.AST)]


def _text(node: ast.AST, field: str, value: object, bound: set[str], is_method: bool) -> bytes:
    """A scalar field as bytes; names that the program binds become one placeholder."""
    if isinstance(value, str) and not isinstance(node, ast.Constant):
        renamed = field in _NAME_FIELDS.get(type(node).__name__, ()) and value in bound and not is_method
        return b"$" if renamed else b"'" + value.encode("utf-8", "surrogatepass")
    if isinstance(value, int) and not isinstance(value, bool):
        # Not repr: that refuses integers of more than 4300 digits.
        return b"int" + format(value, "x").encode()
    return repr(value).encode("utf-8", "surrogatepass")


# Where the syntax tree holds names of variables, by node type.
_NAME_FIELDS: dict[str, tuple[str, ...]] = {
    "Name": ("id",),
    "arg": ("arg",),
    "FunctionDef": ("name",),
    "AsyncFunctionDef": ("name",),
    "ClassDef": ("name",),
    "ExceptHandler": ("name",),
    "alias": ("asname",),
    "Global": ("names",),
    "Nonlocal": ("names",),
    "MatchAs": ("name",),
    "MatchStar": ("name",),
    "MatchMapping": ("rest",),
}


def bound_names(module: ast.Module) -> set[str]:
    """Every name that the program binds, in any scope."""
    names: set[str] = set()
    for node in ast.walk(module):
        if isinstance(node, ast.Name):
            if not isinstance(node.ctx, ast.Load):
                names.add(node.id)
        elif isinstance(node, ast.alias):
            names.add(node.asname or node.name.partition(".")[0])
        else:
            for field in _NAME_FIELDS.get(type(node).__name__, ()):
                value = getattr(node, field)
                names.update([value] if isinstance(value, str) else value or ())
    return names
