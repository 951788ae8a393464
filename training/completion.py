"""Makes a whole program of an answer: of code beside a prompt, or of text that goes on where a signature ends.

HumanEval's prompt ends inside a function. Models answer with the body alone, with the body and further definitions,
with a body that lost its indentation, with the whole function, or with a chat around any of these.
"""

from __future__ import annotations

import ast
import re
import warnings

from training.extraction import Extraction, answer_of, chosen_block, defines, extract_code, unfenced

# Parses a candidate may take before it counts as cut: each takes off the top-level statement with the error.
_CUTS = 3


def extract_program(text: str, *, entry_point: str, prefix: str = "") -> Extraction:
    """The whole program that an answer stands for.

    prefix: the code that the model was asked to continue: imports, helpers, signature, docstring ("" if the answer
    is to be a program of its own). Code that defines `entry_point` is a program; what stands in `prefix` before
    the function (imports, helpers) is put in front of it. Other code is the body that `prefix` waits for, followed by
    definitions; top-level statements after it that define nothing (prints, asserts, prose) are cut off.
    """
    if not prefix.strip():
        return extract_code(text, entry_point)
    answer = answer_of(text)
    if answer is None:
        return Extraction("", "truncated")
    block = chosen_block(answer, entry_point)
    if block is not None:
        found = extract_code(text, entry_point)
        if defines(block.code, entry_point):
            return Extraction(_behind_preamble(found.code, entry_point, prefix), found.status)
        # Not `found.code`: of a body alone, the margin says how the rest is indented.
        program = complete(prefix, block.code, entry_point)
        return Extraction(program or found.code, found.status if program else "no_code")
    if not _starts_with_body(answer) and defines(answer, entry_point):
        return Extraction(_behind_preamble(unfenced(answer), entry_point, prefix), "ok")
    program = complete(prefix, answer, entry_point) or complete(prefix, _from_first_indented(answer), entry_point)
    if program:
        return Extraction(program, "ok")
    code = unfenced(answer)
    if code:
        return Extraction(_behind_preamble(code, entry_point, prefix), "ok")
    # A body that breaks off in its first statement is the model's answer all the same.
    return Extraction(prefix + answer, "truncated") if _starts_with_body(answer) else Extraction("", "no_code")


def complete(prefix: str, text: str, entry_point: str) -> str:
    """`prefix` and the part of `text` that continues it, "" if nothing does. The number of parses is bounded."""
    lines = text.strip("\n").split("\n")
    first = next((line for line in lines if line.strip()), "")
    margin = len(first) - len(first.lstrip())
    wanted = _body_indentation(prefix)
    as_is = "\n".join(lines)
    # The tokens of an answer's first line often lose the space in front of them.
    first_indented = "\n".join([wanted + lines[0], *lines[1:]])
    moved = "\n".join(_moved(line, margin, wanted) for line in lines)
    if not first:
        return ""
    if margin:
        return _cut(prefix, as_is, entry_point) or _cut(prefix, moved, entry_point)
    # Where the whole body lost its indentation, its other lines would stand outside of the function.
    return _cut(prefix, first_indented, entry_point, inside=True) or _cut(prefix, moved, entry_point)


def _starts_with_body(text: str) -> bool:
    first = next((line for line in text.split("\n") if line.strip()), "")
    return first[:1] in (" ", "\t")


def _from_first_indented(text: str) -> str:
    lines = text.split("\n")
    return "\n".join(
        lines[next((i for i, line in enumerate(lines) if line[:1] in (" ", "\t") and line.strip()), len(lines)) :]
    )


def _moved(line: str, margin: int, wanted: str) -> str:
    return wanted + line[margin:] if line.strip() and not line[:margin].strip() else line


def _body_indentation(prefix: str) -> str:
    """The indentation of the docstring, or four spaces under a bare signature."""
    last = next((line for line in reversed(prefix.split("\n")) if line.strip()), "")
    return last[: len(last) - len(last.lstrip())] or "    "


def _cut(prefix: str, body: str, entry_point: str, *, inside: bool = False) -> str:
    """`prefix + body` up to the first top-level statement that does not parse or defines nothing; "" without a body.

    inside: also "" if a `return` stands outside of every function.
    """
    joint = "" if prefix.endswith("\n") else "\n"
    lines = (prefix + joint + body).split("\n")
    start = (prefix + joint).count("\n")
    for _ in range(_CUTS):
        tree, error_line = _parse("\n".join(lines))
        if tree is not None:
            if inside and any(map(_returns, tree.body)):
                return ""
            end = _end_of_definitions(tree, start, entry_point)
            return "\n".join(lines[:end]).rstrip() + "\n" if end > start else ""
        top = next((i for i in range(min(error_line, len(lines)) - 1, start, -1) if lines[i][:1].strip()), None)
        if top is None:
            return ""
        lines = lines[:top]
    # What follows the body is a wild mix: the body alone.
    top = next((i for i in range(start, len(lines)) if lines[i][:1].strip()), len(lines))
    tree, _ = _parse("\n".join(lines[:top]))
    end = _end_of_definitions(tree, start, entry_point) if tree is not None else 0
    return "\n".join(lines[:end]).rstrip() + "\n" if end > start else ""


def _parse(source: str) -> tuple[ast.Module | None, int]:
    """The tree, or None and the line of the error."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return ast.parse(source), 0
    except SyntaxError as error:
        return None, error.lineno or 1
    except (ValueError, MemoryError, RecursionError):
        return None, 1


def _end_of_definitions(tree: ast.Module, start: int, entry_point: str) -> int:
    """The last line to keep; 0 if the function has no body beyond line `start`."""
    function = next(
        (
            node
            for node in tree.body
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
            and node.name == entry_point
            and (node.end_lineno or 0) > start
        ),
        None,
    )
    if function is None or not any(_does_something(node) for node in function.body if node.lineno > start):
        return 0
    end = function.end_lineno or 0
    for node in tree.body[tree.body.index(function) + 1 :]:
        again = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)) and node.name == entry_point
        if again or not isinstance(node, _DEFINING):
            break
        end = node.end_lineno or end
    return end


_DEFINING = (
    ast.FunctionDef,
    ast.AsyncFunctionDef,
    ast.ClassDef,
    ast.Import,
    ast.ImportFrom,
    ast.Assign,
    ast.AnnAssign,
)


def _returns(node: ast.AST) -> bool:
    """Whether a statement returns or yields outside of every function."""
    waiting = [node]
    while waiting:
        node = waiting.pop()
        if isinstance(node, (ast.Return, ast.Yield, ast.YieldFrom)):
            return True
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)):
            waiting.extend(ast.iter_child_nodes(node))
    return False


def _does_something(node: ast.stmt) -> bool:
    """Not a bare name, which is how a word of prose parses."""
    return not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Name))


def _behind_preamble(code: str, entry_point: str, prefix: str) -> str:
    """`code` behind the imports and helpers of the prompt; a name that the code defines anew wins."""
    found = re.search(rf"^(?:async[ \t]+)?def[ \t]+{re.escape(entry_point)}\b", prefix, re.MULTILINE)
    preamble = prefix[: found.start()].strip("\n") if found else ""
    # Imports from the future must come first.
    if not preamble.strip() or not code or "from __future__" in code:
        return code
    return f"{preamble}\n\n\n{code}"
