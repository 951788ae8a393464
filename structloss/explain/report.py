"""Which parts of the teacher's program the student has, and which it lacks: a diff of two syntax trees."""

from __future__ import annotations

import shutil
from collections import Counter

from structloss.tree_alignment import align_trees
from structloss.trees import Tree, TreeBatch, kind_names, parse
from structloss.trees.syntax_tree import as_bytes

from .merged_tree import Line, merged_lines
from .terminal import colored, cut, display_width, visible, wants_color

_MARKERS = {"matched": "=", "changed": "~", "missing": "-", "extra": "+"}
_LEGEND = (
    ("matched", "matched"),
    ("changed", "changed (student -> teacher)"),
    ("missing", "missing (teacher only)"),
    ("extra", "extra (student only)"),
)
_LEAST_WIDTH = 40


def explain(
    student_source: str | bytes,
    teacher_source: str | bytes,
    *,
    language: str = "python",
    color: bool | None = None,
    width: int | None = None,
) -> str:
    """A diff of the syntax trees of two programs, as text for a terminal.

    Both trees are aligned at unit costs and shown as one: a line a node with its marker, kind and source. A part that
    is equal in both is one line. Broken code is shown as far as it can be recognised.

    color: ANSI colours; default: if standard output is a terminal and NO_COLOR is not set. Without them the markers
    say the same. width: columns of a line, at least 40; default: those of the terminal.

    Raises ValueError for an unknown language or too small a width, TypeError where a source is neither str nor bytes.

    >>> print(explain("x = f(1)", "y = f(1)", width=60))
    = matched  ~ changed (student -> teacher)
    - missing (teacher only)  + extra (student only)
    <BLANKLINE>
    = module  x = f(1)
      = assignment  x = f(1)
        ~ identifier  x -> y
        = call  f(1)  (4 nodes)
    <BLANKLINE>
    distance 1, similarity 0.857: 6 matched, 1 changed, 0 missing, 0 extra
    student: 7 nodes, 0.0 % of 8 bytes not understood
    teacher: 7 nodes, 0.0 % of 8 bytes not understood
    """
    if width is None:
        width = max(_LEAST_WIDTH, shutil.get_terminal_size((100, 24)).columns)
    elif width < _LEAST_WIDTH:
        raise ValueError(f"width: got {width}, wants at least {_LEAST_WIDTH} columns")
    color = wants_color() if color is None else color
    sources = (as_bytes(student_source), as_bytes(teacher_source))
    student, teacher = (parse(source, language) for source in sources)
    alignment = align_trees(TreeBatch.from_trees([student]), TreeBatch.from_trees([teacher]), method="auto")
    lines = merged_lines(student, teacher, alignment.match_a[0, : student.size].numpy())
    names = kind_names(language)

    rows = _legend(width, color)
    rows += [_row(line, (student, teacher), sources, names, width, color) for line in lines] or ["(two empty trees)"]
    counts = Counter(dict.fromkeys(_MARKERS, 0))
    for line in lines:
        counts[line.status] += line.nodes
    distance = float(alignment.distance[0])
    similarity = max(0.0, 1.0 - distance / max(student.size, teacher.size, 1))
    rows += ["", colored(f"distance {distance:g}, similarity {similarity:.3f}", "strong" if color else None)]
    rows[-1] += ": " + ", ".join(f"{counts[status]} {status}" for status in _MARKERS)
    if alignment.method[0] == "flattened":
        rows.append(
            "The trees are too large for the exact distance: it is a lower bound (sequences of nodes), and pairs"
        )
        rows.append("that would cross are shown as missing and extra.")
    for who, tree in (("student", student), ("teacher", teacher)):
        rows.append(
            f"{who}: {tree.size} nodes, {100 * tree.error_share:.1f} % of {tree.source_bytes} bytes not understood"
        )
    return "\n".join(rows)


def _legend(width: int, color: bool) -> list[str]:
    rows, used = [""], 0
    for status, text in _LEGEND:
        entry = f"{_MARKERS[status]} {text}"
        if used and used + 2 + len(entry) > width:
            rows.append("")
            used = 0
        rows[-1] += ("  " if used else "") + colored(entry, _color_of(status, color))
        used += 2 * bool(used) + len(entry)
    return [*rows, ""]


def _color_of(status: str, color: bool) -> str | None:
    return (status if status != "matched" else "faint") if color else None


def _row(
    line: Line, trees: tuple[Tree, Tree], sources: tuple[bytes, bytes], names: tuple[str, ...], width: int, color: bool
) -> str:
    nodes = (line.student, line.teacher)
    kinds = [names[tree.kind[node]] for tree, node in zip(trees, nodes, strict=True) if node is not None]
    excerpts = [
        visible(source[slice(*tree.byte_span[node].tolist())])
        for tree, source, node in zip(trees, sources, nodes, strict=True)
        if node is not None
    ]
    indent = "  " * line.depth
    if len(indent) > width // 3:
        indent = f"[{line.depth} deep] "
    head = f"{indent}{_MARKERS[line.status]} "
    head += " -> ".join(dict.fromkeys(kinds)) if line.status == "changed" else kinds[0]
    tail = f"  ({line.nodes} nodes)" if line.nodes > 1 else ""
    head = cut(head, width - len(tail))
    room = width - display_width(head) - len(tail) - 2
    if line.status == "changed":
        # Each has half of the room, and what the other leaves over.
        half = (room - 4) // 2
        other = display_width(excerpts[1])
        one = cut(excerpts[0], max(half, room - 4 - other)) if half > 0 else ""
        excerpt = f"{one} -> {cut(excerpts[1], room - 4 - display_width(one))}" if half > 0 else ""
    else:
        # An operator's kind is its text.
        excerpt = cut(excerpts[0], room) if room > 0 and excerpts[0] != kinds[0] else ""
    return colored(head + (f"  {excerpt}" if excerpt else "") + tail, _color_of(line.status, color))
