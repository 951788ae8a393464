"""TSED: tree edit distance between two syntax trees, as a similarity."""

from __future__ import annotations

from structloss.tree_alignment import tree_edit_distance
from structloss.trees import TreeBatch, parse


def tsed(candidate: str, reference: str, *, language: str = "python") -> float:
    """Tree similarity of edit distance, in [0, 1].

        tsed = max(0, 1 - TED / max(n, m))

    TED is the exact tree edit distance (unit costs) between the syntax trees of :func:`structloss.parse`, n
    and m are their sizes. Two nodes are equal if their labels are: kind and, for identifiers, literals and
    operators, the text. Identifiers are compared by their text here, so renaming costs one for each
    occurrence. The parser is
    tolerant: a broken candidate is compared by what can be recognised. Two empty programs score 1.0.

    Raises ValueError for an unknown language.

    Source: Song et al. 2024, "Revisiting Code Similarity Evaluation with Abstract Syntax Tree Edit Distance"
    (arXiv:2404.08817), which also weights the operations; the weights are 1 here.
    """
    trees = [parse(source, language) for source in (candidate, reference)]
    largest = max(tree.size for tree in trees)
    if not largest:
        return 1.0
    distance = tree_edit_distance(TreeBatch.from_trees(trees[:1]), TreeBatch.from_trees(trees[1:]))
    return max(0.0, 1.0 - float(distance[0]) / largest)
