"""Digests of results that are too large to carry out of the sandbox, made beside the program.

A few references return up to 6 million tuples, strings of megabytes or numbers of a million digits. Where a
reference's result is that large, reference and candidate give its SHA-256 instead; integral floats in a list count as
integers there, as in a comparison by `==`, and nested values must have the reference's types. A program gains
nothing by making the digest itself: it would have to know the right result.
"""

from __future__ import annotations

from typing import Any

from training import plain_data

# Bytes of the result's marshalled form above which its digest stands for it.
LARGE = 1 << 16

# Runs in the sandbox, after the program.
SOURCE = f"""
def _digest(value):
    import hashlib, marshal
    kind = type(value)
    if kind not in (str, int, list, tuple):
        return value
    if kind in (str, int):
        data = marshal.dumps(value, 0)
        return hashlib.sha256(data).hexdigest() if len(data) > {LARGE} else value
    total, size = hashlib.sha256(f"{{kind.__name__}} {{len(value)}}".encode()), 0
    for start in range(0, len(value), 4096):
        part = [int(x) if type(x) is float and x.is_integer() else x for x in value[start : start + 4096]]
        data = marshal.dumps(part, 0)
        size += len(data)
        total.update(data)
    return total.hexdigest() if size > {LARGE} else value
"""


def digest_call(entry_point: str, call: list[Any]) -> str:
    """The expression that calls the entry point with the encoded arguments and digests what it returns, if large."""
    arguments = [plain_data.decode(argument) for argument in call]
    return f"_digest({entry_point}(*{arguments!r}))"
