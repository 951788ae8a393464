"""Takes the program out of a model's answer: fences, reasoning, answers that stop half-way. Linear time.

`extract_code` finds the code in an answer; `completion.py` makes a whole program of it.
"""

from __future__ import annotations

import ast
import re
import warnings
from dataclasses import dataclass
from typing import Literal

EXTRACTOR = "structloss-2"

_FENCE = re.compile(r"^([ \t]*(?:>[ \t]?)?)(`{3,}|~{3,})([^\n`]*)$")
_DEFINITION = re.compile(r"@\w|(?:async\s+)?def\s+\w+\s*[(\[]|class\s+\w+\s*[(:]")
_IMPORT = re.compile(r"(?:import|from)\s+\w")
_LONGEST_LINE = 400
_PYTHON = {"", "python", "python3", "py", "py3", "python2", "ipython", "pycon", "python-repl"}
# Tags that open and close reasoning, as models and their chat templates write them.
_REASONING = (
    ("<think>", "</think>"),
    ("<thinking>", "</thinking>"),
    ("<reasoning>", "</reasoning>"),
    ("[THINK]", "[/THINK]"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
    ("◁think▷", "◁/think▷"),
    ("<|channel|>analysis<|message|>", "<|channel|>final<|message|>"),
)
# Where the answer ends, even if the model went on after it.
_END_OF_TURN = re.compile(
    r"<\|(?:endoftext|im_end|eot_id|end_of_text|eom_id|return|end|EOT|user|im_start)\|>|<end_of_turn>"
)
_TAGS = {"[python]": "[/python]", "[begin]": "[done]", "<code>": "</code>"}
_CLOSING_TAGS = tuple(_TAGS.values())


@dataclass(frozen=True)
class Extraction:
    """`code` is dedented and ends in a line break ("" if there is none).

    ok: a whole block, or a text without fences that holds code. truncated: the text ends inside the reasoning
    or inside the block that was taken. no_code: nothing that looks like code.
    """

    code: str
    status: Literal["ok", "no_code", "truncated"]


@dataclass(frozen=True)
class Block:
    """A fenced or tagged block; closed: its end is there."""

    code: str
    language: str
    closed: bool


def extract_code(text: str, entry_point: str | None = None) -> Extraction:
    """The last Python block of the answer that defines `entry_point`, else the last Python block.

    Reasoning is cut at the last tag that closes one; an answer that never leaves its reasoning is truncated. Blocks
    in other languages count only if there is no Python one. Without any fence, the code starts at the first line that
    can only be Python (an import, `def`, `class`, a decorator) and ends before the first prose at its left margin.
    """
    answer = answer_of(text)
    if answer is None:
        return Extraction("", "truncated")
    block = chosen_block(answer, entry_point)
    if block is None:
        code = unfenced(answer)
        return Extraction(code, "ok") if code else Extraction("", "no_code")
    return Extraction(_tidy(_without_prompts(block.code)), "ok" if block.closed else "truncated")


def answer_of(text: str) -> str | None:
    """What the model says after its reasoning and before it ends its turn; None if it never ends its reasoning."""
    text = text.replace("\r\n", "\n").replace("\r", "\n").removeprefix("\ufeff")
    end, tag = max((text.rfind(closing), closing) for _, closing in _REASONING)
    if end >= 0:
        text = text[end + len(tag) :]
    # Where a chat template wrote the opening tag, an unclosed reasoning cannot be told from an answer.
    elif text.lstrip().startswith(tuple(opening for opening, _ in _REASONING)):
        return None
    turn = _END_OF_TURN.search(text)
    text = text[: turn.start()] if turn else text
    bare = text.rstrip()
    return bare.removesuffix("</s>") if bare.endswith("</s>") else text


def chosen_block(answer: str, entry_point: str | None = None) -> Block | None:
    """The block that counts, see `extract_code`; None if the answer has no block."""
    blocks = [block for block in _blocks(answer) if block.code.strip()]
    if not blocks:
        return None
    candidates = [block for block in blocks if block.language in _PYTHON] or blocks
    if entry_point is not None:
        for block in reversed(candidates):
            if defines(block.code, entry_point):
                return block
    return candidates[-1]


def defines(code: str, name: str) -> bool:
    """Whether a line of the code begins the definition of a function or class of that name, at any margin."""
    return bool(re.search(rf"^[ \t>.]*(?:async[ \t]+)?(?:def|class)[ \t]+{re.escape(name)}\b", code, re.MULTILINE))


def _blocks(text: str) -> list[Block]:
    """Fenced or tagged blocks, in one pass. A fence closes with as many (or more) of its character, alone on a line."""
    blocks: list[Block] = []
    lines: list[str] = []
    fence = language = margin = ""
    glued = -1
    for line in text.split("\n"):
        match = _FENCE.match(line)
        if not fence:
            tag = line.strip().lower()
            if match:
                margin, fence, language = match[1], match[2], _language(match[3])
            elif tag in _TAGS:
                margin, fence, language = "", _TAGS[tag], ""
            elif opened := _opened_after_prose(line):
                margin, fence, language = "", "```", opened
            lines, glued = [], -1
        elif fence in _CLOSING_TAGS and not match:
            at = line.lower().find(fence)
            lines.append(line if at < 0 else line[:at])
            if at >= 0:
                blocks.append(Block("\n".join(lines), language, True))
                fence = ""
        elif fence in _CLOSING_TAGS:
            # A fenced block in a tagged one: the fence counts.
            assert match
            margin, fence, language, lines = match[1], match[2], _language(match[3]), []
        elif match and match[2][0] == fence[0] and len(match[2]) >= len(fence) and not match[3].strip():
            blocks.append(Block("\n".join(lines), language, True))
            fence = ""
        elif match and match[2] == fence and not match[1] and _language(match[3]) in _PYTHON - {""}:
            # A new block opens where the last was never closed.
            blocks.append(Block("\n".join(lines), language, False))
            margin, language, lines, glued = match[1], _language(match[3]), [], -1
        else:
            if glued < 0 and line.endswith(fence) and line.strip(" \t>") != fence:
                glued = len(lines)
            lines.append(line.removeprefix(margin) if ">" in margin else line)
    if fence:
        # A fence behind the last line of code closes a block that nothing else does.
        closed = glued >= 0
        kept = [*lines[:glued], lines[glued].removesuffix(fence)] if closed else lines
        blocks.append(Block("\n".join(kept), language, closed))
    return blocks


def _opened_after_prose(line: str) -> str:
    """The language of a fence that opens behind a sentence on the same line, "" if none does."""
    before, fence, info = line.rpartition("```")
    language = _language(info)
    return language if fence and before.strip() and "`" not in before and language in _PYTHON - {""} else ""


def _without_prompts(code: str) -> str:
    """The input of an interactive session, without its `>>>` and without what Python answered."""
    if not code.lstrip().startswith(">>> "):
        return code
    lines = code.strip("\n").split("\n")
    margin = len(lines[0]) - len(lines[0].lstrip())
    return "\n".join(line[margin + 4 :] for line in lines if line[margin : margin + 4].rstrip() in (">>>", "..."))


def _language(info: str) -> str:
    words = re.split(r"[\s{:,]+", info.strip().lower().lstrip("{."), maxsplit=1)
    return words[0].rstrip("}")


def unfenced(text: str) -> str:
    """The code of an answer without blocks; "" if no line opens code."""
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
        if line.strip().lower() in _CLOSING_TAGS:
            break
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
    lines = code.rstrip().split("\n")
    start = next((number for number, line in enumerate(lines) if line.strip()), 0)
    margin = len(lines[start]) - len(lines[start].lstrip())
    kept = [line[margin:] if not line[:margin].strip() else line for line in lines[start:]]
    return "\n".join(kept) + "\n"
