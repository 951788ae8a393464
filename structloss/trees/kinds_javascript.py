"""Vocabulary and tree rules of JavaScript and JSX; what they mean stands in ``language_rules.py``.

A template string keeps its parts, and a regular expression is one atom. ``x => { y }`` returns nothing, so its block
stays; so does that of a ``catch``, which tells ``catch (e) {}`` from ``catch { e }``. An empty statement stays in the
head of a ``for``, where it holds a place. A closing tag repeats the opening one.
"""

from __future__ import annotations

from .language_rules import LanguageRules, with_errors

_OPERATORS: dict[str, frozenset[str]] = {
    "binary_expression": frozenset(
        [
            "&&",
            "||",
            "??",
            "&",
            "|",
            "^",
            "<<",
            ">>",
            ">>>",
            "+",
            "-",
            "*",
            "/",
            "%",
            "**",
            "<",
            "<=",
            "==",
            "===",
            "!=",
            "!==",
            ">=",
            ">",
            "instanceof",
            "in",
        ]
    ),
    "unary_expression": frozenset(["!", "~", "+", "-", "typeof", "void", "delete"]),
    "update_expression": frozenset(["++", "--"]),
    "augmented_assignment_expression": frozenset(
        ["+=", "-=", "*=", "/=", "%=", "**=", "<<=", ">>=", ">>>=", "&=", "^=", "|=", "&&=", "||=", "??="]
    ),
    "lexical_declaration": frozenset(["let", "const"]),
    "using_declaration": frozenset(["await"]),
    "for_in_statement": frozenset(["in", "of", "await", "var", "let", "const", "using"]),
    "function_declaration": frozenset(["async"]),
    "function_expression": frozenset(["async"]),
    "generator_function": frozenset(["async"]),
    "generator_function_declaration": frozenset(["async"]),
    "arrow_function": frozenset(["async"]),
    "method_definition": frozenset(["async", "static", "static get", "get", "set", "*"]),
    "field_definition": frozenset(["static"]),
    "yield_expression": frozenset(["*"]),
    "meta_property": frozenset(["target", "meta"]),
    "export_statement": frozenset(["default", "*"]),
    "export_specifier": frozenset(["default"]),
    "import_specifier": frozenset(["default"]),
}

# The order is the meaning of the ids.
# fmt: off
_KINDS = (
    "unknown", "ERROR", "program", "arguments", "array", "array_pattern", "arrow_function",
    "assignment_expression", "assignment_pattern", "augmented_assignment_expression", "await_expression",
    "binary_expression", "break_statement", "call_expression", "catch_clause", "class", "class_body",
    "class_declaration", "class_heritage", "class_static_block", "computed_property_name",
    "continue_statement", "debugger_statement", "decorator", "do_statement", "else_clause",
    "empty_statement", "escape_sequence", "export_clause", "export_specifier", "export_statement",
    "expression_statement", "false", "field_definition", "finally_clause", "for_in_statement",
    "for_statement", "formal_parameters", "function_declaration", "function_expression",
    "generator_function", "generator_function_declaration", "html_character_reference", "identifier",
    "if_statement", "import", "import_attribute", "import_clause", "import_specifier", "import_statement",
    "jsx_attribute", "jsx_element", "jsx_expression", "jsx_namespace_name", "jsx_opening_element",
    "jsx_self_closing_element", "jsx_text", "labeled_statement", "lexical_declaration", "member_expression",
    "meta_property", "method_definition", "named_imports", "namespace_export", "namespace_import",
    "new_expression", "null", "number", "object", "object_assignment_pattern", "object_pattern",
    "optional_chain", "pair", "pair_pattern", "parenthesized_expression", "private_property_identifier",
    "property_identifier", "regex", "regex_flags", "regex_pattern", "rest_pattern", "return_statement",
    "sequence_expression", "shorthand_property_identifier", "shorthand_property_identifier_pattern",
    "spread_element", "statement_block", "statement_identifier", "string", "string_fragment",
    "subscript_expression", "super", "switch_body", "switch_case", "switch_default", "switch_statement",
    "template_string", "template_substitution", "ternary_expression", "this", "throw_statement", "true",
    "try_statement", "unary_expression", "undefined", "update_expression", "using_declaration",
    "variable_declaration", "variable_declarator", "while_statement", "with_statement", "yield_expression",
    "&&", "||", "??", "&", "|", "^", "<<", ">>", ">>>", "+", "-", "*", "/", "%", "**", "<", "<=", "==",
    "===", "!=", "!==", ">=", ">", "instanceof", "in", "!", "~", "typeof", "void", "delete", "++", "--",
    "+=", "-=", "*=", "/=", "%=", "**=", "<<=", ">>=", ">>>=", "&=", "^=", "|=", "&&=", "||=", "??=", "let",
    "const", "await", "of", "var", "using", "async", "static", "static get", "get", "set", "target", "meta",
    "default",
)
# fmt: on

JAVASCRIPT = LanguageRules(
    version="javascript-1",
    kinds=_KINDS,
    dropped=frozenset(["comment", "html_comment", "hash_bang_line", "empty_statement", "jsx_closing_element"]),
    transparent=frozenset(
        [
            "class_body",
            "expression_statement",
            "jsx_expression",
            "parenthesized_expression",
            "statement_block",
            "switch_body",
            "variable_declarator",
        ]
    ),
    atoms=frozenset(
        [
            "escape_sequence",
            "html_character_reference",
            "identifier",
            "jsx_text",
            "number",
            "private_property_identifier",
            "property_identifier",
            "regex",
            "shorthand_property_identifier",
            "shorthand_property_identifier_pattern",
            "statement_identifier",
            "string_fragment",
        ]
    ),
    plain_leaves=frozenset(
        [
            "debugger_statement",
            "empty_statement",
            "false",
            "import",
            "null",
            "optional_chain",
            "super",
            "this",
            "true",
            "undefined",
        ]
    ),
    operators=with_errors(
        _OPERATORS, ["binary_expression", "unary_expression", "update_expression", "augmented_assignment_expression"]
    ),
    literals=frozenset(
        ["number", "regex", "string", "string_fragment", "escape_sequence", "html_character_reference", "jsx_text"]
    ),
    string="string",
    interpolation="never",
    kept_below={
        "arrow_function": frozenset(["statement_block"]),
        "catch_clause": frozenset(["statement_block"]),
        "for_statement": frozenset(["empty_statement"]),
    },
)
