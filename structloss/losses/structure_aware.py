"""The structure-aware loss: weighted tokens, tree alignment and solution pathways in one module."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn

from structloss.lm_head import linear_cross_entropy, linear_logprob, linear_topk_kl
from structloss.lm_head.topk_formula import KINDS, TAILS
from structloss.losses.alignment_head import AlignmentHead
from structloss.losses.batch import CODE, IGNORE_INDEX, StructureBatch, first_token_hidden_index
from structloss.losses.diagnostics import Diagnostics
from structloss.losses.pathway import distance_to_right, pathway_loss
from structloss.losses.schedule import Shape, ramp
from structloss.losses.token_weights import (
    check_costs,
    check_same_kinds,
    gather_node_values,
    region_weights,
    structural_factors,
    structural_gap,
)


@dataclass
class StructureLossOutput:
    """What a step needs and what a log wants.

    loss: scalar to differentiate.
    terms: each term's own value (unweighted, detached): "token", "align", "path", "kd", those that were computed.
    metrics: scalars to log: "token_accuracy", "code_accuracy"; with the gap "gap_mean", "gap_share" (nodes above 0.5),
        "weight_max" (the largest factor that it gave a token) and "student_confidence"; with L_path "path_groups".
        With `diagnostics` see `Diagnostics`.
    argmax: (B, T) int64 token that the student preferred at position t, -1 where it was not computed.
    """

    loss: torch.Tensor
    terms: dict[str, torch.Tensor]
    metrics: dict[str, torch.Tensor]
    argmax: torch.Tensor


class _Targets(NamedTuple):
    """Per position: what the hidden state there predicts (the batch's arrays, shifted left by one)."""

    target: torch.Tensor
    regions: torch.Tensor
    token_node: torch.Tensor
    imitated: torch.Tensor  # (B,) bool: rows whose code the student should write


def _shift_left(values: torch.Tensor, fill: int) -> torch.Tensor:
    return torch.cat([values[:, 1:], torch.full_like(values[:, :1], fill)], dim=1)


class StructureAwareLoss(nn.Module):
    """``L = L_token + a(progress) * lambda_align * L_align + lambda_path * L_path + lambda_kd * L_kd``.

    L_token is cross-entropy with the weights ``w_t = region weight * u_t / mean(u over the row's code)`` and
    ``u_t = 1 + a(progress) * alpha * gap[node(t)] * (1 - p_t)``, see `structural_gap`; L_align is `AlignmentHead`;
    L_path is `pathway_loss`; L_kd is the divergence from the teacher's stored top-k log-probabilities, token by token
    with the weights of L_token, in the same pass over the head. A term with weight 0 is not computed. Rows that failed
    their tests (`batch.passed` false) are never imitated: they count in L_path alone.

    A reconstruction of the idea of "Reasoning Distillation and Structural Alignment for Improved Code
    Generation" (arXiv 2510.17598), whose exact loss is not public.

    Args:
        reasoning_weight, code_weight: region weights of L_token; the prompt has weight 0.
        alpha: strength of the gap in the token weights; 0 = plain weighted cross-entropy.
        gap_temperature, same_kind, literal: see `structural_gap` and `relabel_costs`.
        lambda_align: weight of L_align; above 0 it wants `hidden_size` and `num_kinds`.
        lambda_path: weight of L_path.
        path_beta, path_margin, path_margin_per_distance: see `pathway_loss`.
        ramp_shape, ramp_end: a(progress), see `ramp`.
        rho: see `AlignmentHead`.
        lambda_kd: weight of L_kd; above 0 it wants `batch.topk`.
        kd_kind, kd_tail, kd_temperature, kd_teacher_vocab: `kind`, `tail`, `temperature` and `teacher_vocab` of
            `linear_topk_kl`. L_kd is multiplied by temperature^2, so that its gradient keeps its size.

    Raises:
        ValueError: numbers out of range, or an alignment term without the sizes of its head.
    """

    def __init__(
        self,
        *,
        reasoning_weight: float = 1.0,
        code_weight: float = 1.0,
        alpha: float = 1.0,
        gap_temperature: float = 0.25,
        same_kind: float = 0.5,
        literal: float | None = None,
        lambda_align: float = 0.0,
        lambda_path: float = 0.0,
        path_beta: float = 10.0,
        path_margin: float = 0.5,
        path_margin_per_distance: float = 2.0,
        ramp_shape: Shape = "linear",
        ramp_end: float = 0.5,
        hidden_size: int | None = None,
        num_kinds: int | None = None,
        rho: float = 0.1,
        lambda_kd: float = 0.0,
        kd_kind: str = "forward",
        kd_tail: str = "bucket",
        kd_temperature: float = 1.0,
        kd_teacher_vocab: int | None = None,
    ) -> None:
        super().__init__()
        weights = {
            "reasoning_weight": reasoning_weight,
            "code_weight": code_weight,
            "alpha": alpha,
            "lambda_align": lambda_align,
            "lambda_path": lambda_path,
            "lambda_kd": lambda_kd,
        }
        margins = {"path_margin": path_margin, "path_margin_per_distance": path_margin_per_distance}
        for name, value in (weights | margins).items():
            if not value >= 0.0:
                raise ValueError(f"{name}: wants a number >= 0, got {value}")
        positive = {"gap_temperature": gap_temperature, "path_beta": path_beta, "kd_temperature": kd_temperature}
        for name, value in positive.items():
            if not value > 0.0:
                raise ValueError(f"{name}: wants a number > 0, got {value}")
        check_costs(same_kind, literal)
        for name, choice, known in (("kd_kind", kd_kind, KINDS), ("kd_tail", kd_tail, TAILS)):
            if choice not in known:
                raise ValueError(f"{name}: wants one of {', '.join(map(repr, known))}, got {choice!r}")
        ramp(0.0, shape=ramp_shape, end=ramp_end)
        self.reasoning_weight = reasoning_weight
        self.code_weight = code_weight
        self.alpha = alpha
        self.gap_temperature = gap_temperature
        self.same_kind = same_kind
        self.literal = literal
        self.lambda_align = lambda_align
        self.lambda_path = lambda_path
        self.path_beta = path_beta
        self.path_margin = path_margin
        self.path_margin_per_distance = path_margin_per_distance
        self.ramp_shape: Shape = ramp_shape
        self.ramp_end = ramp_end
        self.lambda_kd = lambda_kd
        self.kd_kind = kd_kind
        self.kd_tail = kd_tail
        self.kd_temperature = kd_temperature
        self.kd_teacher_vocab = kd_teacher_vocab
        self.align: AlignmentHead | None = None
        if lambda_align > 0.0:
            if hidden_size is None or num_kinds is None:
                raise ValueError("lambda_align: the alignment head wants hidden_size and num_kinds as well")
            self.align = AlignmentHead(hidden_size, num_kinds, rho=rho)

    def forward(
        self,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        batch: StructureBatch,
        *,
        progress: float,
        linear_bias: torch.Tensor | None = None,
        softcap: float | None = None,
        logit_scale: float = 1.0,
        lora_a: torch.Tensor | None = None,
        lora_b: torch.Tensor | None = None,
        lora_scale: float = 1.0,
        denominator: torch.Tensor | float | None = None,
        diagnostics: bool = False,
    ) -> StructureLossOutput:
        """The loss of one batch.

        Args:
            hidden: (B, T, D) last hidden states, position t predicts token t + 1.
            weight: (V, D) LM head; linear_bias: (V,) or None.
            batch: labels, regions and trees.
            progress: share of training done, in [0, 1].
            softcap, logit_scale: as the model applies them to its logits.
            lora_a, lora_b, lora_scale: an adapter on the head. `HiddenAndHead.options` holds all six.
            denominator: divides the sums of L_token and L_kd; default the sum of region weights in this batch. Under
                gradient accumulation give the whole step's sum.
            diagnostics: also measure each term's gradient and time, see `Diagnostics`.

        Raises:
            ValueError: hidden states that do not fit the labels; a pathway term without `group_id`; L_kd without
                `topk`; student trees of another kind vocabulary.
        """
        self._check(hidden, batch, denominator)
        structural = ramp(progress, shape=self.ramp_shape, end=self.ramp_end)
        shifted = self._targets(batch)
        base = region_weights(shifted.regions, reasoning=self.reasoning_weight, code=self.code_weight)
        base = base * ((shifted.target != IGNORE_INDEX) & shifted.imitated.unsqueeze(1))
        # What no term needs reaches no GEMM.
        needed = (base > 0) | ((shifted.regions == CODE) & (self.lambda_path > 0.0))
        shifted = shifted._replace(target=torch.where(needed, shifted.target, IGNORE_INDEX))
        if denominator is None:
            denominator = base.sum().clamp_min(1e-6)

        terms: dict[str, torch.Tensor] = {}
        watch = Diagnostics(hidden, on=diagnostics)
        metrics = watch.metrics
        head: dict[str, Any] = {
            "linear_bias": linear_bias,
            "softcap": softcap,
            "logit_scale": logit_scale,
            "lora_a": lora_a,
            "lora_b": lora_b,
            "lora_scale": lora_scale,
        }
        gap = None
        if structural * self.alpha > 0.0 and batch.student is not None:
            with watch.time("gap"):
                gap = self._gap(batch, shifted, metrics)
        weights = base
        with watch.time("token"):
            states = watch.states("token")
            if gap is None and self.lambda_path == 0.0:
                result = self._head_pass(
                    states, weight, shifted, batch, head, token_weight=base, denominator=denominator, reduction="mean"
                )
                loss = result.loss
            else:
                # The weights depend on the student's probabilities: loss per token now, rows scaled in backward.
                result = self._head_pass(states, weight, shifted, batch, head, reduction="none")
                if gap is not None:
                    is_code = (shifted.regions == CODE) & (shifted.target != IGNORE_INDEX)
                    factors = structural_factors(gap, result.logprob.exp(), is_code, structural * self.alpha)
                    metrics["weight_max"] = factors.max()
                    weights = base * factors
                loss = (weights * result.loss).sum() / denominator
        terms["token"] = -(weights * result.logprob).sum() / denominator
        if self.lambda_kd > 0.0:
            terms["kd"] = self.kd_temperature**2 * (weights * result.kl).sum() / denominator

        if self.align is not None and structural > 0.0:
            with watch.time("align"):
                align_loss = self._align(watch.states("align"), batch, shifted.imitated)
            loss = loss + structural * self.lambda_align * align_loss
            terms["align"] = align_loss.detach()
        if self.lambda_path > 0.0:
            with watch.time("path"):
                logprob = -result.loss
                if self.lambda_kd > 0.0:  # the pass above has one gradient, that of the mixture
                    logprob = linear_logprob(watch.states("path"), weight, shifted.target, **head)
                path_loss, groups = self._pathway(batch, shifted, logprob)
            loss = loss + self.lambda_path * path_loss
            terms["path"] = path_loss.detach()
            metrics["path_groups"] = torch.tensor(float(groups))

        preferred = result.argmax
        right = (preferred == shifted.target) & (base > 0)
        is_code = (shifted.regions == CODE) & (base > 0)
        metrics["token_accuracy"] = right.sum() / (base > 0).sum().clamp_min(1)
        metrics["code_accuracy"] = (right & is_code).sum() / is_code.sum().clamp_min(1)
        first = torch.full_like(preferred[:, :1], -1)
        argmax = torch.cat([first, preferred[:, :-1]], dim=1)
        return StructureLossOutput(loss, terms, metrics, argmax)

    def _check(self, hidden: torch.Tensor, batch: StructureBatch, denominator: torch.Tensor | float | None) -> None:
        if not isinstance(batch, StructureBatch):
            raise ValueError(
                f"batch: wants a StructureBatch, got a {type(batch).__name__}; StructureCollator returns it as "
                "'structure'"
            )
        if hidden.dim() != 3 or hidden.shape[:2] != batch.labels.shape:
            raise ValueError(
                f"hidden: wants (B, T, D) with (B, T) = {tuple(batch.labels.shape)} as the labels, "
                f"got {tuple(hidden.shape)}"
            )
        if isinstance(denominator, (int, float)) and not denominator > 0.0:
            raise ValueError(f"denominator: wants a number > 0, such as the step's tokens, got {denominator}")
        if self.lambda_path > 0.0 and batch.group_id is None:
            raise ValueError("batch.group_id: the pathway term (lambda_path > 0) wants group_id and passed")
        if self.lambda_kd > 0.0 and batch.topk is None:
            raise ValueError(
                "batch.topk: the distillation term (lambda_kd > 0) wants the teacher's top-k log-probabilities, "
                "a TeacherTopk"
            )
        if batch.student is not None:
            check_same_kinds(batch.student, batch.teacher)

    def _head_pass(
        self,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        shifted: _Targets,
        batch: StructureBatch,
        head: dict[str, Any],
        **options: Any,
    ) -> Any:
        """Cross-entropy, with L_kd mixed in where it has a weight: loss, logprob, argmax (and kl)."""
        if self.lambda_kd == 0.0:
            return linear_cross_entropy(
                hidden, weight, shifted.target, outputs=("logprob", "argmax"), **head, **options
            )
        assert batch.topk is not None
        result = linear_topk_kl(
            hidden,
            weight,
            _shift_left(batch.topk.ids, -1),
            _shift_left(batch.topk.logprobs, 0),
            target=shifted.target,
            cross_entropy_weight=1.0 / self.lambda_kd,
            kind=self.kd_kind,
            tail=self.kd_tail,
            temperature=self.kd_temperature,
            scale_by_temperature_squared=True,
            teacher_vocab=self.kd_teacher_vocab,
            outputs=("kl", "logprob", "argmax"),
            **head,
            **options,
        )
        return result._replace(loss=self.lambda_kd * result.loss)

    def _targets(self, batch: StructureBatch) -> _Targets:
        target = _shift_left(batch.labels, IGNORE_INDEX)
        imitated = batch.passed
        if imitated is None:
            imitated = torch.ones(len(batch), dtype=torch.bool, device=target.device)
        return _Targets(target, _shift_left(batch.regions, 0), _shift_left(batch.token_node, -1), imitated)

    def _gap(self, batch: StructureBatch, shifted: _Targets, metrics: dict[str, torch.Tensor]) -> torch.Tensor:
        """(B, T) gap of each predicted token's node."""
        assert batch.student is not None
        assert batch.confidence is not None
        confidence = batch.confidence * shifted.imitated
        if batch.gap is None:
            gap = structural_gap(
                batch.student,
                batch.teacher,
                temperature=self.gap_temperature,
                same_kind=self.same_kind,
                literal=self.literal,
                confidence=confidence,
            )
        else:
            gap = batch.gap * confidence.unsqueeze(1)
        nodes = (batch.teacher.sizes * shifted.imitated).sum().clamp_min(1)
        metrics["gap_mean"] = gap.sum() / nodes
        metrics["gap_share"] = (gap > 0.5).sum() / nodes
        metrics["student_confidence"] = confidence.sum() / shifted.imitated.sum().clamp_min(1)
        return gather_node_values(gap, shifted.token_node)

    def _align(self, hidden: torch.Tensor, batch: StructureBatch, rows: torch.Tensor) -> torch.Tensor:
        assert self.align is not None
        if batch.student is None or batch.student_hidden_index is None:
            index = first_token_hidden_index(batch.teacher)
            return self.align(hidden, batch.teacher, index, batch.teacher, rows)
        return self.align(hidden, batch.student, batch.student_hidden_index, batch.teacher, rows)

    def _pathway(self, batch: StructureBatch, shifted: _Targets, logprob: torch.Tensor) -> tuple[torch.Tensor, int]:
        assert batch.group_id is not None
        assert batch.passed is not None
        is_code = (shifted.regions == CODE) & (shifted.target != IGNORE_INDEX)
        mean_logprob = torch.where(is_code, logprob, 0.0).sum(1) / is_code.sum(1).clamp_min(1)
        # A row that was cut before its code says nothing of it; a mean of 0 would be that of a certain answer.
        group_id = torch.where(is_code.any(1), batch.group_id, -1)
        delta = distance_to_right(batch.teacher, group_id, batch.passed)
        return pathway_loss(
            mean_logprob,
            group_id,
            batch.passed,
            delta,
            beta=self.path_beta,
            margin=self.path_margin,
            margin_per_distance=self.path_margin_per_distance,
        )
