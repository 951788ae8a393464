"""Many trees in padded tensors: the form that tree alignment and the losses take."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from .kinds import language_rules
from .options import DEFAULT, TreeOptions
from .syntax_tree import Tree, parse, parse_padded
from .token_spans import token_spans_of

try:
    from structloss._C import table_columns as compiled_table_columns
except ImportError:  # the extension is optional at run time
    compiled_table_columns = None

_PAD = -1
_COLUMNS = ("label", "kind", "parent", "leftmost", "byte_span")


@dataclass(eq=False)
class TreeBatch:
    """B trees in post-order, padded to the largest size N with -1; ``sizes`` says what is real.

    label, kind, parent, leftmost: int64 (B, N), as in :class:`Tree`.
    byte_span: int64 (B, N, 2), [start, end) in bytes of the source, -1 where there is no source.
    token_span: int64 (B, N, 2), [lo, hi) in token positions, (-1, -1) for nodes without tokens.
    sizes: int64 (B,), number of nodes; 0 is an empty tree. error_share: float32 (B,) in [0, 1].
    table_columns: an upper bound, over the trees and both orientations, on the columns of all keyroot tables side by
    side: the sum over keyroots of (subtree size + 1). A Python number, so that a workspace on a device can be sized
    without waiting for the device; None where it is not known.
    kind_version: what the ids in `kind` mean, as :class:`Tree` has it; None where they are the caller's own.
    """

    label: torch.Tensor
    kind: torch.Tensor
    parent: torch.Tensor
    leftmost: torch.Tensor
    byte_span: torch.Tensor
    token_span: torch.Tensor
    sizes: torch.Tensor
    error_share: torch.Tensor
    table_columns: int | None = field(default=None, kw_only=True)
    kind_version: str | None = field(default=None, kw_only=True)

    def __len__(self) -> int:
        return len(self.sizes)

    def to(self, device: torch.device | str | int, *, non_blocking: bool = False) -> TreeBatch:
        """The batch on `device`."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def select(self, rows: torch.Tensor) -> TreeBatch:
        """The trees at the indices `rows` (int64, repeats allowed), with the same padding."""
        return self._map(lambda tensor: tensor[rows])

    def pin_memory(self) -> TreeBatch:
        """The batch in page-locked memory (a DataLoader with ``pin_memory=True`` calls this)."""
        return self._map(torch.Tensor.pin_memory)

    def _map(self, change: Callable[[torch.Tensor], torch.Tensor]) -> TreeBatch:
        changed: dict[str, Any] = {
            name: change(value) for name, value in vars(self).items() if isinstance(value, torch.Tensor)
        }
        return replace(self, **changed)

    @classmethod
    def from_sources(
        cls,
        sources: Sequence[str | bytes],
        language: str = "python",
        tokens: Sequence[np.ndarray | None] | None = None,
        options: TreeOptions = DEFAULT,
    ) -> TreeBatch:
        """Parse `sources` and batch them; see :func:`parse` and :meth:`from_trees`.

        >>> TreeBatch.from_sources(["f(x)", "a + b"]).sizes
        tensor([5, 5])
        """
        if isinstance(sources, str | bytes):
            raise TypeError("sources: got one string, wants a sequence of sources")
        sources = list(sources)
        walked = parse_padded(sources, language, options, _PAD) if sources else None
        if walked is None:
            return cls.from_trees([parse(source, language, options) for source in sources], tokens)
        _check_tokens(tokens, len(sources))
        columns, sizes, shares = walked
        batch = dict(zip(_COLUMNS, columns, strict=True))
        return _to_tensors(batch, sizes, shares, tokens, language_rules(language).version)

    @classmethod
    def from_trees(cls, trees: Sequence[Tree], tokens: Sequence[np.ndarray | None] | None = None) -> TreeBatch:
        """Batch parsed trees.

        tokens: for each tree the byte spans of its tokens, int64 (T, 2) as :func:`token_byte_spans` gives
        them ((-1, -1) for tokens that are not in the source), or None. They fill ``token_span``: the tokens
        whose last solid byte lies in the node.

        Raises ValueError for trees of several vocabularies or options or of a vocabulary that is not installed, or
        another number of `tokens` than of trees.
        """
        version = _one_version(trees)
        _check_tokens(tokens, len(trees))
        sizes = np.array([tree.size for tree in trees], dtype=np.int64)
        batch = _empty_batch(sizes)
        real = np.arange(batch["label"].shape[1]) < sizes[:, None]
        if trees:
            for name in _COLUMNS:
                batch[name][real] = np.concatenate([getattr(tree, name) for tree in trees])
        return _to_tensors(batch, sizes, [tree.error_share for tree in trees], tokens, kind_version=version)

    @classmethod
    def from_parents(
        cls,
        labels: Sequence[Sequence[int] | np.ndarray],
        parents: Sequence[Sequence[int] | np.ndarray],
        *,
        kinds: Sequence[Sequence[int] | np.ndarray] | None = None,
    ) -> TreeBatch:
        """Batch any ordered trees.

        labels: for each tree its integer labels in post-order. parents: for each tree the post-order index of
        each node's parent, -1 for the root, which is the last node. An empty tree is two empty lists.
        kinds: for each tree the kind ids; default 0 (``unknown``). Spans are -1.

        Raises ValueError, naming the tree and the node, where `parents` is no post-order of one tree: a
        parent that does not come after its child, a root that is not the last node, or a subtree that is not
        contiguous.

        >>> batch = TreeBatch.from_parents([[1, 2, 3]], [[2, 2, -1]])
        >>> batch.leftmost
        tensor([[0, 1, 0]])
        """
        for name, rows in (("parents", parents), ("kinds", kinds)):
            if rows is not None and len(rows) != len(labels):
                raise ValueError(f"{name}: got {len(rows)} trees, but labels has {len(labels)}")
        sizes = np.array([len(row) for row in labels], dtype=np.int64)
        batch = _empty_batch(sizes)
        for i, size in enumerate(sizes.tolist()):
            row = {
                "label": _integers("labels", i, labels[i], size),
                "parent": _integers("parents", i, parents[i], size),
            }
            row["kind"] = np.zeros(size, dtype=np.int64) if kinds is None else _integers("kinds", i, kinds[i], size)
            row["leftmost"] = np.array(_leftmost(row["parent"].tolist(), i), dtype=np.int64)
            for name, values in row.items():
                batch[name][i, :size] = values
        return _to_tensors(batch, sizes, [0.0] * len(sizes))


