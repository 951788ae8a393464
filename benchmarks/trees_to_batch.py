"""Sources to a TreeBatch on one core: `python -m benchmarks.trees_to_batch [--out FILE]`.

Functions of the standard library with about the same number of nodes, as they stand in their files, comments and all.
The floor is tree-sitter's parse alone: what is above it is ours. No time is printed where the two walks disagree.
"""

from __future__ import annotations

import argparse
import ast
import json
import sys
import sysconfig
import tempfile
import textwrap
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import tree_sitter

from benchmarks.timing import Variant, WrongResult, environment, interleave, spread
from structloss.trees import TreeBatch, TreeCache, parse
from structloss.trees.walk import InstalledGrammar, compiled_walk, installed_grammar, python_walk


def functions(size: int) -> Iterator[str]:
    """Functions of `size` nodes within 10 percent, at most one a file, so that they are of many hands."""
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).rglob("*.py")):
        if {"test", "tests", "site-packages"}.isdisjoint(path.parts):
            found = (source for source in _functions_of(path) if abs(parse(source).size - size) <= size // 10)
            yield from islice(found, 1)


def _functions_of(path: Path) -> Iterator[str]:
    try:
        text = path.read_text(encoding="utf-8")
        module = ast.parse(text)
    except (SyntaxError, ValueError):
        return
    lines = text.splitlines(keepends=True)
    for node in ast.walk(module):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield textwrap.dedent("".join(lines[node.lineno - 1 : node.end_lineno]))


def check(sources: list[bytes], grammar: InstalledGrammar) -> None:
    parser = tree_sitter.Parser(grammar.language)
    for source in sources:
        root = parser.parse(source).root_node
        both = zip(compiled_walk(root, source, grammar), python_walk(root, source, grammar), strict=True)
        if not all(np.array_equal(compiled, plain) for compiled, plain in both):
            raise WrongResult(f"the walks disagree on {source[:60]!r}...")


def calls(sources: list[str], grammar: InstalledGrammar, folder: Path) -> list[Variant]:
    parser = tree_sitter.Parser(grammar.language)
    raw = [source.encode() for source in sources]
    trees = [parse(source) for source in sources]

    def parse_only() -> None:
        for source in raw:
            parser.parse(source)

    def parse_and_compiled_walk() -> None:
        for source in raw:
            compiled_walk(parser.parse(source).root_node, source, grammar)

    def parse_and_python_walk() -> None:
        for source in raw:
            python_walk(parser.parse(source).root_node, source, grammar)

    cache = TreeCache(folder / "stored")
    fresh = iter(range(1 << 30))

    def from_cache() -> None:
        for source in sources:
            cache.parse(source)

    def parse_trees() -> None:
        for source in sources:
            parse(source)

    def into_cache() -> None:
        empty = TreeCache(folder / str(next(fresh)))
        for source in sources:
            empty.parse(source)

    from_cache()

    def nothing_seen_before() -> None:
        for labels in (*grammar.text_labels, grammar.prefix_labels):
            labels.clear()
        if grammar.walker is not None:
            grammar.walker.forget_labels()
        TreeBatch.from_sources(sources)

    variants = [Variant("parse alone (floor)", parse_only, 1)]
    if grammar.walker is not None:
        variants.append(Variant("parse, compiled walk", parse_and_compiled_walk, 1))
    return [
        *variants,
        Variant("parse, Python walk", parse_and_python_walk, 1),
        Variant("from_trees alone", lambda: TreeBatch.from_trees(trees), 1),
        Variant("from_sources", lambda: TreeBatch.from_sources(sources), 1),
        Variant("from_sources, every text hashed anew", nothing_seen_before, 1),
        Variant("structloss.parse", parse_trees, 1),
        Variant("TreeCache, every tree stored", from_cache, 1),
        Variant("TreeCache, no tree stored", into_cache, 1),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--trees", type=int, default=64, help="sources a batch")
    parser.add_argument("--size", type=int, default=200, help="nodes a tree, within 10 percent")
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--out", type=Path, help="JSON file")
    options = parser.parse_args()

    sources = list(islice(functions(options.size), options.trees))
    if len(sources) < options.trees:
        print(f"only {len(sources)} functions of {options.size} nodes in the standard library", file=sys.stderr)
        return 1
    grammar = installed_grammar("python")
    if grammar.walker is None:
        print("without the compiled extension: from_sources uses the Python walk")
    else:
        check([source.encode() for source in sources], grammar)
    with tempfile.TemporaryDirectory() as folder:
        variants = calls(sources, grammar, Path(folder))
        for variant in variants:
            variant.call()
        times = interleave(variants, options.rounds, lambda: None)
    rows = [{"call": v.name, **spread(seconds, 1)} for v, seconds in zip(variants, times, strict=True)]

    batch = TreeBatch.from_sources(sources)
    nodes, size = batch.sizes.sum().item(), sum(map(len, sources))
    print(f"{len(sources)} sources, {nodes / len(sources):.0f} nodes and {size / len(sources):.0f} characters each")
    for row in rows:
        quartiles = f"[{row['p25_ms']:.2f}, {row['p75_ms']:.2f}]"
        against = row["median_ms"] / rows[0]["median_ms"]
        print(f"{row['call']:37}{row['median_ms']:7.2f} ms  {quartiles:16}{against:6.2f} x floor")
    if options.out:
        about = environment(("numpy", "tree-sitter", "tree-sitter-python"))
        about |= {"trees": len(sources), "nodes": nodes, "characters": size, "compiled": grammar.walker is not None}
        options.out.write_text(json.dumps({**about, "rows": rows}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
