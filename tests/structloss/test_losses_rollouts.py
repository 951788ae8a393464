"""Negative weights on what a rollout has too much, and costs that see a wrong literal."""

from __future__ import annotations

import pytest
import torch

from structloss import StructureBatch, StructureCollator, TreeBatch, encode_example
from structloss.losses import CODE, relabel_costs, structural_gap, structural_surplus, surplus_loss
from structloss.losses.token_weights import gather_node_values
from structloss.trees import kind_names
from tests.structloss.loss_examples import head_for

TEACHER = "def f(xs):\n    return sum(xs)\n"
ROLLOUT = "def f(xs):\n    print(xs)\n    return sum(xs)\n"


@pytest.fixture
def rollouts(tokenizer) -> StructureBatch:
    example = encode_example(tokenizer, [("prompt", "Sum xs.\n"), ("code", ROLLOUT)], id="a")
    return StructureCollator(tokenizer.pad_token_id)([example])["structure"]


def test_surplus_marks_what_the_teacher_does_not_have() -> None:
    student, teacher = TreeBatch.from_sources([ROLLOUT]), TreeBatch.from_sources([TEACHER])
    surplus = structural_surplus(student, teacher)[0]
    texts = [ROLLOUT.encode()[start:end].decode() for start, end in student.byte_span[0].tolist()]
    assert surplus[texts.index("print")] > 0.9
    assert surplus[texts.index("sum")] < 0.1
    assert structural_surplus(teacher, student).max() < 0.1, "nothing of the teacher's is too much"


@pytest.mark.parametrize(
    ("negative", "expected"),
    [
        ("unlikelihood", lambda p: -torch.log1p(-p)),
        ("raw", lambda p: p.log()),
        ("clamp", lambda p: 0.0 * p),
    ],
)
def test_negative_weights_three_ways(tokenizer, rollouts, negative, expected) -> None:
    hidden, weight = head_for(tokenizer, rollouts)
    teacher = TreeBatch.from_sources([TEACHER])
    loss = surplus_loss(hidden, weight, rollouts, teacher, negative=negative)
    got = torch.autograd.grad(loss, hidden)[0]

    prob = (hidden[:, :-1] @ weight.T).softmax(-1).gather(-1, rollouts.labels[:, 1:, None].clamp_min(0))[..., 0]
    surplus = gather_node_values(structural_surplus(rollouts.teacher, teacher), rollouts.token_node)
    is_code = rollouts.regions == CODE
    push = torch.where(is_code, surplus, 0.0)[:, 1:]
    wanted = (push * expected(prob)).sum() / is_code.sum()
    torch.testing.assert_close(loss, wanted, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(got, torch.autograd.grad(wanted, hidden)[0], rtol=1e-5, atol=1e-9)


def test_unlikelihood_is_bounded_where_raw_runs_away(tokenizer, rollouts) -> None:
    """Descent on both: the raw form falls for ever, the default stops at 0."""
    teacher = TreeBatch.from_sources([TEACHER])
    reached = {}
    for negative in ("unlikelihood", "raw"):
        hidden, weight = head_for(tokenizer, rollouts)
        for _ in range(60):
            loss = surplus_loss(hidden, weight, rollouts, teacher, negative=negative)
            hidden = (hidden - 20.0 * torch.autograd.grad(loss, hidden)[0]).detach().requires_grad_()
        reached[negative] = surplus_loss(hidden, weight, rollouts, teacher, negative=negative).item()
    assert reached["unlikelihood"] >= 0.0
    assert reached["raw"] < -10.0


def test_rollouts_that_pass_get_no_push(tokenizer, rollouts) -> None:
    hidden, weight = head_for(tokenizer, rollouts)
    group = {"group_id": torch.tensor([1]), "passed": torch.tensor([True])}
    passed = StructureBatch(**(vars(rollouts) | group))
    assert surplus_loss(hidden, weight, passed, TreeBatch.from_sources([TEACHER])) == 0.0


def test_surplus_loss_names_the_faulty_argument(tokenizer, rollouts) -> None:
    hidden, weight = head_for(tokenizer, rollouts)
    teacher = TreeBatch.from_sources([TEACHER])
    with pytest.raises(ValueError, match="^hidden: wants"):
        surplus_loss(hidden[:, 1:], weight, rollouts, teacher)
    with pytest.raises(ValueError, match="^teacher: wants one tree a rollout"):
        surplus_loss(hidden, weight, rollouts, TreeBatch.from_sources([TEACHER, TEACHER]))
    with pytest.raises(ValueError, match="^student: its kinds are of version 'java"):
        surplus_loss(hidden, weight, rollouts, TreeBatch.from_sources(["class A {}"], "java"))


# --- costs that see a wrong literal ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("language", "source", "literals", "name"),
    [
        ("python", "x = 1 + 2.5 + 'a'", {"integer", "float", "string"}, "identifier"),
        ("javascript", "x = 1 + 'a' + /b/", {"number", "string", "regex"}, "identifier"),
        ("java", 'class A { int x = 1 + 0x2 + "a"; }', {"decimal_integer_literal", "string_literal"}, "identifier"),
    ],
)
def test_another_literal_costs_more_than_another_name(language, source, literals, name) -> None:
    changed = source.replace("1", "7").replace("2", "8").replace("'a'", "'z'").replace('"a"', '"z"')
    changed = changed.replace("/b/", "/y/").replace("x ", "w ")
    a, b = (TreeBatch.from_sources([text], language) for text in (source, changed))
    costs = relabel_costs(a, b, same_kind=0.25, literal=0.75)[0].diagonal()
    kinds = [kind_names(language)[kind] for kind in a.kind[0]]
    by_kind = dict(zip(kinds, costs.tolist(), strict=True))
    assert {kind for kind in kinds if by_kind[kind] == 0.75} >= literals
    assert by_kind[name] in (0.0, 0.25)
    assert 0.25 in costs, "the renamed variable"
    assert torch.equal(relabel_costs(a, b, same_kind=0.25, literal=0.25), relabel_costs(a, b, same_kind=0.25))


def test_a_wrong_literal_opens_a_gap_of_its_own_cost() -> None:
    right, wrong = TreeBatch.from_sources(["return x % 10"]), TreeBatch.from_sources(["return x % 100"])
    at_literal = [structural_gap(wrong, right, literal=cost).max().item() for cost in (None, 0.9)]
    assert at_literal == pytest.approx([0.5, 0.9], abs=0.02)


def test_costs_name_the_faulty_argument() -> None:
    parsed, own = TreeBatch.from_sources(["x"]), TreeBatch.from_parents([[1]], [[-1]])
    with pytest.raises(ValueError, match="^same_kind: wants a cost in"):
        relabel_costs(parsed, parsed, same_kind=1.5)
    with pytest.raises(ValueError, match="^literal: wants a cost in"):
        relabel_costs(parsed, parsed, literal=-0.5)
    with pytest.raises(ValueError, match="^literal: which kinds are literals is known only of parsed trees"):
        relabel_costs(own, own, literal=1.0)
    with pytest.raises(ValueError, match="^student: its kinds are of version"):
        relabel_costs(parsed, TreeBatch.from_sources(["x"], "javascript"))
