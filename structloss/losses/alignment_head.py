"""L_align, "CTC for trees": the likelihood of the teacher's tree under node kinds read from the hidden states."""

from __future__ import annotations

import torch
from torch import nn

from structloss.tree_alignment import tree_nll
from structloss.trees import TreeBatch


class AlignmentHead(nn.Module):
    """Scores node kinds and a blank from the hidden state before a node's first token.

    With ``p(. | h_i)`` the softmax over kinds and blank at student node i,

        delete_i = -log p(blank | h_i)
        insert_j = -log rho
        C_ij     = -log p(kind_j | h_i) - log(1 - rho)
        loss     = sum over rows of TED_soft(temperature 1) / sum of teacher nodes

    so ``exp(-TED_soft)`` is the probability of the teacher's tree, summed over all mappings that keep order and
    ancestry: never above 1, hence the loss is never negative. The gradient to the logits of node i is
    ``p(. | h_i) - [sum_j P_ij onehot(kind_j) + (1 - sum_j P_ij) onehot(blank)]``.

    Where the student's tree is the teacher's own (no code of the student is known yet) the term is a
    classification of node kinds. Nodes without tokens (a signature that stands in the prompt, say) have no
    hidden state; they are left out of both trees.

    Args:
        hidden_size: D.
        num_kinds: size of the kind vocabulary, see `structloss.trees.num_kinds`.
        rho: probability of an insertion, in (0, 1).

    Shapes: hidden (B, T, D); student_hidden_index (B, N); the value is a float32 scalar.
    """

    def __init__(self, hidden_size: int, num_kinds: int, *, rho: float = 0.1) -> None:
        super().__init__()
        if not 0.0 < rho < 1.0:
            raise ValueError(f"rho: wants a probability in (0, 1), got {rho}")
        self.rho = rho
        self.num_kinds = num_kinds
        self.kinds = nn.Linear(hidden_size, num_kinds + 1)
        self.kind_version: str | None = None

    def get_extra_state(self) -> dict[str, str | None]:
        """Beside the weights: what the kinds that they score mean."""
        return {"kind_version": self.kind_version}

    def set_extra_state(self, state: dict[str, str | None]) -> None:
        self.kind_version = state["kind_version"]

    def negative_log_likelihood(
        self, logits: torch.Tensor, has_state: torch.Tensor, student: TreeBatch, teacher: TreeBatch
    ) -> torch.Tensor:
        """(B,) float32 from logits (B, N, kinds + 1), blank last; nodes without a state or tokens take no part."""
        blank = logits.new_full((self.num_kinds + 1,), -torch.inf, dtype=torch.float32)
        blank[-1] = 0.0
        log_probs = torch.where(has_state[..., None], logits.float().log_softmax(-1), blank)
        kinds = torch.where(teacher.token_span[..., 0] >= 0, teacher.kind, -1)
        return tree_nll(log_probs, student, teacher, kinds=kinds, rho=self.rho)

    def forward(
        self,
        hidden: torch.Tensor,
        student: TreeBatch,
        student_hidden_index: torch.Tensor,
        teacher: TreeBatch,
        rows: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The loss; `rows` (B,) bool chooses the rows that count.

        Raises:
            ValueError: hidden states of another width, kinds of another vocabulary than in the first call (a checkpoint
                remembers it), or kinds (looked at on a CPU only) that the head does not have.
        """
        if teacher.kind_version is not None and teacher.kind_version != self.kind_version:
            if self.kind_version is not None:
                raise ValueError(
                    f"teacher: its kinds are of version {teacher.kind_version!r}, but the alignment head has "
                    f"{self.kind_version!r}; train a new head, or use the release that trained this one"
                )
            self.kind_version = teacher.kind_version
        if hidden.shape[2] != self.kinds.in_features:
            raise ValueError(
                f"hidden: has width {hidden.shape[2]}, but the alignment head was made for {self.kinds.in_features}; "
                "hidden_size wants the model's config.hidden_size"
            )
        on_cpu = teacher.kind.device.type == "cpu"  # elsewhere looking at values waits for the device
        if on_cpu and teacher.kind.numel() and (highest := int(teacher.kind.max())) >= self.num_kinds:
            raise ValueError(
                f"teacher: has kind {highest}, but the alignment head was made for {self.num_kinds} kinds; num_kinds "
                "wants structloss.trees.num_kinds(language) of the trees' language"
            )
        has_state = student_hidden_index >= 0
        index = student_hidden_index.clamp_min(0).unsqueeze(2).expand(-1, -1, hidden.shape[2])
        logits = self.kinds(hidden.gather(1, index).to(self.kinds.weight.dtype))
        distance = self.negative_log_likelihood(logits, has_state, student, teacher)
        nodes = (teacher.token_span[..., 0] >= 0).sum(1)
        if rows is not None:
            distance, nodes = torch.where(rows, distance, 0.0), torch.where(rows, nodes, 0)
        return distance.sum() / nodes.sum().clamp_min(1)
