"""L_kd in the structure-aware loss against full-logit torch in float64."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from structloss import StructureAwareLoss, StructureBatch, StructureCollator, linear_topk_kl
from structloss.losses import CODE, PROMPT, TeacherTopk, structural_factors, structural_gap
from structloss.losses.token_weights import gather_node_values
from tests.structloss.loss_examples import grouped_batch, head_for, seen_batch, token_nll

K = 5


def with_teacher(batch: StructureBatch, vocab: int) -> StructureBatch:
    """The batch with a teacher of random logits, which says nothing about every seventh token."""
    logits = torch.randn(*batch.labels.shape, vocab, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    logprobs, ids = logits.log_softmax(-1).topk(K)
    ids[:, ::7] = -1
    return StructureBatch(**(vars(batch) | {"topk": TeacherTopk(ids, logprobs)}))


def token_kl(hidden: torch.Tensor, weight: torch.Tensor, topk: TeacherTopk) -> torch.Tensor:
    """(B, T) forward KL with a tail bucket at the position of each token; 0 where the teacher says nothing."""
    student = (hidden[:, :-1] @ weight.T).log_softmax(-1)
    ids, teacher = topk.ids[:, 1:], topk.logprobs[:, 1:]
    p = student.gather(-1, ids.clamp_min(0)).exp()
    q = teacher.exp()
    tail_p, tail_q = 1.0 - p.sum(-1), 1.0 - q.sum(-1)
    kl = (q * (q.log() - p.log())).sum(-1) + tail_q * (tail_q.log() - tail_p.log())
    kl = torch.where(ids[..., 0] >= 0, kl, 0.0)
    return torch.cat([torch.zeros_like(kl[:, :1]), kl], 1)


@pytest.mark.parametrize("weighted_by_gap", [False, True])
def test_kd_has_the_weights_of_the_tokens(tokenizer, examples, batch, weighted_by_gap) -> None:
    batch = with_teacher(batch, len(tokenizer))
    seen = with_teacher(seen_batch(tokenizer, examples, batch, literal=True), len(tokenizer))
    hidden, weight = head_for(tokenizer, batch)
    loss = StructureAwareLoss(alpha=2.0 * weighted_by_gap, ramp_shape="constant", lambda_kd=0.7)
    output = loss(hidden, weight, seen if weighted_by_gap else batch, progress=1.0)
    output.loss.backward()
    got = hidden.grad.clone(), weight.grad.clone()
    hidden.grad = weight.grad = None

    nll, kl = token_nll(hidden, weight, batch.labels), token_kl(hidden, weight, batch.topk)
    weights = (batch.regions != PROMPT).double()
    if weighted_by_gap:
        gap = structural_gap(seen.student, seen.teacher, confidence=seen.confidence)
        at_token = gather_node_values(gap, batch.token_node)
        weights = weights * structural_factors(at_token, (-nll).exp(), batch.regions == CODE, strength=2.0)
    terms = [(weights * values).sum() / (batch.regions != PROMPT).sum() for values in (nll, kl)]
    assert terms[1] > 0.1, "the teacher says something"
    (terms[0] + 0.7 * terms[1]).backward()
    # The pass works in float32 where the logits are float64's own: the tail is 1 minus a sum.
    torch.testing.assert_close(output.terms["token"], terms[0].detach(), rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(output.terms["kd"], terms[1].detach(), rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(got[0], hidden.grad, rtol=1e-5, atol=1e-8)
    torch.testing.assert_close(got[1], weight.grad, rtol=1e-5, atol=1e-8)


def test_kd_options_reach_the_pass(tokenizer, batch) -> None:
    batch = with_teacher(batch, len(tokenizer))
    hidden, weight = head_for(tokenizer, batch)
    options = {"kind": "reverse", "tail": "renormalize", "temperature": 2.0}
    loss = StructureAwareLoss(alpha=0.0, lambda_kd=1.0, **{f"kd_{name}": value for name, value in options.items()})
    kd = loss(hidden, weight, batch, progress=0.0).terms["kd"]
    topk = [values[:, 1:] for values in batch.topk]
    target = batch.labels[:, 1:]
    expected = linear_topk_kl(
        hidden[:, :-1], weight, *topk, target=target, scale_by_temperature_squared=True, **options
    )
    torch.testing.assert_close(kd, expected.detach())


def test_pathways_beside_kd_keep_their_gradient(tokenizer) -> None:
    """L_path reads the tokens' own log-probability, not the mixture that the pass over the head differentiates."""
    batch = grouped_batch(tokenizer)
    hidden, weight = head_for(tokenizer, batch)

    def gradient(batch: StructureBatch, **options: float) -> torch.Tensor:
        output = StructureAwareLoss(alpha=0.0, **options)(hidden, weight, batch, progress=0.0)
        return torch.autograd.grad(output.loss, hidden)[0]

    taught = with_teacher(batch, len(tokenizer))
    both = gradient(taught, lambda_path=0.5, lambda_kd=0.7) - gradient(taught, lambda_kd=0.7)
    torch.testing.assert_close(both, gradient(batch, lambda_path=0.5) - gradient(batch))


def test_what_kd_wants(tokenizer, batch) -> None:
    hidden, weight = head_for(tokenizer, batch)
    with pytest.raises(ValueError, match=r"^batch\.topk: .*TeacherTopk"):
        StructureAwareLoss(lambda_kd=1.0)(hidden, weight, batch, progress=0.0)
    ids = torch.zeros(*batch.labels.shape, K, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"^topk\.ids: wants shape"):
        StructureBatch(**(vars(batch) | {"topk": TeacherTopk(ids[:, 1:], ids[:, 1:].double())}))
    with pytest.raises(ValueError, match=r"^topk\.logprobs: wants shape"):
        StructureBatch(**(vars(batch) | {"topk": TeacherTopk(ids, ids[..., 1:].double())}))
    with pytest.raises(ValueError, match="^lambda_kd:"):
        StructureAwareLoss(lambda_kd=-1.0)


def test_the_collator_pads_what_was_stored(tokenizer, examples) -> None:
    """Of another k each, and of an example without a teacher."""
    stored = []
    for number, example in enumerate(examples[:2]):
        ids = np.arange(len(example) * (number + 1)).reshape(len(example), -1) % 7
        stored.append(replace(example, topk=(ids, np.log(np.full(ids.shape, 0.1 + number / 10)))))
    structure = StructureCollator(tokenizer.pad_token_id)([*stored, examples[2]])["structure"]
    assert structure.topk.ids.shape == (*structure.labels.shape, 2)
    for row, example in enumerate(stored):
        k = row + 1
        assert torch.equal(structure.topk.ids[row, : len(example), :k], torch.from_numpy(example.topk[0]))
        assert (structure.topk.ids[row, len(example) :] == -1).all()
    assert (structure.topk.ids[0, :, 1] == -1).all()
    assert (structure.topk.ids[2] == -1).all()
    assert StructureCollator(tokenizer.pad_token_id)(examples)["structure"].topk is None
    wrong = replace(examples[0], topk=(np.zeros((3, 2), dtype=np.int64), np.zeros((3, 2))))
    with pytest.raises(ValueError, match=r"^topk: example 'sample-0' has \d+ tokens"):
        StructureCollator(tokenizer.pad_token_id)([wrong])
