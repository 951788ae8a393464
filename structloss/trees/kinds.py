"""What a syntax tree keeps of the concrete grammar, and the closed vocabulary of node kinds.

Everything that decides the shape of a tree stands in this file:

* a named grammar node becomes a tree node, unless it is in ``dropped``;
* an anonymous token (punctuation, keyword, operator) is dropped, unless it changes the meaning of its parent
  and
  nothing else says so: ``operators`` lists those tokens per parent (``+`` in a ``binary_operator``, ``:`` in
  a ``slice``, ``from`` in a ``yield``, ``async`` in a ``function_definition``);
* a ``transparent`` node with exactly one kept child is replaced by that child, and one with none disappears:
  it says nothing that the child does not say. The root is never transparent;
* an ``atoms`` node is a leaf whose label carries its source text, a ``plain_leaves`` node one whose kind says
  all.

The kind ids are positions in a tuple written here by name. The grammar's own ids move between releases of the
grammar, so they are never stored. A node type that is not in the tuple (a newer grammar) has the kind
``unknown``. Append to a tuple, never reorder it; changing what an id means needs a new version string.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

UNKNOWN = 0
ERROR = 1


@dataclass(frozen=True)
class LanguageRules:
    """Vocabulary and tree rules of one language; the names are those of its tree-sitter grammar."""

    version: str
    kinds: tuple[str, ...]
    dropped: frozenset[str]
    transparent: frozenset[str]
    atoms: frozenset[str]
    plain_leaves: frozenset[str]
    operators: Mapping[str, frozenset[str]]


_PYTHON_OPERATORS: dict[str, frozenset[str]] = {
    "binary_operator": frozenset(["+", "-", "*", "/", "//", "%", "**", "@", "<<", ">>", "&", "|", "^"]),
    "unary_operator": frozenset(["+", "-", "~"]),
    "boolean_operator": frozenset(["and", "or"]),
    "comparison_operator": frozenset(["<", "<=", "==", "!=", ">=", ">", "<>", "in", "not in", "is", "is not", "not"]),
    "augmented_assignment": frozenset(
        ["+=", "-=", "*=", "/=", "//=", "%=", "**=", "@=", "<<=", ">>=", "&=", "|=", "^="]
    ),
    "slice": frozenset([":"]),
    "yield": frozenset(["from"]),
    "interpolation": frozenset(["="]),
    "except_clause": frozenset(["*"]),
    "splat_pattern": frozenset(["*", "**"]),
    "splat_type": frozenset(["*", "**"]),
    "case_pattern": frozenset(["_", "-"]),
    "union_pattern": frozenset(["_", "-"]),
    "dict_pattern": frozenset(["_", "-"]),
    "keyword_pattern": frozenset(["_", "-"]),
    "as_pattern": frozenset(["_", "-"]),
    "complex_pattern": frozenset(["+", "-"]),
    "function_definition": frozenset(["async"]),
    "for_statement": frozenset(["async"]),
    "with_statement": frozenset(["async"]),
    "for_in_clause": frozenset(["async"]),
}
# Below an error the parent that would give a token its meaning is missing, so every operator stays.
_PYTHON_OPERATORS["ERROR"] = frozenset().union(
    *(
        _PYTHON_OPERATORS[parent]
        for parent in (
            "binary_operator",
            "unary_operator",
            "boolean_operator",
            "comparison_operator",
            "augmented_assignment",
        )
    )
)

# The order is the meaning of the ids.
# fmt: off
_PYTHON_KINDS = (
    "unknown", "ERROR", "module", "aliased_import", "argument_list", "as_pattern", "as_pattern_target",
    "assert_statement", "assignment", "attribute", "augmented_assignment", "await", "binary_operator",
    "block", "boolean_operator", "break_statement", "call", "case_clause", "case_pattern", "chevron",
    "class_definition", "class_pattern", "comparison_operator", "complex_pattern",
    "concatenated_string", "conditional_expression", "constrained_type", "continue_statement",
    "decorated_definition", "decorator", "default_parameter", "delete_statement", "dict_pattern",
    "dictionary", "dictionary_comprehension", "dictionary_splat", "dictionary_splat_pattern",
    "dotted_name", "elif_clause", "ellipsis", "else_clause", "except_clause", "except_group_clause",
    "exec_statement", "expression_list", "expression_statement", "false", "finally_clause", "float",
    "for_in_clause", "for_statement", "format_expression", "format_specifier", "function_definition",
    "future_import_statement", "generator_expression", "generic_type", "global_statement", "identifier",
    "if_clause", "if_statement", "import_from_statement", "import_prefix", "import_statement",
    "integer", "interpolation", "keyword_argument", "keyword_pattern", "keyword_separator", "lambda",
    "lambda_parameters", "list", "list_comprehension", "list_pattern", "list_splat",
    "list_splat_pattern", "match_statement", "member_type", "named_expression", "none",
    "nonlocal_statement", "not_operator", "pair", "parameters", "parenthesized_expression",
    "parenthesized_list_splat", "pass_statement", "pattern_list", "positional_separator",
    "print_statement", "raise_statement", "relative_import", "return_statement", "set",
    "set_comprehension", "slice", "splat_pattern", "splat_type", "string", "string_content",
    "subscript", "true", "try_statement", "tuple", "tuple_pattern", "type", "type_alias_statement",
    "type_conversion", "type_parameter", "typed_default_parameter", "typed_parameter", "unary_operator",
    "union_pattern", "union_type", "while_statement", "wildcard_import", "with_clause", "with_item",
    "with_statement", "yield", "+", "-", "*", "/", "//", "%", "**", "@", "<<", ">>", "&", "|", "^", "~",
    "and", "or", "not", "<", "<=", "==", "!=", ">=", ">", "<>", "in", "not in", "is", "is not", "+=",
    "-=", "*=", "/=", "//=", "%=", "**=", "@=", "<<=", ">>=", "&=", "|=", "^=", ":", "=", "_", "from",
    "async",
)
# fmt: on

_PYTHON = LanguageRules(
    version="python-1",
    kinds=_PYTHON_KINDS,
    dropped=frozenset(["comment", "line_continuation", "string_start", "string_end"]),
    transparent=frozenset(
        [
            "as_pattern_target",
            "block",
            "case_pattern",
            "dotted_name",
            "expression_statement",
            "parenthesized_expression",
            "parenthesized_list_splat",
            "with_clause",
            "with_item",
        ]
    ),
    atoms=frozenset(["identifier", "integer", "float", "string_content", "type_conversion", "import_prefix"]),
    plain_leaves=frozenset(
        [
            "break_statement",
            "continue_statement",
            "ellipsis",
            "false",
            "keyword_separator",
            "none",
            "pass_statement",
            "positional_separator",
            "true",
            "wildcard_import",
        ]
    ),
    operators=_PYTHON_OPERATORS,
)

LANGUAGES: dict[str, LanguageRules] = {"python": _PYTHON}


def language_rules(language: str) -> LanguageRules:
    """The rules of `language`. Raises ValueError, naming the languages that exist, for any other name."""
    try:
        return LANGUAGES[language]
    except (KeyError, TypeError):
        known = ", ".join(sorted(LANGUAGES))
        raise ValueError(f"language: got {language!r}, but only these exist: {known}") from None


def kind_names(language: str = "python") -> tuple[str, ...]:
    """Names of the node kinds; the position is the id in ``Tree.kind``. Id 0 is ``unknown``, 1 is ``ERROR``.

    >>> kind_names("python")[:3]
    ('unknown', 'ERROR', 'module')
    """
    return language_rules(language).kinds


def num_kinds(language: str = "python") -> int:
    """Size of the vocabulary of node kinds (the width of a classifier over kinds)."""
    return len(language_rules(language).kinds)
