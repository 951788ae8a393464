"""The whole loss against full-logit torch, the batch's checks, and the student's own code from visit to visit."""

from __future__ import annotations

import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from structloss import StructureAwareLoss, StructureBatch, StructureCollator, VisitCache, encode_example
from structloss.losses import CODE, PROMPT, REASONING, Example, structural_factors, structural_gap
from structloss.losses.token_weights import gather_node_values
from tests.structloss.loss_examples import PROGRAMS, head_for, make_examples, seen_batch, token_nll

# --- examples and batches -----------------------------------------------------------------------------------------


def test_regions_and_nodes_of_an_example(tokenizer, examples) -> None:
    example = examples[0]
    texts = {
        region: tokenizer.decode(example.input_ids[example.regions == region]) for region in (PROMPT, REASONING, CODE)
    }
    assert texts[PROMPT] == "sum of xs\ndef f(xs):\n<think>"
    assert texts[REASONING] == "\nadd each x\n</think>"
    assert texts[CODE] == "\n" + PROGRAMS[0][2] + "<eos>"
    assert (example.token_node[example.regions != CODE] == -1).all()
    assert example.token_node[-1] == -1, "the end of text is no part of the tree"
    tokens = tokenizer.convert_ids_to_tokens(example.input_ids.tolist())
    source = "def f(xs):\n" + PROGRAMS[0][2]
    for position in np.flatnonzero(example.token_node >= 0):
        start, end = example.tree.byte_span[example.token_node[position]]
        assert tokens[position].lstrip("ĠĊ").encode("ascii", "ignore").decode() in source[start:end]


def test_token_bytes_of_several_tokens_of_one_character(examples) -> None:
    example = examples[1]
    source = ("def f(xs):\n" + PROGRAMS[1][2]).encode()
    spans = example.token_bytes[example.token_bytes[:, 0] >= 0]
    assert (spans[:, 1] <= len(source)).all()
    covered = b"".join(source[a:b] for a, b in dict.fromkeys(map(tuple, spans.tolist())))
    assert covered.decode() == "".join(PROGRAMS[1][2].split())


def test_collator_pads_and_ignores_the_prompt(tokenizer, examples) -> None:
    inputs = StructureCollator(tokenizer.pad_token_id)(examples)
    structure = inputs["structure"]
    lengths = [len(example) for example in examples]
    assert inputs["attention_mask"].sum(1).tolist() == lengths
    for row, example in enumerate(examples):
        prompt = (example.regions == PROMPT).sum()
        assert (structure.labels[row, :prompt] == -100).all()
        assert (structure.labels[row, lengths[row] :] == -100).all()
        assert (structure.labels[row, prompt : lengths[row]].numpy() == example.input_ids[prompt:]).all()
    assert structure.group_id is None
    again = pickle.loads(pickle.dumps(structure))
    assert torch.equal(again.teacher.label, structure.teacher.label)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"regions": torch.zeros(3, 2, dtype=torch.int64)}, "regions"),
        ({"labels": torch.zeros(3, dtype=torch.int64)}, "labels"),
        ({"group_id": torch.zeros(3, dtype=torch.int64)}, "group_id and passed"),
        (
            {"group_id": torch.zeros(2, dtype=torch.int64), "passed": torch.ones(3, dtype=torch.bool)},
            "group_id",
        ),
        ({"student_hidden_index": torch.zeros(3, 4, dtype=torch.int64)}, "student and student_hidden_index"),
    ],
)
def test_batch_names_the_faulty_argument(batch, change, named) -> None:
    arguments = {
        "labels": batch.labels,
        "regions": batch.regions,
        "token_node": batch.token_node,
        "teacher": batch.teacher,
    }
    with pytest.raises(ValueError, match=f"^{named}"):
        StructureBatch(**(arguments | change))


def test_encode_example_names_the_faulty_argument(tokenizer) -> None:
    with pytest.raises(ValueError, match="^segments: unknown region"):
        encode_example(tokenizer, [("answer", "x = 1")], id="a")
    with pytest.raises(ValueError, match="^segments: .*no code token"):
        encode_example(tokenizer, [("prompt", "x = 1")], id="a")
    with pytest.raises(ValueError, match="^segments: wants exactly one code segment"):
        encode_example(tokenizer, [("code", "x = 1\n"), ("code", "y = 2")], id="a")
    with pytest.raises(ValueError, match="^tokenizer: wants a fast tokenizer"):
        encode_example(object(), [("code", "x = 1")], id="a")


