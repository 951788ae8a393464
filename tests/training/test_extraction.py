"""Extraction of code from model output: made-up shapes with known answers, and real answers of large models."""

from __future__ import annotations

import ast
import gzip
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from training import completion, extraction
from training.completion import extract_program
from training.extraction import extract_code

F = "def f(x):\n    return x + 1\n"
G = "def g(x):\n    return x - 1\n"


def fence(code: str, language: str = "python") -> str:
    return f"```{language}\n{code}```\n"


@pytest.mark.parametrize(
    ("text", "code", "status"),
    [
        (fence(F), F, "ok"),
        ("Here it is:\n\n" + fence(F) + "\nIt adds one.", F, "ok"),
        (fence(G) + "then\n" + fence(F), F, "ok"),
        # The last block that defines the entry point, not a later example of its use.
        (fence(F) + "Use:\n" + fence("print(f(1))\n"), F, "ok"),
        (fence(G) + fence(F) + fence("print(f(1))\n"), F, "ok"),
        (fence("def f(x): pass\n") + "Better:\n" + fence(F), F, "ok"),
        (fence("def ff(x): pass\n") + fence("x = 1\n"), "x = 1\n", "ok"),
        (fence("async def f(x):\n    pass\n") + fence("x = 1\n"), "async def f(x):\n    pass\n", "ok"),
        (fence(F, "Python3"), F, "ok"),
        (fence(F, "py title=a.py"), F, "ok"),
        (fence(F, "{.python .numberLines}"), F, "ok"),
        (fence(F, ""), F, "ok"),
        (fence(F) + fence("f(1) = 2\n", "text"), F, "ok"),
        (fence(F) + fence("pip install x\n", "bash"), F, "ok"),
        ("~~~python\n" + F + "~~~\n", F, "ok"),
        ("````python\n" + F + "````\n", F, "ok"),
        # Three backticks inside a longer fence, and inside a docstring line, do not close it.
        ("````python\nS = '''\n```\n'''\n" + F + "````\n", "S = '''\n```\n'''\n" + F, "ok"),
        (fence('def f(x):\n    """Uses ``` inside."""\n'), 'def f(x):\n    """Uses ``` inside."""\n', "ok"),
        # Blocks inside a list or a quotation.
        ("1. So:\n\n   ```python\n   def f(x):\n       return x + 1\n   ```\n", F, "ok"),
        ("> ```python\n> def f(x):\n>     return x + 1\n> ```\n", F, "ok"),
        ("```python\n\n\n    def f(x):\n        return x + 1\n\n```", F, "ok"),
        # Text in a string keeps its blank lines and may stand left of the code.
        ("```python\nS = '''a\n    \nb'''\n" + F + "```\n", "S = '''a\n    \nb'''\n" + F, "ok"),
        (
            '  ```python\n  def f(x):\n      """\nleft\n      """\n      return x\n  ```\n',
            'def f(x):\n    """\nleft\n    """\n    return x\n',
            "ok",
        ),
        (fence(F).replace("\n", "\r\n"), F, "ok"),
        # The body alone, as after a prompt that ends in the signature.
        (fence("    return x + 1\n"), "return x + 1\n", "ok"),
        ("<think>\n" + fence(G) + "</think>\n" + fence(F), F, "ok"),
        ("<think>a</think> or " + fence(F) + "</think>\n" + fence(G), G, "ok"),
        (fence(F) + "</think>\nNo code here, sorry.", "", "no_code"),
        ("<think>\n" + fence(F) + "and then", "", "truncated"),
        ("Sure:\n```python\n" + F, F, "truncated"),
        ("```python\ndef f(x):\n    return x +", "def f(x):\n    return x +\n", "truncated"),
        (fence(F) + "And:\n```python\nprint(f", F, "ok"),
        ("```python\n" + G + "\n```python\n" + F + "```\n", F, "ok"),
        (F, F, "ok"),
        ("Sure, here is the code:\n\n" + F + "\nThis adds one to its argument, as asked.", F, "ok"),
        ("import math\nfrom re import sub\n\n" + F, "import math\nfrom re import sub\n\n" + F, "ok"),
        ("import what you need and go on.\n\n" + F, F, "ok"),
        ("@cache\n" + F + "\nprint(f(1))\nNote that this is slow.", "@cache\n" + F + "\nprint(f(1))\n", "ok"),
        ("    def f(x):\n        return x + 1\n", F, "ok"),
        ("I do not know.", "", "no_code"),
        ("", "", "no_code"),
        ("```python\n\n```", "", "no_code"),
        ("define the function f as follows", "", "no_code"),
        # Reasoning in the tags of other families.
        ("[THINK]" + fence(G) + "[/THINK]" + F, F, "ok"),
        ("<|begin_of_thought|>\n" + G + "<|end_of_thought|>\n" + fence(F), F, "ok"),
        ("<|channel|>analysis<|message|>" + G + "<|end|><|start|>assistant<|channel|>final<|message|>" + F, F, "ok"),
        ("<|channel|>analysis<|message|>so " + G, "", "truncated"),
        ("<reasoning>\n" + fence(F), "", "truncated"),
        # The model went on after its turn.
        (fence(F) + "<|im_end|>\n<|im_start|>user\nNow g.\n" + fence(G), F, "ok"),
        (F + "<|endoftext|>" + G, F, "ok"),
        (F + "</s>", F, "ok"),
        # Blocks in tags, with and without a fence in them, in a few-shot's brackets.
        ("[PYTHON]\n" + F + "[/PYTHON]\n[TESTS]\nassert f(1) == 3\n[/TESTS]", F, "ok"),
        ("[PYTHON]\n```python\n" + F + "```\n[/PYTHON]", F, "ok"),
        ("[BEGIN]\n" + F + "[DONE]\n[BEGIN]\n" + G + "[DONE]", F, "ok"),
        (F + "[DONE]\nYou are an expert", F, "ok"),
        # Fences that stand on a line with something else.
        ("Answer: ```python\n" + F + "```", F, "ok"),
        ("```python\ndef f(x):\n    return x + 1```\nDone.", F, "ok"),
        ("Use ``` or `x`.\n" + fence(F), F, "ok"),
        ("```python\n>>> def f(x):\n...     return x + 1\n...\n>>> f(1)\n2\n```", F + "\nf(1)\n", "ok"),
    ],
)  # fmt: skip
def test_shapes(text: str, code: str, status: str) -> None:
    found = extract_code(text, "f")
    assert (found.code, found.status) == (code, status)


