"""Parsed trees on disk, found by the content of their source."""

from __future__ import annotations

import json
import os
import tempfile
import warnings
from dataclasses import replace
from functools import cache
from hashlib import blake2b
from importlib import metadata
from pathlib import Path

import numpy as np

from .kinds import language_rules
from .options import DEFAULT, TreeOptions
from .syntax_tree import Tree, as_bytes, parse
from .walk import installed_grammar

_FORMAT = b"structloss tree 1\n"
_DIGEST = 16


class TreeCache:
    """A folder of parsed trees.

    An entry is a file, named by a hash of the source, the language, the options, the version of its kinds, the releases
    of tree-sitter and of the grammar, and the version of the format: what an upgrade reads otherwise never meets an old
    tree. Files are written beside their place and moved there, so several processes may share the folder, and one that
    is killed leaves no half of an entry under its name. A damaged entry is parsed again, with a warning. Nothing is
    ever removed: delete the folder.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)

    def parse(self, source: str | bytes, language: str = "python", options: TreeOptions = DEFAULT) -> Tree:
        """:func:`structloss.parse`, from the folder where it has the tree; arguments and errors are the same."""
        raw = as_bytes(source)
        version = language_rules(language).version
        about = [language, version, _releases(language), repr(options)]
        name = blake2b(b"\0".join([_FORMAT, *map(str.encode, about), raw]), digest_size=16).hexdigest()
        path = self.folder / name[:2] / name
        try:
            entry = path.read_bytes()
        except FileNotFoundError:
            entry = None
        if entry is not None:
            try:
                return replace(_unpack(entry, language, version, len(raw)), options=options)
            except ValueError as error:
                warnings.warn(f"TreeCache: {path}: {error}; parsed again", RuntimeWarning, stacklevel=2)
        tree = parse(raw, language, options)
        _write(path, _pack(tree))
        return tree


@cache
def _releases(language: str) -> str:
    """Of what reads `language`; raises ImportError where its grammar is not installed."""
    installed_grammar(language)
    return " ".join(metadata.version(package) for package in ("tree-sitter", f"tree-sitter-{language}"))


def _pack(tree: Tree) -> bytes:
    about = json.dumps([tree.size, tree.error_bytes, tree.faults]).encode()
    columns = (tree.label, tree.kind, tree.parent, tree.leftmost, tree.byte_span)
    body = b"\n".join([about, b"".join(column.astype("<i8").tobytes() for column in columns)])
    return _FORMAT + blake2b(body, digest_size=_DIGEST).digest() + body


def _unpack(entry: bytes, language: str, version: str, source_bytes: int) -> Tree:
    start = len(_FORMAT) + _DIGEST
    body = entry[start:]
    if entry[: len(_FORMAT)] != _FORMAT or blake2b(body, digest_size=_DIGEST).digest() != entry[len(_FORMAT) : start]:
        raise ValueError("the entry is damaged")
    about, _, columns = body.partition(b"\n")
    size, error_bytes, faults = json.loads(about)
    # A copy in memory that may be written to, as parse gives it.
    table = np.frombuffer(bytearray(columns), dtype="<i8").astype(np.int64, copy=False).reshape(6, size)
    return Tree(
        label=table[0],
        kind=table[1],
        parent=table[2],
        leftmost=table[3],
        byte_span=table[4:].reshape(size, 2),
        language=language,
        kind_version=version,
        source_bytes=source_bytes,
        error_bytes=error_bytes,
        faults=tuple(map(tuple, faults)),
    )


def _write(path: Path, entry: bytes) -> None:
    path.parent.mkdir(exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix="unfinished-")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(entry)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