# --- the loss ----------------------------------------------------------------------------------------------------


def test_without_structure_it_is_cross_entropy(tokenizer, batch) -> None:
    hidden, weight = head_for(tokenizer, batch)
    output = StructureAwareLoss(alpha=0.0)(hidden, weight, batch, progress=1.0)
    output.loss.backward()
    got = hidden.grad.clone(), weight.grad.clone()
    hidden.grad = weight.grad = None
    logits = hidden[:, :-1] @ weight.T
    expected = F.cross_entropy(logits.flatten(0, 1), batch.labels[:, 1:].flatten(), ignore_index=-100)
    expected.backward()
    torch.testing.assert_close(output.loss, expected)
    torch.testing.assert_close(got[0], hidden.grad)
    torch.testing.assert_close(got[1], weight.grad)
    assert set(output.terms) == {"token"}


def test_region_weights_by_hand(tokenizer, batch) -> None:
    hidden, weight = head_for(tokenizer, batch)
    output = StructureAwareLoss(alpha=0.0, reasoning_weight=0.25, code_weight=2.0)(hidden, weight, batch, progress=0.0)
    nll = token_nll(hidden, weight, batch.labels)
    weights = torch.zeros_like(nll)
    weights[batch.regions == REASONING] = 0.25
    weights[batch.regions == CODE] = 2.0
    torch.testing.assert_close(output.loss, (weights * nll).sum() / weights.sum())


