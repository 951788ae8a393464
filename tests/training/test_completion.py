"""Whole programs from answers to a signature: made-up shapes with known programs, and HumanEval's own solutions."""

from __future__ import annotations

import ast
import textwrap

import pytest

from tests.training.benchmarks.rows import data_folder
from training.completion import extract_program
from training.jsonl import read_jsonl

PREFIX = 'import math\n\n\ndef helper(x):\n    return x\n\n\ndef f(x):\n    """Add one.\n    >>> f(1)\n    2\n    """\n'
BODY = "    y = helper(x)\n    if y:\n        return y + 1\n    return 1\n"
WHOLE = PREFIX[PREFIX.index("def f") :] + BODY
OTHER = "def other(x):\n    return x\n"


@pytest.mark.parametrize(
    ("answer", "tail"),
    [
        (BODY, ""),
        ("\n" + BODY + "\n\n", ""),
        # What a body alone, and a body with more behind it, keeps.
        (BODY + "\n\n" + OTHER, OTHER),
        (BODY + "\n\nLIMIT = 3\n\n\n" + OTHER, "LIMIT = 3\n" + OTHER),
        (BODY + "\n\n" + OTHER + "\n\nprint(f(1))\n", OTHER),
        (BODY + "\n\nif __name__ == '__main__':\n    main()\n", ""),
        (BODY + "\n\nassert f(1) == 3\n" + OTHER, ""),
        (BODY + "\n# Test:\nprint(f(1))\n", ""),
        (BODY + "\n\nThis adds one, as asked.\n", ""),
        (BODY + "\n\n" + OTHER + "\n\nThis adds one, as asked.\n", OTHER),
        (BODY + "\n\n" + WHOLE, ""),
        (BODY + "\n\n" + OTHER + "\n\ndef half(x):\n    return (", OTHER),
        (BODY + "\n" + "words of prose: (\n" * 9 + OTHER, ""),
        (BODY + "<|endoftext|>\n" + OTHER, ""),
        # Indentation that was lost or changed.
        (BODY.strip(), ""),
        (textwrap.dedent(BODY), ""),
        (textwrap.indent(BODY, "    "), ""),
        (textwrap.indent(textwrap.dedent(BODY), "  "), ""),
        # Chats around it.
        ("```python\n" + BODY + "```\n", ""),
        ("Sure:\n```python\n" + textwrap.dedent(BODY) + "```\nIt adds one.", ""),
        ("<think>\ndef f(x): pass\n</think>\n" + BODY, ""),
        ("Here is the rest of the function:\n\n" + BODY, ""),
        # The whole function: the prompt's imports and helpers stand in front of it.
        (WHOLE, ""),
        ("```python\n" + WHOLE + "```", ""),
        ("Sure, here it is.\n\n" + WHOLE + "\n\nIt adds one.", ""),
        ("```python\n" + WHOLE + "\n\n" + OTHER + "```", OTHER),
    ],
)  # fmt: skip
def test_shapes(answer: str, tail: str) -> None:
    found = extract_program(answer, entry_point="f", prefix=PREFIX)
    assert found.status == "ok"
    assert ast.dump(ast.parse(found.code)) == ast.dump(ast.parse(PREFIX + BODY + tail))


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        ("", "no_code"),
        ("I do not know.", "no_code"),
        ("Sorry", "no_code"),
        ("<think>\n" + BODY, "truncated"),
        ("    for i in (", "truncated"),
        ("```python\ndef f(x):\n    return (", "truncated"),
    ],
)
def test_no_program(answer: str, status: str) -> None:
    assert extract_program(answer, entry_point="f", prefix=PREFIX).status == status


def test_a_body_that_breaks_off_keeps_what_was_written() -> None:
    found = extract_program("    y = x\n    for i in (", entry_point="f", prefix=PREFIX)
    assert (found.code, found.status) == (PREFIX + "    y = x\n    for i in (", "truncated")


def test_a_bare_signature() -> None:
    for answer in ("    return x + 1", "return x + 1", "```\nreturn x + 1\n```", "def f(x):\n    return x + 1"):
        found = extract_program(answer, entry_point="f", prefix="def f(x):\n")
        assert found.code == "def f(x):\n    return x + 1\n", answer


def test_imports_from_the_future_stay_first() -> None:
    code = "from __future__ import annotations\n\n\ndef f(x):\n    return x\n"
    assert extract_program(code, entry_point="f", prefix=PREFIX).code == code


def test_without_a_prefix_it_is_the_code_of_the_answer() -> None:
    assert extract_program("```\nx = 1\n```", entry_point="f").code == "x = 1\n"


@pytest.mark.parametrize(
    "body",
    [
        "    return x" + ".a" * 100_000,
        "    return " + "-" * 100_000 + "1",
        "    return " + "(" * 100_000,
        "    return 1" + "+1" * 100_000,
        "    return " + "lambda:" * 20_000 + "1",
        "    if x: pass\n" + "    elif x: pass\n" * 20_000,
        "".join(" " * (4 + i) + "if x:\n" for i in range(1500)),
        '    return "\0"',
        '    return "\ud800"',
    ],
    ids=["attributes", "minus", "brackets", "sum", "lambda", "elif", "indents", "null", "surrogate"],
)
def test_answers_that_break_parsers(body: str) -> None:
    """They are parsed in the grader's own process: whatever is in them, it must live."""
    found = extract_program(body, entry_point="f", prefix=PREFIX)
    assert found.code.startswith(PREFIX + body[:20])


def test_humanevals_solutions_in_every_shape() -> None:
    """The program that comes out is the prompt with the solution, whatever was lost or put around it."""
    folder = data_folder("humaneval/HumanEval.jsonl.gz")
    for row in read_jsonl(folder / "humaneval" / "HumanEval.jsonl.gz"):
        prompt, body, name = row["prompt"], row["canonical_solution"], row["entry_point"]
        expected = ast.dump(ast.parse(prompt + body))
        function = prompt[prompt.rindex(f"def {name}") :] + body
        for shape, answer in {
            "as is": body,
            "stripped": body.strip(),
            "dedented": textwrap.dedent(body),
            "fenced body": f"```python\n{body}```",
            "fenced, dedented": f"Here:\n```python\n{textwrap.dedent(body)}```\nDone.",
            "with a test": f"{body}\n\nprint({name})\nassert False\n",
            "with prose": f"{body}\n\nThis is how it's done.\n",
            "whole": f"```python\n{function}```",
            "whole, no fence": function,
            "everything": f"```python\n{prompt + body}```",
        }.items():
            found = extract_program(answer, entry_point=name, prefix=prompt)
            # The whole of it brings the prompt's imports and helpers once more.
            tree = ast.parse(found.code)
            if shape == "everything":
                before = len(ast.parse(prompt[: prompt.rindex(f"def {name}")]).body)
                del tree.body[:before]
            assert ast.dump(tree) == expected, (row["task_id"], shape)
