"""The student's own code, read: token ids to a syntax tree and to how far each teacher node is missing from it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch

from structloss.losses.collator import Example
from structloss.trees import TokenBytes, Tree, TreeBatch, parse

# (student, teacher) -> (B, M) gaps on the CPU, before they are multiplied by the confidence.
GapFunction = Callable[[TreeBatch, TreeBatch], torch.Tensor]


class OwnCodeError(RuntimeError):
    """The student's own code of a sample could not be read; the message names the sample."""


class OwnCode(NamedTuple):
    """What one sample's own code says.

    ids: int32 (C,) the tokens. spans: int64 (C, 2) their byte spans in the tree's source, see `TokenBytes.read`.
    tree: of the code. gap: float32 (M,) of each node of the teacher's tree, or None where no gap was asked for.
    """

    ids: np.ndarray
    spans: np.ndarray
    tree: Tree
    gap: np.ndarray | None


class OwnCodeReader:
    """Reads token ids as code and, with `gap`, aligns it with the teacher's.

    A plain function with its settings: it has no state, so that threads and processes may share it.

    Args:
        token_bytes: of the student's tokenizer.
        language: of the code.
        gap: usually `structural_gap` with the loss's settings; None = parse only.
    """

    def __init__(self, token_bytes: TokenBytes, language: str, gap: GapFunction | None) -> None:
        self.token_bytes = token_bytes
        self.language = language
        self.gap = gap

    def __call__(self, examples: Sequence[Example], ids: Sequence[np.ndarray]) -> list[OwnCode]:
        """The own code of each example, whose code tokens are `ids`.

        Raises:
            OwnCodeError: what went wrong, with the id of the sample, from the original error.
        """
        try:
            return self._read(examples, ids)
        except Exception as error:
            if len(examples) == 1:
                raise OwnCodeError(
                    f"the student's own code of sample {examples[0].id!r} could not be read: "
                    f"{type(error).__name__}: {error}"
                ) from error
        # Which of them it was; reading cannot be too slow any more.
        return [self([example], [row])[0] for example, row in zip(examples, ids, strict=True)]

    def _read(self, examples: Sequence[Example], ids: Sequence[np.ndarray]) -> list[OwnCode]:
        trees, spans = [], []
        for example, row in zip(examples, ids, strict=True):
            source, token_spans = self.token_bytes.read(row, example.code_prefix.encode())
            trees.append(parse(source, self.language, example.tree.options))
            spans.append(token_spans)
        gaps: list[np.ndarray | None] = [None] * len(trees)
        if self.gap is not None and trees:
            teacher = TreeBatch.from_trees([example.tree for example in examples])
            values = self.gap(TreeBatch.from_trees(trees), teacher).numpy()
            gaps = [values[row, : example.tree.size].copy() for row, example in enumerate(examples)]
        return [OwnCode(*parts) for parts in zip(ids, spans, trees, gaps, strict=True)]