def _one_version(trees: Sequence[Tree]) -> str | None:
    vocabularies = sorted({(tree.language, tree.kind_version) for tree in trees})
    for language, version in vocabularies:
        installed = language_rules(language).version
        if version != installed:
            raise ValueError(
                f"trees: got kind version {version!r}, but this installation has {installed!r}, with other ids: "
                "parse the sources again, or load the trees with the release of structloss that stored them"
            )
    if len(vocabularies) > 1:
        versions = ", ".join(version for _, version in vocabularies)
        raise ValueError(f"trees: got kind versions {versions}, wants one: make a batch for each language")
    if len({tree.options for tree in trees}) > 1:
        raise ValueError(
            "trees: got trees of several TreeOptions, whose labels do not compare; parse all with the same"
        )
    return vocabularies[0][1] if vocabularies else None


def _check_tokens(tokens: Sequence[np.ndarray | None] | None, trees: int) -> None:
    if tokens is not None and len(tokens) != trees:
        raise ValueError(f"tokens: got {len(tokens)} arrays for {trees} trees, wants one each")


def _empty_batch(sizes: np.ndarray) -> dict[str, np.ndarray]:
    shape = (len(sizes), int(sizes.max(initial=0)))
    return {name: np.full((*shape, 2) if name == "byte_span" else shape, _PAD, dtype=np.int64) for name in _COLUMNS}


def _to_tensors(
    batch: dict[str, np.ndarray],
    sizes: np.ndarray,
    shares: Sequence[float],
    tokens: Sequence[np.ndarray | None] | None = None,
    kind_version: str | None = None,
) -> TreeBatch:
    token_span = np.full_like(batch["byte_span"], _PAD)
    for i, spans in enumerate(tokens or ()):
        if spans is not None:
            real = slice(int(sizes[i]))
            try:
                token_span[i, real] = token_spans_of(batch["byte_span"][i, real], np.asarray(spans))
            except ValueError as error:
                raise ValueError(f"tokens[{i}]: {error}") from None
    return TreeBatch(
        **{name: torch.from_numpy(array) for name, array in batch.items()},
        token_span=torch.from_numpy(token_span),
        sizes=torch.from_numpy(sizes),
        error_share=torch.tensor(shares, dtype=torch.float32),
        table_columns=_table_columns(batch["parent"], batch["leftmost"]),
        kind_version=kind_version,
    )


def _table_columns(parent: np.ndarray, leftmost: np.ndarray) -> int:
    """Of padded (B, N) arrays. Keyroots are all nodes but first children; in the mirrored tree, but last children."""
    if compiled_table_columns is not None:
        return compiled_table_columns(parent, leftmost)
    node = np.arange(parent.shape[1])
    columns = (node - leftmost + 2) * (leftmost >= 0)
    first_child = (parent >= 0) & (leftmost == np.take_along_axis(leftmost, np.maximum(parent, 0), axis=1))
    last_child = parent == node + 1
    as_given, mirrored = ((columns * ~child).sum(axis=1) for child in (first_child, last_child))
    return int(np.maximum(as_given, mirrored).max(initial=0))


def _integers(argument: str, tree: int, values: Sequence[int] | np.ndarray, size: int) -> np.ndarray:
    array = np.asarray(values)
    if array.size and array.dtype.kind not in "iu":
        raise ValueError(f"{argument}: tree {tree} has dtype {array.dtype}, wants integers")
    if array.shape != (size,):
        raise ValueError(f"{argument}: tree {tree} has shape {tuple(array.shape)}, but its labels say ({size},)")
    return array.astype(np.int64)


def _leftmost(parents: list[int], tree: int) -> list[int]:
    """Leftmost leaves; raises where `parents` is no post-order of one tree."""
    where = f"parents: tree {tree}"
    size = len(parents)
    for node, parent in enumerate(parents):
        last = node == size - 1
        if last and parent != -1:
            raise ValueError(f"{where}: the last node {node} has parent {parent}, but it is the root and wants -1")
        if not last and parent == -1:
            raise ValueError(f"{where}: node {node} is a second root beside the last node {size - 1}")
        if not last and not node < parent < size:
            raise ValueError(
                f"{where}: node {node} has parent {parent}, wants an index in ({node}, {size}): "
                "children come before their parent"
            )
    leftmost = list(range(size))
    waiting: list[int] = []
    for node in range(size):
        while waiting and parents[waiting[-1]] == node:
            leftmost[node] = leftmost[waiting.pop()]
        if waiting and parents[waiting[-1]] < node:
            stray = waiting[-1]
            raise ValueError(f"{where}: the subtree of node {parents[stray]} is not contiguous: it misses node {stray}")
        waiting.append(node)
    return leftmost
