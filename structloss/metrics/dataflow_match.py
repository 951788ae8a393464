"""Data-flow match: which def-use edges two programs share, whatever their variables are called."""

from __future__ import annotations

import ast
from collections import Counter

from .def_use import DefUse, Sink
from .python_source import clipped_f1, parse_candidate, parse_reference

# (kind of a definition, kinds of the definitions that it is made from), or the role of a use.
Signature = tuple[str, tuple[str, ...]]
Edge = tuple[Signature, Signature]


def dataflow_match(candidate: str, reference: str, *, language: str = "python") -> float | None:
    """Clipped F1 between the def-use edges of two Python programs, in [0, 1].

        E(p) = multiset of (signature of the definition, signature of what its use flows to)
        dataflow_match = 2 |E(candidate) & E(reference)| / (|E(candidate)| + |E(reference)|)

    There is one edge for each use of a variable, each definition that can reach it, and each sink of the
    statement
    that it stands in: the definitions that the statement makes, or else its role ("return", "yield", "test",
    "expression", "raise", "store", "with", "except", "delete").

    Signatures hold no names, and no numbers in order of appearance either, which one early variable more
    would shift for all the later ones. A definition is known by what it is (assign, for, parameter with its
    position, with, except, import, function, class, match, store, and the place in an unpacked tuple) and by
    the set of kinds of the definitions that it is made from. ``x += 1`` is ``x = x + 1``; ``x[i] = v`` makes
    a new x from x, i and v; ``a, b = b, a`` is taken apart. Operators, constants and calls play no part: see
    :func:`syntax_match`.

    None means that the measure does not exist for this reference; it is not 0 and not 1. Average over the
    others, and say how many. A candidate that does not parse scores 0.0.

    Raises ValueError where `reference` does not parse or for any `language` but Python, whose scopes are the only ones
    known here, TypeError for anything but str.

    Source: the data-flow component of CodeBLEU (Ren et al. 2020, arXiv:2009.10297), which numbers the
    variables.

    >>> dataflow_match("def f(p):\\n  q = p\\n  return q", "def f(a):\\n  b = a\\n  return b")
    1.0
    >>> dataflow_match("x = 1", "print(1)") is None
    True
    """
    if language != "python":
        raise ValueError(f"language: got {language!r}, but data flow is followed in 'python' only (tsed takes all)")
    reference_module = parse_reference(reference)
    candidate_module = parse_candidate(candidate)
    try:
        wanted = data_flow_edges(reference_module)
    except RecursionError:
        raise ValueError("reference: got statements nested too deeply to analyse") from None
    if not wanted:
        return None
    if candidate_module is None:
        return 0.0
    try:
        return clipped_f1(data_flow_edges(candidate_module), wanted)
    except RecursionError:
        # As deep as code that the parser itself refuses.
        return 0.0


def data_flow_edges(module: ast.Module) -> Counter[Edge]:
    """The multiset of edges of a program; a role has the signature (role, ())."""
    graph = DefUse(module)
    made_from: list[set[str]] = [set() for _ in graph.kinds]
    for definition, sink in graph.edges:
        if isinstance(sink, int):
            made_from[sink].add(graph.kinds[definition])

    def signature(sink: Sink) -> Signature:
        return (sink, ()) if isinstance(sink, str) else (graph.kinds[sink], tuple(sorted(made_from[sink])))

    return Counter((signature(definition), signature(sink)) for definition, sink in graph.edges)
