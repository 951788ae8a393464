"""`python -m structloss.explain STUDENT TEACHER`: the diff of the syntax trees of two files."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from structloss.trees.kinds import LANGUAGES

from .report import explain

_LANGUAGE_OF = {".java": "java", ".js": "javascript", ".jsx": "javascript", ".mjs": "javascript", ".cjs": "javascript"}

_HOW_TO_READ = """\
how to read it:
  Both files are parsed to syntax trees, and the trees are aligned: the mapping of nodes with the fewest edits that
  keeps which node is inside which, and their order. The output is one tree, a line for each node:

    =  matched   the same in both; a part that is equal down to its leaves is one line
    ~  changed   stands at the same place, but is another thing (another name, operator, number, kind of statement)
    -  missing   only the teacher's program has it: this is what the student should learn
    +  extra     only the student's program has it

  Layout, comments and brackets are no nodes. Distance is the number of changed, missing and extra nodes; similarity is
  1 - distance / (size of the larger tree). "not understood" is the share of a file that the grammar could not place.

examples:
  python -m structloss.explain mine.py reference.py
  python -m structloss.explain --language java - Reference.java < Mine.java
  python -m structloss.explain --color always a.js b.js | less -R
"""


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m structloss.explain",
        description="What a student's program has of the teacher's, what it lacks and what it has beside.",
        epilog=_HOW_TO_READ,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("student", metavar="STUDENT", help="file with the student's program; - is standard input")
    parser.add_argument("teacher", metavar="TEACHER", help="file with the teacher's program; - is standard input")
    parser.add_argument(
        "--language", choices=sorted(LANGUAGES), help="default: by the name of the teacher's file, python"
    )
    parser.add_argument(
        "--color", choices=["auto", "always", "never"], default="auto", help="auto: on a terminal, without NO_COLOR"
    )
    parser.add_argument("--width", type=int, help="columns of a line, at least 40; default: those of the terminal")
    options = parser.parse_args(arguments)
    if options.student == options.teacher == "-":
        parser.error("STUDENT and TEACHER are both standard input; one must be a file")
    try:
        student, teacher = (
            sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
            for name in (options.student, options.teacher)
        )
        suffixes = [Path(name).suffix for name in (options.teacher, options.student)]
        language = options.language or next((_LANGUAGE_OF[s] for s in suffixes if s in _LANGUAGE_OF), "python")
        color = {"auto": None, "always": True, "never": False}[options.color]
        text = explain(student, teacher, language=language, color=color, width=options.width)
    except (OSError, ValueError, ImportError) as error:
        parser.error(str(error))
    # A terminal that cannot show a character of the source shows its escape.
    sys.stdout.buffer.write((text + "\n").encode(sys.stdout.encoding or "utf-8", "backslashreplace"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
