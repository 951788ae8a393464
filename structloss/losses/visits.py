"""The student's own code: what it would have written at the sample's previous visit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from structloss.losses.batch import CODE, StructureBatch, first_token_hidden_index
from structloss.losses.collator import Example
from structloss.trees import TokenBytes, TreeBatch, parse


class VisitCache:
    """Remembers, per sample id, the tokens that the student preferred at its last visit (teacher-forced argmax).

    The tokens are read as code, parsed by the tolerant parser and set beside the teacher's tree at the next
    visit. A sample never seen gets the teacher's tree with confidence 0, so its gaps are 0. Holds one small
    integer array a sample; `state_dict` makes a resumed run continue with the same gaps.

    Args:
        tokenizer: the student's fast tokenizer.
        language: of the code.
    """

    def __init__(self, tokenizer: Any, language: str = "python") -> None:
        self.token_bytes = TokenBytes.from_tokenizer(tokenizer)
        self.language = language
        self._argmax: dict[str, np.ndarray] = {}

    def __len__(self) -> int:
        return len(self._argmax)

    def update(self, examples: Sequence[Example], argmax: torch.Tensor) -> None:
        """Store the preferred tokens of each row's code.

        Args:
            examples: the B examples of the batch.
            argmax: (B, T) int64: at position t the token that the student preferred there, -1 = not known.
        """
        if len(examples) != argmax.shape[0]:
            raise ValueError(f"examples: wants one a row of argmax ({argmax.shape[0]}), got {len(examples)}")
        preferred = argmax.cpu().numpy().astype(np.int32)
        for row, example in enumerate(examples):
            code = np.flatnonzero(example.regions == CODE)
            self._argmax[example.id] = preferred[row, code]

    def attach(self, batch: StructureBatch, examples: Sequence[Example]) -> StructureBatch:
        """The batch with `student`, `student_hidden_index` and `confidence` filled in.

        Args:
            examples: the B examples that the batch was collated from.

        Raises:
            ValueError: an id that stood for another sample at its last visit.
        """
        trees, tokens, known = [], [], []
        for example in examples:
            code = np.flatnonzero(example.regions == CODE)
            stored = self._argmax.get(example.id)
            if stored is not None and len(stored) != len(code):
                raise ValueError(
                    f"examples: {example.id!r} had {len(stored)} code tokens at its last visit and has "
                    f"{len(code)} now; an id must always mean the same sample"
                )
            known.append(stored is not None)
            if stored is None:
                trees.append(example.tree)
                tokens.append(example.token_bytes)
            else:
                source, spans = self.token_bytes.read(stored, example.code_prefix.encode())
                placed = np.full_like(example.token_bytes, -1)
                placed[code] = spans
                trees.append(parse(source, self.language))
                tokens.append(placed)
        student = TreeBatch.from_trees(trees, tokens=tokens)
        confidence = torch.where(torch.tensor(known), 1.0 - student.error_share, 0.0)
        device = batch.labels.device
        return replace(
            batch,
            student=student.to(device),
            student_hidden_index=first_token_hidden_index(student).to(device),
            confidence=confidence.to(device),
        )

    def state_dict(self) -> dict[str, np.ndarray]:
        """Arrays by sample id (for `numpy.savez`)."""
        return dict(self._argmax)

    def load_state_dict(self, state: dict[str, np.ndarray]) -> None:
        self._argmax = {sample: np.asarray(ids, dtype=np.int32) for sample, ids in state.items()}
