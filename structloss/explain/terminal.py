"""Text for a terminal: how wide it is, how it is cut, what must not reach it, and colours."""

from __future__ import annotations

import os
import sys
import unicodedata

COLORS = {"changed": "33", "missing": "31", "extra": "36", "faint": "2", "strong": "1"}


def wants_color() -> bool:
    """Whether standard output is a terminal that shows colours and its user did not refuse them (NO_COLOR)."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def colored(text: str, color: str | None) -> str:
    return f"\x1b[{COLORS[color]}m{text}\x1b[0m" if color else text


def display_width(text: str) -> int:
    """Columns of a terminal that `text` takes: two for wide characters, none for combining ones."""
    return sum(_columns(character) for character in text)


def cut(text: str, width: int) -> str:
    """`text` in at most `width` columns, with an ellipsis where something is cut off."""
    if display_width(text) <= width:
        return text
    left = width - 1
    for k, character in enumerate(text):
        left -= _columns(character)
        if left < 0:
            return text[:k] + "…"
    raise AssertionError("the text is wider than the width")


def visible(source: bytes) -> str:
    """`source` on one line: white space as one space, and everything that steers a terminal as an escape."""
    text = " ".join(source.decode("utf-8", "backslashreplace").split())
    return "".join(_escaped(character) if _steers(character) else character for character in text)


def _columns(character: str) -> int:
    if unicodedata.category(character) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def _steers(character: str) -> bool:
    """Control characters, and those that turn the direction of writing."""
    return unicodedata.category(character) in ("Cc", "Co", "Cs", "Zl", "Zp") or unicodedata.bidirectional(
        character
    ) in (
        *("LRE", "RLE", "LRO", "RLO", "PDF"),
        *("LRI", "RLI", "FSI", "PDI"),
    )


def _escaped(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