def test_gap_weights_the_tokens_and_their_gradients(tokenizer, examples, batch) -> None:
    seen = seen_batch(tokenizer, examples, batch, literal=True)
    hidden, weight = head_for(tokenizer, batch)
    output = StructureAwareLoss(alpha=2.0, ramp_end=0.5)(hidden, weight, seen, progress=0.25)
    output.loss.backward()
    got = hidden.grad.clone(), weight.grad.clone()
    hidden.grad = weight.grad = None

    nll = token_nll(hidden, weight, batch.labels)
    gap = structural_gap(seen.student, seen.teacher, confidence=seen.confidence)
    assert gap.max() > 0.4, "the changed literals are seen"
    at_token = gather_node_values(gap, batch.token_node)
    is_code = batch.regions == CODE
    factors = structural_factors(at_token, (-nll).exp(), is_code, strength=0.5 * 2.0)
    weights = ((batch.regions != PROMPT) * factors).double()
    expected = (weights * nll).sum() / (batch.regions != PROMPT).sum()
    expected.backward()
    torch.testing.assert_close(output.loss, expected, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(got[0], hidden.grad, rtol=1e-5, atol=1e-8)
    torch.testing.assert_close(got[1], weight.grad, rtol=1e-5, atol=1e-8)
    plain = F.cross_entropy((hidden[:, :-1] @ weight.T).flatten(0, 1), batch.labels[:, 1:].flatten(), ignore_index=-100)
    assert (plain - output.loss).abs().item() > 1e-4, "the weights changed something"


def test_a_frozen_head_gets_no_gradient(tokenizer, examples, batch) -> None:
    seen = seen_batch(tokenizer, examples, batch, literal=True)
    hidden, weight = head_for(tokenizer, batch)
    loss = StructureAwareLoss(alpha=1.0)
    loss(hidden, weight, seen, progress=1.0).loss.backward()
    trainable = hidden.grad.clone()
    hidden.grad = None
    loss(hidden, weight.detach(), seen, progress=1.0).loss.backward()
    torch.testing.assert_close(hidden.grad, trainable)


def test_all_terms_add_up(tokenizer) -> None:
    rows = make_examples(tokenizer, group_id=3, passed=True)
    rows[1] = Example(**(vars(rows[1]) | {"passed": False}))
    inputs = StructureCollator(tokenizer.pad_token_id)(rows)
    hidden, weight = head_for(tokenizer, inputs["structure"], dtype=torch.float32)
    loss = StructureAwareLoss(alpha=1.0, lambda_align=0.3, lambda_path=0.2, ramp_end=1.0, hidden_size=8, num_kinds=400)
    output = loss(hidden, weight, inputs["structure"], progress=0.5)
    expected = output.terms["token"] + 0.5 * 0.3 * output.terms["align"] + 0.2 * output.terms["path"]
    torch.testing.assert_close(output.loss.detach(), expected)
    assert output.metrics["path_groups"] == 1
    output.loss.backward()
    assert all(parameter.grad is not None for parameter in loss.parameters())


def test_failed_rows_are_not_imitated(tokenizer) -> None:
    rows = make_examples(tokenizer, group_id=3, passed=True)
    rows[1] = Example(**(vars(rows[1]) | {"passed": False}))
    batch = StructureCollator(tokenizer.pad_token_id)(rows)["structure"]
    hidden, weight = head_for(tokenizer, batch)
    output = StructureAwareLoss(alpha=0.0)(hidden, weight, batch, progress=1.0)
    output.loss.backward()
    assert (hidden.grad[1] == 0).all()
    assert (hidden.grad[0] != 0).any()
    assert (output.argmax[1] == -1).all()
    hidden.grad = None
    StructureAwareLoss(alpha=0.0, lambda_path=1.0)(hidden, weight, batch, progress=1.0).loss.backward()
    assert (hidden.grad[1] != 0).any(), "the pathway term pushes the failed row's code down"


@pytest.mark.parametrize("cut", [0, 1])
def test_a_candidate_without_code_tokens_is_in_no_group(tokenizer, cut) -> None:
    """A row that was cut before its code has no log-probability; 0 would be that of a certain answer."""
    rows = make_examples(tokenizer, group_id=3, passed=True)
    rows[1] = replace(rows[1], passed=False)
    batch = StructureCollator(tokenizer.pad_token_id)(rows)["structure"]
    hidden, weight = head_for(tokenizer, batch)
    loss = StructureAwareLoss(alpha=0.0, lambda_path=1.0)
    code = (batch.regions == CODE) & (torch.arange(3) == cut).unsqueeze(1)
    batch.labels[code] = -100
    output = loss(hidden, weight, batch, progress=1.0)
    batch.group_id[cut] = -1
    without = loss(hidden, weight, batch, progress=1.0)
    assert output.metrics["path_groups"] == without.metrics["path_groups"]
    torch.testing.assert_close(output.terms["path"], without.terms["path"])


def test_denominator_makes_micro_batches_add_up(tokenizer, examples, batch) -> None:
    hidden, weight = head_for(tokenizer, batch)
    loss = StructureAwareLoss(alpha=0.0)
    whole = loss(hidden, weight, batch, progress=0.0).loss
    tokens = int((batch.labels[:, 1:] != -100).sum())
    parts = []
    for row, example in enumerate(examples):
        part = StructureCollator(tokenizer.pad_token_id)([example])["structure"]
        parts.append(loss(hidden[row : row + 1, : len(example)], weight, part, progress=0.0, denominator=tokens).loss)
    torch.testing.assert_close(sum(parts), whole)


def test_everything_ignored_is_zero(tokenizer, batch) -> None:
    empty = StructureBatch(torch.full_like(batch.labels, -100), batch.regions, batch.token_node, batch.teacher)
    hidden, weight = head_for(tokenizer, batch)
    output = StructureAwareLoss(alpha=1.0)(hidden, weight, empty, progress=1.0)
    output.loss.backward()
    assert output.loss == 0
    assert (hidden.grad == 0).all()


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"alpha": -1.0}, "alpha"),
        ({"lambda_align": 1.0}, "lambda_align"),
        ({"ramp_end": 0.0}, "end"),
        ({"code_weight": float("nan")}, "code_weight"),
    ],
)
def test_loss_names_the_faulty_argument(arguments, named) -> None:
    with pytest.raises(ValueError, match=f"^{named}:"):
        StructureAwareLoss(**arguments)


def test_forward_names_the_faulty_argument(tokenizer, batch) -> None:
    hidden, weight = head_for(tokenizer, batch)
    with pytest.raises(ValueError, match="^hidden:"):
        StructureAwareLoss()(hidden[:, 1:], weight, batch, progress=0.0)
    with pytest.raises(ValueError, match="^progress:"):
        StructureAwareLoss()(hidden, weight, batch, progress=1.5)
    with pytest.raises(ValueError, match=r"^batch\.group_id:"):
        StructureAwareLoss(lambda_path=1.0)(hidden, weight, batch, progress=0.0)