def test_without_an_entry_point_the_last_block_counts() -> None:
    assert extract_code(fence(F) + fence(G)).code == G


@pytest.mark.parametrize(
    "piece",
    [
        "```python\n", "```\n", "~~~\n", "def f(x):\n", "    \n", "\n", "import a        b\n", "</think>", "<think>",
        "x = (", "` ", "[BEGIN]\n", "a ```python\n", "x```\n", "<|im_end|", ">>> ",
        "> ", "from ", " " * 50 + "import", "(" * 50,
    ],
)  # fmt: skip
def test_time_is_linear(piece: str) -> None:
    """Fifty thousand repetitions take a quadratic reader minutes; the bound only tells those apart."""
    text = piece * 50_000
    started = time.process_time()
    extract_code(text, "f")
    assert time.process_time() - started < 8


@pytest.mark.parametrize(
    "piece",
    [
        "```python\ndef f(x):\n    return x\n```\n",
        "def f(x):\n    return x\n\n",
        "words and\n",
        "    x = 1\n",
        "x = (\n",
        "x```\n",
    ],
)
@pytest.mark.parametrize("prefix", ["", "def f(x):\n"])
def test_work_is_linear(piece: str, prefix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines of Python that run, and characters that are parsed: twice the text, at most twice the work."""
    modules = {extraction.__file__, completion.__file__}

    def work(count: int) -> int:
        steps = 0
        parse = ast.parse

        def counted(source: str, *rest: Any, **named: Any) -> Any:
            nonlocal steps
            steps += len(source)
            return parse(source, *rest, **named)

        def trace(frame: Any, event: str, argument: object) -> Any:
            nonlocal steps
            steps += event == "line"
            return trace if frame.f_code.co_filename in modules else None

        text = piece * count
        with monkeypatch.context() as patch:
            patch.setattr(ast, "parse", counted)
            before = sys.gettrace()
            sys.settrace(trace)
            try:
                extract_program(text, entry_point="f", prefix=prefix)
            finally:
                sys.settrace(before)
        return steps

    small, large = work(200), work(400)
    assert 0 < large <= 2.1 * small


def data_folder() -> Path:
    given = os.environ.get("STRUCTLOSS_DATA")
    return Path(given) if given else Path(__file__).parents[3] / "shared" / "data"


def test_real_answers_of_large_models() -> None:
    path = data_folder() / "traces" / "mbpp_gpt_traces.jsonl.gz"
    if not path.is_file():
        pytest.skip("no teacher traces: set STRUCTLOSS_DATA to a folder with traces/mbpp_gpt_traces.jsonl.gz")
    with gzip.open(path, "rt") as file:
        rows: list[dict[str, Any]] = [json.loads(line) for line in file]
    known = agree = parse = 0
    for row in rows:
        code = extract_code(row["response"], row["entry_point"]).code
        try:
            tree = ast.parse(code)
            parse += 1
        except SyntaxError:
            continue
        if row["parses"]:
            known += 1
            agree += ast.dump(tree) == ast.dump(ast.parse(row["code"]))
    # The labels come from another extractor, which left 15 of 794 without code that parses; two differ for good reason:
    # there it took an indented helper of an earlier example.
    assert parse == len(rows) == 794
    assert known == 779
    assert agree >= 777


def test_real_programs_behind_prose_and_in_fences() -> None:
    """Programs of nine models and methods come out of what chats put around them as the same programs."""
    path = data_folder() / "traces" / "mbpp_candidates.jsonl.gz"
    if not path.is_file():
        pytest.skip("no candidates: set STRUCTLOSS_DATA to a folder with traces/mbpp_candidates.jsonl.gz")
    with gzip.open(path, "rt") as file:
        codes = [row["code"] for row in map(json.loads, file) if row["parses"]]
    assert len(codes) == 4987
    for code in codes[::7]:
        expected = ast.dump(ast.parse(code))
        for answer in (
            code,
            f"So:\n```python\n{code}\n```\nDone.",
            f"Sure, here is the code:\n\n{code}\n\nThis solves it, as asked.",
        ):
            assert ast.dump(ast.parse(extract_code(answer).code)) == expected
