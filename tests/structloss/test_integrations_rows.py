"""Rows of a data set: the three forms, what is refused, and the student's own code before training."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from structloss import StructureAwareLoss, VisitCache
from structloss.integrations import (
    RowCollator,
    capture,
    encode_row,
    fenced_code,
    has_code,
    model_loss,
    refresh_rollouts,
)
from structloss.integrations.own_code import _code_tokens
from structloss.losses import CODE, PROMPT, REASONING
from structloss.trees import parse

sys.path.insert(0, str(Path(__file__).parents[2] / "docs" / "examples"))
from tiny_student import make_model, make_rows, make_tokenizer

TOKENIZER = make_tokenizer()
CODE_TEXT = "def f(x):\n    return x + 1\n"
ANSWER = f"Add é.\n\n```python\n{CODE_TEXT}```"
ROWS = {
    "columns": {"prompt": "Add one.", "reasoning": "Add é.", "code": CODE_TEXT},
    "texts": {"prompt": "Add one.\n", "completion": ANSWER},
    "texts with an end": {"prompt": "Add one.\n", "completion": ANSWER + "<|end|>"},
    "messages": {"messages": [{"role": "user", "content": "Add one."}, {"role": "assistant", "content": ANSWER}]},
    "lists": {
        "prompt": [{"role": "user", "content": "Add one."}],
        "completion": [{"role": "assistant", "content": ANSWER}],
    },
    "list and code": {
        "prompt": [{"role": "user", "content": "Add one."}],
        "reasoning": "Add é.",
        "code": CODE_TEXT,
    },
}


@pytest.mark.parametrize("form", list(ROWS))
def test_every_form_of_a_row_gives_the_same_completion(form) -> None:
    example = encode_row(ROWS[form], TOKENIZER)
    text = {
        region: TOKENIZER.decode(example.input_ids[example.regions == region]) for region in (PROMPT, REASONING, CODE)
    }
    chat = "messages" in ROWS[form] or not isinstance(ROWS[form]["prompt"], str)
    assert text[PROMPT] == ("<|user|>\nAdd one.<|end|>\n<|assistant|>\n" if chat else "Add one.\n")
    assert text[REASONING].rstrip("\n") == "Add é.\n\n```python\n```<|end|>"
    assert text[CODE] == CODE_TEXT
    assert (example.tree.label == parse(CODE_TEXT).label).all()
    assert (example.token_node[example.regions != CODE] == -1).all()
    assert (example.token_node[example.regions == CODE] >= 0).any()


def test_an_id_follows_from_the_text_or_is_given() -> None:
    rows = [encode_row(ROWS[form], TOKENIZER) for form in ("texts", "texts with an end", "columns", "messages")]
    assert rows[0].id == rows[1].id == rows[2].id != rows[3].id
    given_id = encode_row(ROWS["texts"] | {"id": 7, "group_id": 3, "passed": False}, TOKENIZER)
    assert (given_id.id, given_id.group_id, given_id.passed) == ("7", 3, False)


def test_long_rows_lose_their_end() -> None:
    whole = encode_row(ROWS["texts"], TOKENIZER)
    cut = encode_row(ROWS["texts"], TOKENIZER, max_length=len(whole) - 9)
    assert len(cut) == len(whole) - 9
    assert (cut.input_ids == whole.input_ids[:-9]).all()
    batch = RowCollator(TOKENIZER, max_length=len(whole) - 9)([ROWS["texts"], ROWS["columns"]])
    visits = VisitCache.for_loss(StructureAwareLoss(), TOKENIZER)
    visits.update(batch["examples"], batch["labels"])
    assert visits.attach(batch["structure"], batch["examples"]).gap.shape == batch["structure"].teacher.label.shape


@pytest.mark.parametrize(
    ("row", "named"),
    [
        ({"text": "x"}, r"row: wants the columns .* got \['text'\]"),
        ({"prompt": "a", "completion": "no code"}, "row: wants code in a fenced block"),
        ({"prompt": "a", "completion": "```python\n\n```"}, "row: wants code in a fenced block"),
        ({"prompt": "a", "code": "\n"}, "row: wants code in a fenced block"),
        ({"messages": [{"role": "user", "content": ANSWER}]}, "messages: wants a last message"),
        ({"messages": []}, "messages: wants a last message"),
    ],
)
def test_other_rows_are_refused(row, named) -> None:
    with pytest.raises(ValueError, match=f"^{named}"):
        encode_row(row, TOKENIZER)


def test_has_code_is_what_encode_row_takes() -> None:
    assert all(has_code(row) for row in ROWS.values())
    assert not has_code({"prompt": "a", "completion": "no code"})
    assert not has_code({"prompt": "a", "completion": "```python\n \n```"})
    assert not has_code({"prompt": "a", "code": " \n"})


FENCE = st.sampled_from(["", "python", "py", "Python", "java", "text"])
BODY = st.lists(st.sampled_from(["x = 1", "``", "  ```x", "# é🙂", ""]), max_size=3)


BLOCK = st.tuples(st.sampled_from(["", "Text.\n", "a ``` b\n"]), FENCE, BODY)


@given(blocks=st.lists(BLOCK, max_size=4), cut=st.booleans())
def test_the_last_block_of_the_language_is_found(blocks, cut) -> None:
    """Bodies hold no line of three backticks alone, which would end a block."""
    text, expected = "", None
    for before, tag, body in blocks:
        inside = "".join(line.replace("  ```x", "  ``x") + "\n" for line in body)
        text += f"{before}```{tag}\n"
        if tag.lower() in ("", "python", "py"):
            expected = (len(text), len(text) + len(inside))
        text += inside + "```\n"
    if cut and blocks:
        text = text.removesuffix("```\n")
    assert fenced_code(text) == expected


def test_the_collator_travels_to_other_processes() -> None:
    collate = pickle.loads(pickle.dumps(RowCollator(TOKENIZER)))
    batch = collate(list(ROWS.values()))
    assert batch["labels"] is batch["structure"].labels
    again = collate(batch["examples"])
    assert torch.equal(again["input_ids"], batch["input_ids"])


# --- the student's own code ------------------------------------------------------------------------------------------


def test_capture_stores_what_the_model_prefers(tmp_path) -> None:
    model, rows, collate = make_model(TOKENIZER), make_rows(5), RowCollator(TOKENIZER)
    model.train()
    visits = VisitCache.for_loss(StructureAwareLoss(), TOKENIZER, workers=1)
    with visits:
        capture(model, rows, visits, collate, batch_size=2)
        assert model.training
        stored = visits.state_dict()
        batch = collate(rows)
        with torch.no_grad():
            preferred = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits.argmax(-1)
        for row, example in enumerate(batch["examples"]):
            code = np.flatnonzero(example.regions == CODE)
            assert (stored["visit:" + example.id] == preferred[row, code - 1].numpy()).all()
        assert visits.attach(batch["structure"], batch["examples"]).gap.max() > 0


def test_capture_and_rollouts_leave_every_modules_mode() -> None:
    model, rows, collate = make_model(TOKENIZER), make_rows(1), RowCollator(TOKENIZER)
    model.train()
    frozen = model.model.layers[0].eval()
    visits = VisitCache.for_loss(StructureAwareLoss(), TOKENIZER)
    capture(model, rows, visits, collate)
    refresh_rollouts(model, TOKENIZER, collate(rows)["examples"], visits, max_new_tokens=1)
    assert not frozen.training
    assert model.training
    assert model.model.layers[1].training


def test_capture_and_rollouts_name_the_faulty_argument() -> None:
    model, rows, collate = make_model(TOKENIZER), make_rows(1), RowCollator(TOKENIZER)
    with pytest.raises(ValueError, match=r"^visits: wants a VisitCache, got None"):
        capture(model, rows, None, collate)
    visits = VisitCache.for_loss(StructureAwareLoss(), TOKENIZER)
    with pytest.raises(ValueError, match=r"^examples: .* got a dict; encode_row"):
        refresh_rollouts(model, TOKENIZER, rows, visits, max_new_tokens=1)
    with pytest.raises(ValueError, match=r"^eos_token_id:"):
        refresh_rollouts(model, TOKENIZER, encoded(rows), visits, max_new_tokens=1, eos_token_id=None)


def encoded(rows):
    return [encode_row(row, TOKENIZER) for row in rows]


def test_a_model_loss_without_structure_says_which_collator_makes_it() -> None:
    inputs = RowCollator(TOKENIZER)(make_rows(1))
    del inputs["structure"]
    with pytest.raises(ValueError, match=r"^inputs: no 'structure'.*RowCollator"):
        model_loss(make_model(TOKENIZER), StructureAwareLoss(), inputs, progress=0.0)


def code_of(example) -> str:
    return TOKENIZER.decode(example.input_ids[example.regions == CODE])


def test_columns_of_none_count_as_missing() -> None:
    """Joined data sets fill the columns that a row does not have with None."""
    fenced = "```python\nx = 1\n```"
    row = {"prompt": "p", "code": None, "reasoning": None, "completion": fenced, "messages": None}
    assert has_code(row)
    assert code_of(encode_row(row, TOKENIZER)) == "x = 1\n"
    assert not has_code({"prompt": "p", "code": None})
    for bad in ({"prompt": "p", "code": None}, {"prompt": None, "code": "x = 1"}, {"text": fenced}):
        with pytest.raises(ValueError, match=r"^row: wants the columns"):
            encode_row(bad, TOKENIZER)
    with pytest.raises(ValueError, match=r"^row: wants the columns"):
        has_code({"text": fenced})
    parts = [{"role": "assistant", "content": [{"type": "text", "text": fenced}]}]
    with pytest.raises(ValueError, match=r"^messages: wants a text as content, got a list"):
        encode_row({"messages": parts}, TOKENIZER)


def test_code_of_its_own_column_goes_before_messages() -> None:
    row = make_rows(1)[0]
    chat = [
        {"role": "user", "content": "?"},
        {"role": "assistant", "content": "Long before.\n```python\ny = 2\n```"},
    ]
    alone, both = encode_row(row, TOKENIZER), encode_row(row | {"messages": chat}, TOKENIZER)
    assert code_of(both) == code_of(alone)
    assert (both.input_ids == alone.input_ids).all()
    no_prompt = {"code": "", "messages": chat}
    assert has_code(no_prompt)
    assert code_of(encode_row(no_prompt, TOKENIZER)) == "y = 2\n"


@pytest.mark.parametrize("max_length", [0, -1])
def test_a_length_that_cuts_from_the_wrong_end_is_refused(max_length) -> None:
    with pytest.raises(ValueError, match=r"^max_length: wants at least 1"):
        encode_row(make_rows(1)[0], TOKENIZER, max_length=max_length)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_rollouts_are_what_the_model_writes(batch_size) -> None:
    model, rows = make_model(TOKENIZER), make_rows(3)
    rows[1]["prompt"] = "Longer, so that the batch is padded. " + rows[1]["prompt"]
    examples = [encode_row(row, TOKENIZER) for row in rows]
    visits = VisitCache.for_loss(StructureAwareLoss(), TOKENIZER)
    options = {"max_new_tokens": 12, "batch_size": batch_size}
    assert refresh_rollouts(model, TOKENIZER, examples, visits, **options) == 0, "an untrained student opens no block"
    everything = refresh_rollouts(model, TOKENIZER, examples, visits, find_code=lambda text: (0, len(text)), **options)
    assert everything == len(visits) == 3
    model.eval()
    for example in examples:
        prompt = torch.from_numpy(example.input_ids[example.regions == PROMPT].astype(np.int64))[None]
        alone = model.generate(prompt, max_new_tokens=12, do_sample=False)[0, prompt.shape[1] :].tolist()
        alone = alone[: alone.index(TOKENIZER.eos_token_id)] if TOKENIZER.eos_token_id in alone else alone
        assert visits.state_dict()["rollout:" + example.id].tolist() == alone


def test_the_code_of_an_answer_is_cut_out_by_tokens() -> None:
    visits = VisitCache.for_loss(StructureAwareLoss(), TOKENIZER)
    ends = [TOKENIZER.eos_token_id]
    answer = np.array(TOKENIZER(ANSWER + "<|end|>```python\nx\n```", add_special_tokens=False)["input_ids"])
    code = _code_tokens(answer, ends, visits, fenced_code)
    assert TOKENIZER.decode(code) == CODE_TEXT
    unfinished = np.array(TOKENIZER("é\n```python\ndef f(x):\n    ret", add_special_tokens=False)["input_ids"])
    assert TOKENIZER.decode(_code_tokens(unfinished, ends, visits, fenced_code)) == "def f(x):\n    ret"
    assert _code_tokens(answer[:3], ends, visits, fenced_code) is None
