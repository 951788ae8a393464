"""Vocabulary and tree rules of Java; what they mean stands in ``language_rules.py``.

Java's grammar has no node for the branches of an ``if`` or the places in the head of a ``for``, so ``else`` and ``;``
stay there; the ``;`` of a method says that it has no body. ``x -> { y(); }`` gives nothing back, so its block stays, as
does the body of an anonymous class. Each ``[`` of an array type counts one dimension.
"""

from __future__ import annotations

from .language_rules import LanguageRules, with_errors

_OPERATORS: dict[str, frozenset[str]] = {
    "binary_expression": frozenset(
        ["&&", "||", "&", "|", "^", "<<", ">>", ">>>", "+", "-", "*", "/", "%", "<", "<=", "==", "!=", ">=", ">"]
    ),
    "unary_expression": frozenset(["!", "~", "+", "-"]),
    "update_expression": frozenset(["++", "--"]),
    "assignment_expression": frozenset(["+=", "-=", "*=", "/=", "%=", "<<=", ">>=", ">>>=", "&=", "^=", "|="]),
    "instanceof_expression": frozenset(["final"]),
    "modifiers": frozenset(
        [
            "public",
            "protected",
            "private",
            "abstract",
            "static",
            "final",
            "strictfp",
            "default",
            "synchronized",
            "native",
            "transient",
            "volatile",
            "sealed",
            "non-sealed",
        ]
    ),
    "dimensions": frozenset(["["]),
    "if_statement": frozenset(["else"]),
    "for_statement": frozenset([";"]),
    "method_declaration": frozenset([";"]),
    "switch_label": frozenset(["default"]),
    "wildcard": frozenset(["extends"]),
    "method_reference": frozenset(["new"]),
    "import_declaration": frozenset(["static"]),
    "module_declaration": frozenset(["open"]),
}

# The order is the meaning of the ids.
# fmt: off
_KINDS = (
    "unknown", "ERROR", "program", "annotated_type", "annotation", "annotation_argument_list",
    "annotation_type_body", "annotation_type_declaration", "annotation_type_element_declaration",
    "argument_list", "array_access", "array_creation_expression", "array_initializer", "array_type",
    "assert_statement", "assignment_expression", "asterisk", "binary_expression", "binary_integer_literal",
    "block", "boolean_type", "break_statement", "cast_expression", "catch_clause", "catch_formal_parameter",
    "catch_type", "character_literal", "class_body", "class_declaration", "class_literal",
    "compact_constructor_declaration", "constant_declaration", "constructor_body",
    "constructor_declaration", "continue_statement", "decimal_floating_point_literal",
    "decimal_integer_literal", "dimensions", "dimensions_expr", "do_statement",
    "element_value_array_initializer", "element_value_pair", "enhanced_for_statement", "enum_body",
    "enum_body_declarations", "enum_constant", "enum_declaration", "escape_sequence",
    "explicit_constructor_invocation", "exports_module_directive", "expression_statement",
    "extends_interfaces", "false", "field_access", "field_declaration", "finally_clause",
    "floating_point_type", "for_statement", "formal_parameter", "formal_parameters", "generic_type",
    "guard", "hex_floating_point_literal", "hex_integer_literal", "identifier", "if_statement",
    "import_declaration", "inferred_parameters", "instanceof_expression", "integral_type", "interface_body",
    "interface_declaration", "labeled_statement", "lambda_expression", "local_variable_declaration",
    "marker_annotation", "method_declaration", "method_invocation", "method_reference", "modifiers",
    "module_body", "module_declaration", "multiline_string_fragment", "null_literal",
    "object_creation_expression", "octal_integer_literal", "opens_module_directive", "package_declaration",
    "parenthesized_expression", "pattern", "permits", "provides_module_directive", "receiver_parameter",
    "record_declaration", "record_pattern", "record_pattern_body", "record_pattern_component",
    "requires_modifier", "requires_module_directive", "resource", "resource_specification",
    "return_statement", "scoped_identifier", "scoped_type_identifier", "spread_parameter",
    "static_initializer", "string_fragment", "string_interpolation", "string_literal", "super",
    "super_interfaces", "superclass", "switch_block", "switch_block_statement_group", "switch_expression",
    "switch_label", "switch_rule", "synchronized_statement", "template_expression", "ternary_expression",
    "this", "throw_statement", "throws", "true", "try_statement", "try_with_resources_statement",
    "type_arguments", "type_bound", "type_identifier", "type_list", "type_parameter", "type_parameters",
    "type_pattern", "unary_expression", "underscore_pattern", "update_expression", "uses_module_directive",
    "variable_declarator", "void_type", "while_statement", "wildcard", "yield_statement", "&&", "||", "&",
    "|", "^", "<<", ">>", ">>>", "+", "-", "*", "/", "%", "<", "<=", "==", "!=", ">=", ">", "!", "~", "++",
    "--", "+=", "-=", "*=", "/=", "%=", "<<=", ">>=", ">>>=", "&=", "^=", "|=", "final", "public",
    "protected", "private", "abstract", "static", "strictfp", "default", "synchronized", "native",
    "transient", "volatile", "sealed", "non-sealed", "[", "else", ";", "extends", "new", "open",
)
# fmt: on

JAVA = LanguageRules(
    version="java-1",
    kinds=_KINDS,
    dropped=frozenset(["line_comment", "block_comment"]),
    transparent=frozenset(
        [
            "annotation_type_body",
            "block",
            "catch_type",
            "class_body",
            "constructor_body",
            "dimensions",
            "enum_body",
            "expression_statement",
            "inferred_parameters",
            "interface_body",
            "modifiers",
            "module_body",
            "parenthesized_expression",
            "pattern",
            "resource_specification",
            "switch_block",
            "type_list",
            "variable_declarator",
        ]
    ),
    atoms=frozenset(
        [
            "binary_integer_literal",
            "character_literal",
            "decimal_floating_point_literal",
            "decimal_integer_literal",
            "escape_sequence",
            "floating_point_type",
            "hex_floating_point_literal",
            "hex_integer_literal",
            "identifier",
            "integral_type",
            "multiline_string_fragment",
            "octal_integer_literal",
            "requires_modifier",
            "string_fragment",
            "type_identifier",
        ]
    ),
    plain_leaves=frozenset(
        [
            "asterisk",
            "boolean_type",
            "false",
            "null_literal",
            "super",
            "this",
            "true",
            "underscore_pattern",
            "void_type",
        ]
    ),
    operators=with_errors(
        _OPERATORS, ["binary_expression", "unary_expression", "update_expression", "assignment_expression"]
    ),
    literals=frozenset(
        [
            "binary_integer_literal",
            "character_literal",
            "decimal_floating_point_literal",
            "decimal_integer_literal",
            "escape_sequence",
            "hex_floating_point_literal",
            "hex_integer_literal",
            "multiline_string_fragment",
            "octal_integer_literal",
            "string_fragment",
            "string_literal",
        ]
    ),
    string="string_literal",
    interpolation="escape",
    kept_below={"lambda_expression": frozenset(["block"]), "object_creation_expression": frozenset(["class_body"])},
)
