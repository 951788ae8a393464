"""Vocabulary and tree rules of Python; what they mean stands in ``language_rules.py``."""

from __future__ import annotations

from .language_rules import LanguageRules, with_errors

_OPERATORS: dict[str, frozenset[str]] = {
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
# The order is the meaning of the ids.
# fmt: off
_KINDS = (
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

PYTHON = LanguageRules(
    version="python-1",
    kinds=_KINDS,
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
    operators=with_errors(
        _OPERATORS,
        ["binary_operator", "unary_operator", "boolean_operator", "comparison_operator", "augmented_assignment"],
    ),
    literals=frozenset(["integer", "float", "string", "string_content"]),
    string="string",
    interpolation="prefix",
    text_if_leaf=frozenset(["format_specifier"]),
)