# --- the student's own code ----------------------------------------------------------------------------------------


def test_argmax_is_what_the_student_prefers_at_each_position(tokenizer, batch) -> None:
    hidden, weight = head_for(tokenizer, batch)
    output = StructureAwareLoss(alpha=0.0)(hidden, weight, batch, progress=0.0)
    expected = (hidden @ weight.T).argmax(-1)[:, :-1]
    kept = batch.labels[:, 1:] != -100
    assert torch.equal(output.argmax[:, 1:][kept], expected[kept])
    assert (output.argmax[:, 1:][~kept] == -1).all()


def test_an_unseen_sample_stands_in_with_the_teachers_tree(tokenizer, examples, batch) -> None:
    empty = VisitCache(tokenizer)
    assert empty, "an empty cache is a cache"
    seen = empty.attach(batch, examples)
    assert (seen.confidence == 0).all()
    assert torch.equal(seen.student.label, batch.teacher.label)
    assert torch.equal(seen.student.token_span, batch.teacher.token_span)


def test_the_right_tokens_give_the_teachers_tree(tokenizer, examples, batch) -> None:
    seen = seen_batch(tokenizer, examples, batch)
    assert (seen.confidence == 1).all()
    assert torch.equal(seen.student.label, batch.teacher.label)
    assert torch.equal(seen.student.token_span, batch.teacher.token_span)
    first = seen.student.token_span[..., 0]
    assert torch.equal(seen.student_hidden_index[first > 0], first[first > 0] - 1)


def test_cache_survives_a_checkpoint(tokenizer, examples, batch, tmp_path) -> None:
    cache = VisitCache(tokenizer)
    cache.update(examples, batch.labels)
    np.savez(tmp_path / "visits.npz", **cache.state_dict())
    again = VisitCache(tokenizer)
    with np.load(tmp_path / "visits.npz") as state:
        again.load_state_dict(dict(state))
    assert len(again) == len(examples)
    assert torch.equal(again.attach(batch, examples).student.label, cache.attach(batch, examples).student.label)


def test_an_id_must_mean_the_same_sample(tokenizer, examples, batch) -> None:
    cache = VisitCache(tokenizer)
    cache.update(examples, batch.labels)
    other = [Example(**(vars(examples[2]) | {"id": examples[0].id}))]
    with pytest.raises(ValueError, match="an id must always mean the same sample"):
        cache.attach(StructureCollator(tokenizer.pad_token_id)(other)["structure"], other)


def test_an_argmax_beyond_the_vocabulary_stands_for_nothing(tokenizer, examples, batch) -> None:
    """Heads are padded to round sizes; their spare rows are not in the tokenizer."""
    cache = VisitCache(tokenizer)
    cache.update(examples, torch.full_like(batch.labels, len(tokenizer) + 5))
    assert (cache.attach(batch, examples).student.sizes > 0).all(), "the prefix is left"


def test_tokens_of_weight_zero_reach_no_gemm(tokenizer, batch) -> None:
    hidden, weight = head_for(tokenizer, batch)
    output = StructureAwareLoss(alpha=0.0, reasoning_weight=0.0)(hidden, weight, batch, progress=0.0)
    assert (output.argmax[batch.regions == REASONING] == -1).all()
    assert (output.argmax[batch.regions == CODE] >= 0).all()


def test_alignment_term_takes_bfloat16_states(tokenizer, batch) -> None:
    hidden, weight = head_for(tokenizer, batch, dtype=torch.bfloat16)
    loss = StructureAwareLoss(alpha=0.0, lambda_align=1.0, ramp_shape="constant", hidden_size=8, num_kinds=400)
    loss(hidden, weight, batch, progress=0.0).loss.backward()
    assert torch.isfinite(hidden.grad).all()


def test_nonsense_is_parsed_with_low_confidence(tokenizer, examples, batch) -> None:
    cache = VisitCache(tokenizer)
    noise = torch.randint(4, len(tokenizer), batch.labels.shape, generator=torch.Generator().manual_seed(1))
    cache.update(examples, noise)
    seen = cache.attach(batch, examples)
    assert (seen.confidence < 1).all()
    assert (seen.confidence >= 0).all()
