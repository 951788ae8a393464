"""Syntax trees: source text to post-order arrays, batches of them, and their tokens."""

from .batch import TreeBatch
from .cache import TreeCache
from .kinds import kind_names, num_kinds
from .options import TreeOptions
from .syntax_tree import SyntaxFault, Tree, parse
from .token_bytes import TokenBytes, byte_level_alphabet, vocabulary_bytes
from .token_spans import innermost_nodes, node_token_spans, token_byte_spans

__all__ = [
    "SyntaxFault",
    "TokenBytes",
    "Tree",
    "TreeBatch",
    "TreeCache",
    "TreeOptions",
    "byte_level_alphabet",
    "innermost_nodes",
    "kind_names",
    "node_token_spans",
    "num_kinds",
    "parse",
    "token_byte_spans",
    "vocabulary_bytes",
]
