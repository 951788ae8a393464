"""How a model is asked, each way under an id that stands beside every number it gives.

An id names the words: whoever changes a prompt here gives it a new number.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from training import text
from training.config import ConfigError
from training.evaluation.samples import prefix_of

Row = dict[str, Any]
Message = dict[str, str]


@dataclass(frozen=True)
class Prompt:
    """`write` gives the text to go on from; for a chat it is what the user says.

    opening: what the prompt has already written of the answer, put back in front of it. special_tokens: whether the
    tokenizer adds its own, such as one that begins a text.
    """

    id: str
    write: Callable[[Row], str]
    chat: bool = False
    opening: str = ""
    special_tokens: bool = True


def _code(problem: Row) -> str:
    """The task as the beginning of a file: HumanEval's prompt as it is, MBPP's text as a docstring."""
    if prefix := prefix_of(problem):
        return prefix if prefix == problem["prompt"] else f'"""\n{problem["prompt"]}\n"""\n{prefix}'
    task = problem["prompt"].strip()
    return f"{task}\n" if task.startswith('"""') else f'"""\n{task}\n"""\n'


def _instruction(problem: Row) -> str:
    """A request for a self-contained function, in a Python block."""
    return (
        "Write a self-contained Python program that solves this problem. Give the whole function in one "
        f"```python block.\n\n```python\n{_code(problem).rstrip()}\n```\n"
    )


PROMPTS = {
    prompt.id: prompt
    for prompt in (
        Prompt("code-1", _code),
        Prompt("chat-1", _instruction, chat=True),
        # What the students of this repository are trained on.
        Prompt("think-1", text.generation_prompt, opening=text.REASONING_START, special_tokens=False),
    )
}


def choose_prompt(wanted: str | None, *, has_chat_template: bool) -> Prompt:
    """The prompt of that id; without one, a chat where the model has a template and code to go on with where not.

    Raises ConfigError for an unknown id, and for a chat with a model that has no template.
    """
    name = wanted or ("chat-1" if has_chat_template else "code-1")
    if name not in PROMPTS:
        raise ConfigError(f"--prompt: got {name!r}, wants one of {', '.join(PROMPTS)}")
    if PROMPTS[name].chat and not has_chat_template:
        raise ConfigError(f"--prompt: {name} is a chat, and this model's tokenizer has no chat template; use code-1")
    return PROMPTS[name]


def messages_of(prompt: Prompt, problem: Row) -> list[Message]:
    """The chat that asks for a program."""
    return [{"role": "user", "content": prompt.write(problem)}]


def local_prompt(prompt: Prompt, problem: Row, tokenizer: Any) -> tuple[str, str]:
    """The text a local model goes on from, in the student's own chat template for a chat, and the answer's opening.

    Templates of reasoning models end in an opening tag: it belongs to the answer, or an answer that never leaves its
    reasoning could not be told.
    """
    if not prompt.chat:
        return prompt.write(problem), prompt.opening
    rendered = tokenizer.apply_chat_template(messages_of(prompt, problem), tokenize=False, add_generation_prompt=True)
    last = rendered.rstrip().rsplit("\n", 1)[-1]
    for tag in (text.REASONING_START, "[THINK]", "<|begin_of_thought|>"):
        if last.endswith(tag):
            return rendered, tag
    return rendered, prompt.opening
