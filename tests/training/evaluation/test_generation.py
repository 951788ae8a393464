"""Local models on a benchmark: prompts with and without a chat template, and a run that goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from training.config import ConfigError, StudentConfig
from training.evaluation.generation import Sampling, sample_locally
from training.evaluation.prompts import PROMPTS, choose_prompt, local_prompt
from training.evaluation.samples import read_samples
from training.jsonl import read_jsonl
from training.runs import read_json
from training.students import build_student, load_tokenizer, train_tokenizer

from .sets import benchmark

TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny untrained student on the disk."""
    folder = tmp_path_factory.mktemp("student")
    train_tokenizer(["def f(x):\n    return x"], 300).save_pretrained(folder)
    tokenizer = load_tokenizer(folder)
    config = StudentConfig(vocab_size=300, hidden_size=16, intermediate_size=16, layers=1, heads=2)
    build_student(config, tokenizer, seed=0, max_positions=512).save_pretrained(folder)
    return folder


def sampled(student: Path, out: Path, **options: Any) -> Path:
    sampling = Sampling(n=2, temperature=1.0, max_new_tokens=6)
    return sample_locally(str(student), benchmark(), out, sampling, **({"prompt_id": None, "batch_size": 3} | options))


def test_a_model_without_a_template_goes_on_with_code(student: Path, tmp_path: Path) -> None:
    samples = list(read_samples(sampled(student, tmp_path)))
    assert [(s.task_id, s.index) for s in samples] == [(f"Adding/{k}", i) for k in range(4) for i in range(2)]
    assert len({s.text for s in samples}) > 4
    assert read_json(tmp_path / "generation.json")["prompt"] == "code-1"
    with pytest.raises(ConfigError, match="chat-1 is a chat, and this model's tokenizer has no chat template"):
        sampled(student, tmp_path / "other", prompt_id="chat-1")
    with pytest.raises(ConfigError, match=r"got 'chat', wants one of code-1, chat-1, think-1"):
        sampled(student, tmp_path / "other", prompt_id="chat")


def test_a_run_goes_on_and_draws_no_sample_twice(student: Path, tmp_path: Path) -> None:
    rows = list(read_jsonl(sampled(student, tmp_path / "whole")))
    assert list(read_jsonl(sampled(student, tmp_path / "again"))) == rows, "the same seed draws the same samples"
    path = tmp_path / "whole" / "samples.jsonl"
    # The first sample of a problem is kept, the second is drawn anew: from the same prompt, at another place.
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:1]) + lines[1][:20])
    went_on = list(read_jsonl(sampled(student, tmp_path / "whole")))
    assert went_on[0] == rows[0]
    assert [(row["task_id"], row["sample"]) for row in went_on] == [(row["task_id"], row["sample"]) for row in rows]
    assert went_on[1]["output"] != went_on[0]["output"]


def test_the_students_own_template_is_used(student: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(student)
    tokenizer.chat_template = TEMPLATE
    problem = benchmark().problems[1]
    text, opening = local_prompt(PROMPTS["chat-1"], problem, tokenizer)
    assert text.startswith("<|user|>Write a self-contained Python program")
    assert text.endswith("<|endoftext|><|assistant|>")
    assert problem["prompt"].strip() in text
    assert opening == ""
    # A template that opens the reasoning: the tag belongs to the answer.
    tokenizer.chat_template = TEMPLATE.replace("<|assistant|>", "<|assistant|><think>\n")
    assert local_prompt(PROMPTS["chat-1"], problem, tokenizer)[1] == "<think>"
    assert choose_prompt(None, has_chat_template=True).id == "chat-1"

    tokenizer.save_pretrained(tmp_path / "model")
    for file in student.glob("*.safetensors"):
        (tmp_path / "model" / file.name).write_bytes(file.read_bytes())
    (tmp_path / "model" / "config.json").write_bytes((student / "config.json").read_bytes())
    samples = list(read_samples(sampled(tmp_path / "model", tmp_path / "out")))
    assert read_json(tmp_path / "out" / "generation.json")["prompt"] == "chat-1"
    assert all(sample.text.startswith("<think>") for sample in samples)


def test_words_of_each_prompt() -> None:
    humaneval = benchmark().problems[1]
    mbpp = {"prompt": "Add one.\nassert f(1) == 2", "code_prefix": ""}
    plus = {"prompt": '"""\nAdd one.\nassert f(1) == 2\n"""\n', "code_prefix": ""}
    kata = {"prompt": "Add one.\ndef f(x):", "code_prefix": "def f(x):\n"}
    code = PROMPTS["code-1"].write
    assert code(humaneval) == humaneval["prompt"]
    assert code(mbpp) == code(plus) == '"""\nAdd one.\nassert f(1) == 2\n"""\n'
    assert code(kata) == '"""\nAdd one.\ndef f(x):\n"""\ndef f(x):\n'
    assert PROMPTS["think-1"].write(mbpp) == "Add one.\nassert f(1) == 2\n<think>"
    assert "```python\n" + humaneval["prompt"].rstrip() + "\n```" in PROMPTS["chat-1"].write(humaneval)
