"""What the structure-aware loss needs to know about a batch, beside the model's own inputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

import torch

from structloss.trees import TreeBatch

PROMPT, REASONING, CODE = 0, 1, 2
IGNORE_INDEX = -100


class TeacherTopk(NamedTuple):
    """A teacher's stored distributions, not shifted: position t holds the one that predicted token t.

    ids: (B, T, k) int64 class ids, negative = padding; a position with only padding has no teacher.
    logprobs: (B, T, k) floating point log-probabilities at temperature 1.
    """

    ids: torch.Tensor
    logprobs: torch.Tensor


@dataclass
class StructureBatch:
    """Labels, regions and trees of one batch.

    Args:
        labels: (B, T) int64, not shifted (position t holds token t, as in transformers); -100 = ignored.
        regions: (B, T) int64: 0 prompt or padding, 1 reasoning, 2 code.
        token_node: (B, T) int64: innermost teacher node of token t, -1 = none.
        teacher: trees of the teacher's code, B of them, with token spans.
        student: trees of the student's own code, or None.
        student_hidden_index: (B, N) int64: position of the hidden state just before the first token of the
            student's node, -1 = the node has no token. Wanted with `student`.
        group_id: (B,) int64: rows of one problem share an id, -1 = in no group. Needs `passed`.
        passed: (B,) bool: whether the row's code passes its problem's tests.
        topk: stored teacher log-probabilities for L_kd, or None.
        confidence: (B,) float32: how far the student's tree can be trusted, 1 - its share of broken bytes;
            0 where the student's code is not known and the teacher's tree stands in. Default: from `student`.
        gap: (B, M) float32 in [0, 1]: how far each teacher node is missing from the student's own code, where that was
            computed beforehand (`VisitCache`); see `structural_gap`. Before `confidence`, which it wants.

    Raises:
        ValueError: shapes or types that do not fit together, regions, nodes or spans that cannot be (looked at on a CPU
            only), `student` without `student_hidden_index`,
            `group_id` without `passed`.
    """

    labels: torch.Tensor
    regions: torch.Tensor
    token_node: torch.Tensor
    teacher: TreeBatch
    student: TreeBatch | None = None
    student_hidden_index: torch.Tensor | None = None
    group_id: torch.Tensor | None = None
    passed: torch.Tensor | None = None
    topk: TeacherTopk | None = None
    confidence: torch.Tensor | None = None
    gap: torch.Tensor | None = None

    def __post_init__(self) -> None:
        if self.labels.dim() != 2:
            raise ValueError(f"labels: wants shape (batch, tokens), got {tuple(self.labels.shape)}")
        for name in ("regions", "token_node"):
            shape = tuple(getattr(self, name).shape)
            if shape != tuple(self.labels.shape):
                raise ValueError(f"{name}: wants the shape of labels {tuple(self.labels.shape)}, got {shape}")
        rows = self.labels.shape[0]
        for name in ("teacher", "student"):
            trees = getattr(self, name)
            if not isinstance(trees, TreeBatch) and (trees is not None or name == "teacher"):
                raise ValueError(
                    f"{name}: wants a TreeBatch, got {type(trees).__name__}; see TreeBatch.from_trees(trees, tokens)"
                )
            if trees is not None and len(trees) != rows:
                raise ValueError(f"{name}: wants one tree a row ({rows}), got {len(trees)}")
        if (self.student is None) != (self.student_hidden_index is None):
            raise ValueError("student and student_hidden_index: give both or neither")
        if self.student is not None and self.student_hidden_index is not None:
            wanted, got = tuple(self.student.label.shape), tuple(self.student_hidden_index.shape)
            if wanted != got:
                raise ValueError(f"student_hidden_index: wants the student's (B, N) = {wanted}, got {got}")
            if self.confidence is None:
                self.confidence = 1.0 - self.student.error_share
        if self.topk is not None:
            self.topk = TeacherTopk(*self.topk)
            for name, tensor in self.topk._asdict().items():
                if tensor.dim() != 3 or tensor.shape[:2] != self.labels.shape or tensor.shape != self.topk.ids.shape:
                    raise ValueError(
                        f"topk.{name}: wants shape (B, T, k) with (B, T) = {tuple(self.labels.shape)} as the labels, "
                        f"got {tuple(tensor.shape)}"
                    )
        if self.gap is not None:
            if self.gap.shape != self.teacher.label.shape:
                wanted, got = tuple(self.teacher.label.shape), tuple(self.gap.shape)
                raise ValueError(f"gap: wants one a node of the teacher's trees {wanted}, got {got}")
            if self.confidence is None:
                raise ValueError("gap: wants confidence beside it")
        if (self.group_id is None) != (self.passed is None):
            raise ValueError("group_id and passed: the pathway loss needs both, give both or neither")
        for name in ("group_id", "passed", "confidence"):
            value = getattr(self, name)
            if value is not None and tuple(value.shape) != (rows,):
                raise ValueError(f"{name}: wants shape ({rows},), got {tuple(value.shape)}")
        if self.passed is not None and self.passed.dtype != torch.bool:
            raise ValueError(f"passed: wants torch.bool, got {self.passed.dtype}; passed.bool() of 0 and 1")
        for name in ("labels", "regions", "token_node"):
            if getattr(self, name).is_floating_point():
                raise ValueError(f"{name}: wants integers, got {getattr(self, name).dtype}; use .long()")
        if self.labels.device.type == "cpu" and self.labels.numel():  # elsewhere looking at values waits for the device
            self._check_values()

    def _check_values(self) -> None:
        low, high = (int(value) for value in self.regions.aminmax())
        if low < PROMPT or high > CODE:
            raise ValueError(f"regions: wants 0 (prompt), 1 (reasoning) and 2 (code), got values in [{low}, {high}]")
        highest, nodes = self.token_node.amax(1), self.teacher.sizes
        if (highest >= nodes).any():
            row = int((highest >= nodes).nonzero()[0])
            raise ValueError(
                f"token_node: row {row} names node {int(highest[row])}, but its teacher tree has {int(nodes[row])} "
                "nodes; innermost_nodes(tree, token_bytes) makes it"
            )
        if (highest >= 0).any() and (self.teacher.token_span < 0).all():
            raise ValueError(
                "teacher: no node has a token span, though token_node ties tokens to nodes; make the trees with "
                "tokens, TreeBatch.from_trees(trees, tokens=[example.token_bytes, ...])"
            )

    def to(self, device: torch.device | str, non_blocking: bool = False) -> StructureBatch:
        """The same batch on another device."""
        return self._map(lambda part: part.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> StructureBatch:
        """Pinned copies, for asynchronous transfers (torch's DataLoader calls this)."""
        return self._map(lambda part: part.pin_memory())

    def _map(self, change: Callable[[Any], Any]) -> StructureBatch:
        changed: dict[str, Any] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, TeacherTopk):
                changed[field.name] = TeacherTopk(*map(change, value))
            elif isinstance(value, (torch.Tensor, TreeBatch)):
                changed[field.name] = change(value)
        return replace(self, **changed)

    def __len__(self) -> int:
        return self.labels.shape[0]


def first_token_hidden_index(trees: TreeBatch) -> torch.Tensor:
    """(B, N) position of the hidden state just before each node's first token, -1 where there is none."""
    first = trees.token_span[..., 0]
    return torch.where(first > 0, first - 1, torch.full_like(first, -1))
