"""How one example is written for the student: prompt, reasoning in tags, code. The only place that knows."""

from __future__ import annotations

from typing import Any

REASONING_START = "<think>"
REASONING_END = "</think>"
END_OF_TEXT = "<|endoftext|>"
PADDING = "<|pad|>"


def generation_prompt(problem: dict[str, Any]) -> str:
    """What the student is given: the prompt and the tag that opens the reasoning."""
    return f"{problem['prompt']}\n{REASONING_START}"


def segments(trace: dict[str, Any], end_of_text: str = END_OF_TEXT) -> list[tuple[str, str]]:
    """The (region, text) segments of a training example; joined, they are the text."""
    return [
        ("prompt", generation_prompt(trace)),
        ("reasoning", f"\n{trace['reasoning']}\n{REASONING_END}"),
        ("code", f"\n{trace['code']}{end_of_text}"),
    ]


def split_completion(completion: str) -> tuple[str, str | None]:
    """Reasoning and code of a completion that follows `generation_prompt`; code is None when it never started."""
    reasoning, tag, code = completion.rpartition(REASONING_END)
    if not tag:
        return completion.strip("\n"), None
    return reasoning.strip("\n"), code.split(END_OF_TEXT)[0].removeprefix("\n")
