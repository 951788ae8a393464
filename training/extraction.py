"""Takes the program out of a model's answer: fences, reasoning, answers that stop half-way. Linear time."""

from __future__ import annotations

import ast
import re
import textwrap
import warnings
from dataclasses import dataclass
from typing import Literal

EXTRACTOR = "structloss-1"

_FENCE = re.compile(r"^([ \t]*(?:>[ \t]?)?)(`{3,}|~{3,})([^\n`]*)$")
_DEFINITION = re.compile(r"@\w|(?:async\s+)?def\s+\w+\s*[(\[]|class\s+\w+\s*[(:]")
_IMPORT = re.compile(r"(?:import|from)\s+\w")
_LONGEST_LINE = 400
_PYTHON = {"", "python", "python3", "py", "py3", "python2", "ipython", "pycon", "python-repl"}
_REASONING_END = "</think>"
_REASONING_START = "<think>"


@dataclass(frozen=True)
class Extraction:
    """`code` is dedented and ends in a line break ("" if there is none).

    ok: a whole block, or a text without fences that holds code. truncated: the text ends inside the reasoning
    or inside the block that was taken. no_code: nothing that looks like code.
    """

    code: str
    status: Literal["ok", "no_code", "truncated"]


@dataclass(frozen=True)
class _Block:
    code: str
    language: str
    closed: bool


def extract_code(text: str, entry_point: str | None = None) -> Extraction:
    """The last Python block of the answer that defines `entry_point`, else the last Python block.

    Reasoning is cut at the last `</think>`; an answer that never leaves its reasoning is truncated. Blocks in
    other languages count only if there is no Python one. Without any fence, the code starts at the first line
    that can only be Python (an import, `def`, `class`, a decorator) and ends before the first prose at its
    left margin.
    """
    answer, closed_reasoning = _after_reasoning(text.replace("\r\n", "\n").replace("\r", "\n"))
    if not closed_reasoning:
        return Extraction("", "truncated")
    blocks = [block for block in _blocks(answer) if block.code.strip()]
    if not blocks:
        code = _unfenced(answer)
        return Extraction(code, "ok") if code else Extraction("", "no_code")
    candidates = [block for block in blocks if block.language in _PYTHON] or blocks
    chosen = candidates[-1]
    if entry_point is not None:
        name = re.escape(entry_point)
        defines = re.compile(rf"^[ \t]*(?:async[ \t]+)?(?:def|class)[ \t]+{name}\b", re.MULTILINE)
        chosen = next((block for block in reversed(candidates) if defines.search(block.code)), chosen)
    return Extraction(_tidy(chosen.code), "ok" if chosen.closed else "truncated")


def _after_reasoning(text: str) -> tuple[str, bool]:
    _, found, answer = text.rpartition(_REASONING_END)
    if found:
        return answer, True
    # Where a chat template wrote the opening tag, an unclosed reasoning cannot be told from an answer.
    return text, not text.lstrip().startswith(_REASONING_START)


def _blocks(text: str) -> list[_Block]:
    """Fenced blocks, in one pass. A fence closes with as many (or more) of its character, alone on a line."""
    blocks: list[_Block] = []
    lines: list[str] = []
    fence = language = margin = ""
    for line in text.split("\n"):
        match = _FENCE.match(line)
        if not fence:
            if match:
                margin, fence, language = match[1], match[2], _language(match[3])
                lines = []
        elif match and match[2][0] == fence[0] and len(match[2]) >= len(fence) and not match[3].strip():
            blocks.append(_Block("\n".join(lines), language, True))
            fence = ""
        elif match and match[2] == fence and not match[1] and _language(match[3]) in _PYTHON - {""}:
            # A new block opens where the last was never closed.
            blocks.append(_Block("\n".join(lines), language, False))
            margin, language, lines = match[1], _language(match[3]), []
        else:
            lines.append(line.removeprefix(margin) if ">" in margin else line)
    if fence:
        blocks.append(_Block("\n".join(lines), language, False))
    return blocks


def _language(info: str) -> str:
    words = re.split(r"[\s{:,]+", info.strip().lower().lstrip("{."), maxsplit=1)
    return words[0].rstrip("}")


def _unfenced(text: str) -> str:
    lines = text.split("\n")
    start = next((number for number, line in enumerate(lines) if _opens_code(line.strip())), None)
    if start is None:
        return ""
    margin = len(lines[start]) - len(lines[start].lstrip())
    end = start
    for number in range(start, len(lines)):
        line = lines[number]
        if not line.strip():
            continue
        if len(line) - len(line.lstrip()) <= margin and _is_prose(line.strip()):
            break
        end = number + 1
    return _tidy("\n".join(lines[start:end]))


def _is_prose(line: str) -> bool:
    """Whether a line at the code's left margin reads as a sentence or a heading rather than as Python."""
    if line.startswith(("#", "@", ")", "]", "}", '"', "'")) and not line.startswith(("##", "# #")):
        return False
    if _opens_code(line) or _parses(line):
        return False
    # Headers such as `for x in y:` and open brackets do not parse alone but end like Python.
    return not line.endswith((":", "(", "[", "{", ",", "\\")) or len(line.split()) > 12


def _opens_code(line: str) -> bool:
    return bool(_DEFINITION.match(line)) or (bool(_IMPORT.match(line)) and _parses(line))


def _parses(line: str) -> bool:
    if len(line) > _LONGEST_LINE:
        return False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ast.parse(line)
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return False
    return True


def _tidy(code: str) -> str:
    """Takes off the first line's indentation (text inside a string may have less) and outer blank lines."""
    lines = textwrap.dedent(code).rstrip().split("\n")
    start = next((number for number, line in enumerate(lines) if line.strip()), 0)
    margin = len(lines[start]) - len(lines[start].lstrip())
    kept = [line[margin:] if not line[:margin].strip() else line for line in lines[start:]]
    return "\n".join(kept) + "\n"
