"""How examples are written, read back and tokenised."""

from __future__ import annotations

import torch

from structloss.trees import vocabulary_bytes
from training import text
from training.config import StudentConfig
from training.generate import generate
from training.nearest import nearest_solutions
from training.students import build_student, load_tokenizer, train_tokenizer

TRACE = {
    "prompt": "Return é times 12.\ndef f(x):",
    "code_prefix": "def f(x):\n",
    "reasoning": "multiply\nby 12",
    "code": "    y = x * 12\n    return y",
}


def test_what_is_written_can_be_read_back() -> None:
    parts = text.segments(TRACE)
    whole = "".join(part for _, part in parts)
    assert whole.startswith(text.generation_prompt(TRACE))
    completion = whole.removeprefix(text.generation_prompt(TRACE))
    assert text.split_completion(completion) == (TRACE["reasoning"], TRACE["code"])


def test_a_completion_that_never_reaches_code() -> None:
    assert text.split_completion("\nthinking and thinking") == ("thinking and thinking", None)
    assert text.split_completion(f"\na {text.REASONING_END} b {text.REASONING_END}\n  c")[1] == "  c"


def test_the_prompt_is_tokenised_as_in_training(tmp_path) -> None:
    whole = "".join(part for _, part in text.segments(TRACE))
    train_tokenizer([whole] * 3, 400).save_pretrained(tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    ids = tokenizer(whole, add_special_tokens=False)["input_ids"]
    prompt = tokenizer(text.generation_prompt(TRACE), add_special_tokens=False)["input_ids"]
    assert ids[: len(prompt)] == prompt
    assert ids[-1] == tokenizer.eos_token_id
    pieces = vocabulary_bytes(tokenizer)
    digits = [i for i in ids if pieces[i].strip() in (b"12", b"1", b"2")]
    assert len(digits) == 6, "every digit is a token"
    special = {tokenizer.eos_token_id, *(tokenizer.convert_tokens_to_ids(t) for t in ("<think>", "</think>"))}
    assert b"".join(pieces[i] for i in ids if i not in special).decode() == whole.replace("<think>", "").replace(
        "</think>", ""
    ).replace(text.END_OF_TEXT, "")


def test_students_of_a_seed_are_equal_and_generation_is_batched(tmp_path) -> None:
    whole = "".join(part for _, part in text.segments(TRACE))
    train_tokenizer([whole], 300).save_pretrained(tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    config = StudentConfig(vocab_size=300, hidden_size=16, intermediate_size=16, layers=1, heads=2)
    first, again, other = (build_student(config, tokenizer, seed=seed, max_positions=64) for seed in (0, 0, 1))
    assert torch.equal(first.model.embed_tokens.weight, again.model.embed_tokens.weight)
    assert not torch.equal(first.model.embed_tokens.weight, other.model.embed_tokens.weight)
    prompts = ["a\ndef f(x):", "a much longer sentence\ndef f(x):", "b"]
    alone = [next(generate(first, tokenizer, [p], batch_size=1, max_new_tokens=8))[0] for p in prompts]
    batched = [row for rows in generate(first, tokenizer, prompts, batch_size=2, max_new_tokens=8) for row in rows]
    assert alone == batched

    def drawn(seed: int, temperature: float = 1.5) -> list[tuple[str, bool]]:
        batches = generate(
            first, tokenizer, ["b"] * 6, batch_size=3, max_new_tokens=8, temperature=temperature, seed=seed
        )
        return [row for rows in batches for row in rows]

    assert drawn(0) == drawn(0) != drawn(1)
    assert len(set(drawn(0))) > 2, "samples of one prompt differ, within a batch and between batches"
    assert set(drawn(0, 1e-4)) == {batched[2]}, "a low temperature comes down to greedy"


def test_an_answer_ends_at_any_of_the_models_ends(tmp_path) -> None:
    """Instruct models end a turn with a token that is not their tokenizer's end of text."""
    train_tokenizer(["".join(part for _, part in text.segments(TRACE))], 300).save_pretrained(tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    model = build_student(
        StudentConfig(vocab_size=300, hidden_size=16, intermediate_size=16, layers=1, heads=2),
        tokenizer, seed=0, max_positions=64,
    )  # fmt: skip
    ids = tokenizer("b", return_tensors="pt", add_special_tokens=False)["input_ids"]
    start = ids.shape[1]
    for _ in range(4):
        ids = torch.cat([ids, model(ids).logits[:, -1].argmax(-1, keepdim=True)], dim=1)
    new = ids[0, start:].tolist()
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, new[3]]
    (answer, ended), *_ = next(generate(model, tokenizer, ["b"], batch_size=1, max_new_tokens=8))
    assert ended
    assert answer == tokenizer.decode(new[: new.index(new[3])])


def test_the_nearest_solution_is_found_by_words() -> None:
    traces = [
        {"id": i, "prompt": p} for i, p in enumerate(["sum of the even numbers", "count vowels in s", "largest 7"])
    ]
    problems = [
        {"prompt": "count the vowels of s"},
        {"prompt": "the sum of odd numbers"},
        {"prompt": "7 and 8"},
    ]
    assert [trace["id"] for trace in nearest_solutions(problems, traces)] == [1, 0, 2]
