"""Rows of a data set to batches: which part of a row is prompt, reasoning and code."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from hashlib import blake2b
from typing import Any

from structloss.losses.collator import Example, StructureCollator, encode_example

Row = Mapping[str, Any]
# What may stand behind the fence of each language; an untagged fence counts as code of the language.
_TAGS = {"python": ("python", "py", "python3"), "javascript": ("javascript", "js"), "java": ("java",)}


def fenced_code(text: str, language: str = "python") -> tuple[int, int] | None:
    """Where the code stands in `text`: the inside of its last block ```` ```python ````, or None.

    The block may be open at the end, as where a generation was cut.

    >>> text = "Add them.\\n```python\\nx = a + b\\n```\\nDone."
    >>> start, end = fenced_code(text)
    >>> text[start:end]
    'x = a + b\\n'
    """
    wanted = {*_TAGS.get(language, (language,)), ""}
    found = None
    position = 0
    while opening := re.compile(r"^[ ]{0,3}```([^\n`]*)\n", re.MULTILINE).search(text, position):
        closing = re.compile(r"^[ ]{0,3}```[ \t]*$", re.MULTILINE).search(text, opening.end())
        end = closing.start() if closing else len(text)
        if opening[1].strip().lower() in wanted:
            found = opening.end(), end
        if closing is None:
            break
        position = closing.end()
    return found


def has_code(row: Row, language: str = "python") -> bool:
    """Whether `encode_row` finds code in the row: for ``dataset.filter(has_code)``."""
    known = _columns(row)
    if ("code" in known and not {"messages", "completion"} & set(known)) or _code_column(known):
        return bool(known["code"].strip())
    if "messages" not in known and "completion" not in known:
        if not {"code", "completion", "messages"} & set(row):
            raise _other_columns(row)
        return False  # there, but None
    completion = _text(known["messages"] if "messages" in known else known["completion"])
    found = fenced_code(completion, language)
    return found is not None and bool(completion[slice(*found)].strip())


def encode_row(row: Row, tokenizer: Any, *, language: str = "python", max_length: int | None = None) -> Example:
    """One row of a data set as a training example.

    Args:
        row: one of

            * ``prompt``, ``code`` and, if there is one, ``reasoning``: texts. The completion is the reasoning and the
              code in a fenced block, on a line of its own below the prompt.
            * ``prompt`` and ``completion``: texts, or lists of messages. The code is the last fenced block of the
              completion (`fenced_code`), the rest of it is reasoning.
            * ``messages``: the last one is the assistant's, read as a completion.

            Messages go through the tokenizer's chat template. Texts are joined as they are, with the end-of-text
            token behind them. Further columns: ``id`` (default: a hash of the text), ``group_id`` and ``passed`` for
            the pathway term. A column that is None counts as missing.
        tokenizer: fast, with a chat template where there are messages.
        language: of the code.
        max_length: longer examples lose their end, as in other trainers.

    Raises:
        ValueError: a row of another form, or one without code.
    """
    if max_length is not None and max_length < 1:
        raise ValueError(f"max_length: wants at least 1 token, or None for no limit, got {max_length}")
    row = _columns(row)
    segments = _segments(row, tokenizer, language)
    text = "".join(part for _, part in segments)
    example = encode_example(
        tokenizer,
        segments,
        id=str(row["id"]) if row.get("id") is not None else blake2b(text.encode(), digest_size=12).hexdigest(),
        language=language,
        group_id=-1 if row.get("group_id") is None else int(row["group_id"]),
        passed=None if row.get("passed") is None else bool(row["passed"]),
    )
    if max_length is None or len(example) <= max_length:
        return example
    return replace(
        example,
        input_ids=example.input_ids[:max_length],
        regions=example.regions[:max_length],
        token_bytes=example.token_bytes[:max_length],
        token_node=example.token_node[:max_length],
    )


def _columns(row: Row) -> Row:
    """Joined data sets fill the columns that a row does not have with None."""
    return {name: value for name, value in row.items() if value is not None} if isinstance(row, Mapping) else row


def _code_column(row: Row) -> bool:
    """Whether the row is of the first form, which goes before the others."""
    return "code" in row and "prompt" in row


def _other_columns(row: Row) -> ValueError:
    return ValueError(
        f"row: wants the columns prompt and code (and reasoning), prompt and completion, or messages, got {sorted(row)}"
    )


def _segments(row: Row, tokenizer: Any, language: str) -> list[tuple[str, str]]:
    """The (region, text) parts of a row, the code as the third."""
    if from_column := _code_column(row):
        reasoning = (row.get("reasoning") or "").strip()
        before = f"{reasoning}\n\n```{language}\n".lstrip("\n")
        code = row["code"].strip("\n") + "\n"
        completion, found = f"{before}{code}```", (len(before), len(before) + len(code))
    elif "messages" in row:
        completion, found = _text(row["messages"]), None
    elif "completion" in row and "prompt" in row:
        completion, found = _text(row["completion"]), None
    else:
        raise _other_columns(row)
    if "messages" in row and not from_column:
        prompt, completion, ending = _conversation(row["messages"], tokenizer)
    elif isinstance(row["prompt"], str):
        prompt, ending = row["prompt"], tokenizer.eos_token or ""
        completion = completion.removesuffix(ending) if ending else completion
        if from_column and not prompt.endswith("\n"):
            prompt += "\n"
    else:
        answer = [{"role": "assistant", "content": completion}]
        prompt, completion, ending = _conversation([*row["prompt"], *answer], tokenizer)
    found = found or fenced_code(completion, language)
    if found is None or not completion[slice(*found)].strip():
        raise ValueError(
            f"row: wants code in a fenced block ```{language} of the completion, got {completion[-200:]!r}; "
            "leave such rows out with dataset.filter(structloss.integrations.has_code)"
        )
    start, end = found
    return [
        ("prompt", prompt),
        ("reasoning", completion[:start]),
        ("code", completion[start:end]),
        ("reasoning", completion[end:] + ending),
    ]


def _conversation(messages: Sequence[Mapping[str, str]], tokenizer: Any) -> tuple[str, str, str]:
    answer = _text(messages)
    text = tokenizer.apply_chat_template(list(messages), tokenize=False)
    start = text.rfind(answer)
    if start < 0:
        raise ValueError("messages: the tokenizer's chat template does not show the last message as it is")
    return text[:start], answer, text[start + len(answer) :]


def _text(completion: Any) -> str:
    """Of a completion that is a text or a list of messages."""
    if isinstance(completion, str):
        return completion
    if not completion or completion[-1]["role"] != "assistant":
        raise ValueError("messages: wants a last message whose role is assistant")
    content = completion[-1]["content"]
    if not isinstance(content, str):
        raise ValueError(f"messages: wants a text as content, got a {type(content).__name__}")
    return content.strip()


class RowCollator:
    """Makes batches of rows (`encode_row`) or of ready `Example` objects; works in the processes of a DataLoader.

    Args:
        tokenizer: the student's. language, max_length: see `encode_row`.
        with_groups: see `StructureCollator`.

    Returns, when called: `input_ids`, `attention_mask`, `labels`, `structure` and `examples`.
    """

    def __init__(
        self, tokenizer: Any, *, language: str = "python", max_length: int | None = None, with_groups: bool = False
    ) -> None:
        self.tokenizer = tokenizer
        self.language = language
        self.max_length = max_length
        pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        self.pad = StructureCollator(pad, with_groups=with_groups)

    def __call__(self, rows: Sequence[Row | Example]) -> dict[str, Any]:
        examples = [
            row
            if isinstance(row, Example)
            else encode_row(row, self.tokenizer, language=self.language, max_length=self.max_length)
            for row in rows
        ]
        inputs = self.pad(examples)
        return inputs | {"labels": inputs["structure"].labels}
