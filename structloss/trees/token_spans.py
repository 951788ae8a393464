"""Tokens of a language model on the nodes of a syntax tree, over byte positions.

A token belongs to the place of its *last byte that is not white space*: byte-level tokenizers glue a leading
space (`` =``) or a line end (``:\\n``) to a token, and plain overlap would then spill into the neighbour.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .syntax_tree import Tree

_SPACES = np.array([ord(c) for c in " \t\n\r\f\v"], dtype=np.uint32)


def token_byte_spans(
    text: str, offsets: Sequence[tuple[int, int]] | np.ndarray, *, region: tuple[int, int] | None = None
) -> np.ndarray:
    """Byte spans of tokens, from the code point offsets that fast tokenizers report.

    text: what was tokenised. offsets: (T, 2) code point intervals [start, end) in `text`.
    region: code point interval of `text` that is the tree's source; the spans are then relative to its first
    byte, and tokens that end outside it have none. Default: the whole text.

    Returns int64 (T, 2): [start, end) in bytes of the UTF-8 text, cut so that neither end is white space
    (space, tab, line ends, form feed). (-1, -1) for tokens that are empty (special tokens) or nothing but
    white space. Tokens that share one non-ASCII character share its span.

    Raises ValueError for offsets of another shape, outside the text, or with end < start.

    >>> token_byte_spans("é = 1", [(0, 1), (1, 3), (3, 5)]).tolist()
    [[0, 2], [3, 4], [5, 6]]
    """
    intervals = np.asarray(offsets, dtype=np.int64)
    if intervals.size == 0:
        return np.empty((0, 2), dtype=np.int64)
    if intervals.ndim != 2 or intervals.shape[1] != 2:
        raise ValueError(f"offsets: got shape {tuple(intervals.shape)}, wants (tokens, 2)")
    starts, ends = intervals[:, 0], intervals[:, 1]
    wrong = np.flatnonzero((starts < 0) | (ends < starts) | (ends > len(text)))
    if len(wrong):
        t = int(wrong[0])
        raise ValueError(
            f"offsets: token {t} has [{starts[t]}, {ends[t]}), wants 0 <= start <= end <= {len(text)} code points"
        )
    low, high = (0, len(text)) if region is None else region
    if not 0 <= low <= high <= len(text):
        raise ValueError(f"region: got [{low}, {high}), wants 0 <= start <= end <= {len(text)} code points")

    points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")
    widths = 1 + (points >= 0x80).astype(np.int64) + (points >= 0x800) + (points >= 0x10000)
    byte_at = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(widths)])
    solid = np.flatnonzero(~np.isin(points, _SPACES))
    if not len(solid):
        return np.full(intervals.shape, -1, dtype=np.int64)
    # First solid code point at or after start, last one before end.
    after = np.searchsorted(solid, starts, side="left")
    before = np.searchsorted(solid, ends, side="left") - 1
    first = solid[np.minimum(after, len(solid) - 1)]
    last = solid[np.maximum(before, 0)]
    there = (after <= before) & (last >= low) & (last < high)
    first = np.maximum(first, low)
    spans = np.stack([byte_at[first], byte_at[last + 1]], axis=1) - byte_at[low]
    spans[~there] = -1
    return spans


def node_token_spans(tree: Tree, token_spans: np.ndarray) -> np.ndarray:
    """Token positions [lo, hi) of each node of `tree`, int64 (n, 2); (-1, -1) for a node without tokens.

    token_spans: int64 (T, 2) as from :func:`token_byte_spans`, in the order of the text.
    """
    return token_spans_of(tree.byte_span, token_spans)


def token_spans_of(byte_span: np.ndarray, token_spans: np.ndarray) -> np.ndarray:
    """:func:`node_token_spans` of nodes with the byte spans `byte_span`, int64 (n, 2)."""
    positions, last_byte = _token_positions(token_spans)
    low = np.searchsorted(last_byte, byte_span[:, 0], side="left")
    high = np.searchsorted(last_byte, byte_span[:, 1], side="left")
    spans = np.full(byte_span.shape, -1, dtype=np.int64)
    held = np.flatnonzero(low < high)
    spans[held, 0] = positions[low[held]]
    spans[held, 1] = positions[high[held] - 1] + 1
    return spans


def innermost_nodes(tree: Tree, token_spans: np.ndarray) -> np.ndarray:
    """Post-order index of the innermost node that holds each token's last solid byte: int64 (T,).

    token_spans: int64 (T, 2) as from :func:`token_byte_spans`. A token of dropped text (a comment, a bracket)
    belongs to the node around it; a token without a span, or outside the root, to none (-1).
    """
    positions, last_byte = _token_positions(token_spans)
    owner = np.full(len(token_spans), -1, dtype=np.int64)
    if not tree.size or not len(positions):
        return owner
    starts, ends = tree.byte_span[:, 0], tree.byte_span[:, 1]
    # Pre-order by start, an ancestor before its first child. The last node to start before a byte lies in the
    # innermost holder's subtree, so climbing from it until the span reaches the byte finds the holder.
    order = np.lexsort((-np.arange(tree.size), starts))
    at = np.searchsorted(starts[order], last_byte, side="right") - 1
    node = np.where(at >= 0, order[at], -1)
    while True:
        short = np.flatnonzero((node >= 0) & (ends[node] <= last_byte))
        if not len(short):
            break
        node[short] = tree.parent[node[short]]
    owner[positions] = node
    return owner


def _token_positions(token_spans: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Positions of the tokens that have a span, and the byte that each belongs to."""
    spans = np.asarray(token_spans)
    if spans.ndim != 2 or spans.shape[1] != 2 or spans.dtype.kind not in "iu":
        raise ValueError(f"token_spans: got {spans.dtype} {tuple(spans.shape)}, wants integers of shape (tokens, 2)")
    ends = spans[:, 1].astype(np.int64)
    positions = np.flatnonzero((ends > 0) & (spans[:, 0] >= 0))
    last_byte = ends[positions] - 1
    back = np.flatnonzero(np.diff(last_byte) < 0)
    if len(back):
        raise ValueError(
            f"token_spans: token {positions[back[0] + 1]} ends before token {positions[back[0]]}, "
            "wants tokens in the order of the text"
        )
    return positions, last_byte
