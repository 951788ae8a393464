"""JavaScript and Java: shape rules against trees written by hand, vocabularies, what the metrics make of them."""

from __future__ import annotations

import sys

import pytest
import tree_sitter_java
import tree_sitter_javascript
import tree_sitter_python
from tree_sitter import Language

from structloss.metrics import dataflow_match, syntax_match, tsed
from structloss.trees import (
    TreeBatch,
    TreeOptions,
    innermost_nodes,
    kind_names,
    num_kinds,
    parse,
    token_byte_spans,
    walk,
)
from structloss.trees.kinds import LANGUAGES, language_rules
from tests.structloss.test_trees import check_invariants, nested

GRAMMARS = {"java": tree_sitter_java, "javascript": tree_sitter_javascript, "python": tree_sitter_python}

REAL_CODE = {
    "javascript": """\
import Base, { helper as h } from "./base.js";

/** Keeps what was seen. */
export default class Cache extends Base {
  static #limit = 1_000;
  #seen = new Map();

  get size() { return this.#seen.size; }

  async *load(keys, { fresh = false, ...rest } = {}) {
    for await (const key of keys) {
      const hit = this.#seen.get(key) ?? (await h(`/api/${key}?n=${rest.n ?? 0}`));
      if (!hit || /^\\s*$/u.test(hit)) continue;
      else if (fresh && hit.length >>> 2 !== 0) delete hit.old;
      try { yield hit; } catch { break; } finally { this.count += 1; }
    }
    switch (typeof keys) {
      case 'object': return [...keys].map((k, i) => ({ [k]: i ** 2 }));
      default: label: for (let i = 0; i < 3; i++) { if (i in keys) break label; }
    }
  }
}
""",
    "java": '''\
package a.b;
import static java.util.List.*;

/** Keeps what was seen. */
@SuppressWarnings("all")
public final class Cache<K extends Comparable<? super K>, V> implements Map<K, V>, Closeable {
    private static final long LIMIT = 0xFFL;
    private final int[][] counts = new int[3][], more = {{1}, {2, 3}};

    @Override public synchronized V load(final K key, V... others) throws IOException {
        for (int i = 0, n = others.length; i < n; i++) {
            if (counts[i] == null || !key.equals(others[i])) continue; else counts[i][0] >>>= 2;
        }
        for (V other : others) { label: while (true) { break label; } }
        try (var in = open("a\\tb")) { return in.read(x -> x + 1, Cache::new); }
        catch (IOException | RuntimeException e) { throw new Error("""
            text """ + 'c', e); }
        finally { count += 1.5e3f; }
    }

    sealed interface Shape permits Circle {}
    record Circle(double radius) implements Shape { Circle { assert radius > 0 : "negative"; } }
    enum Color { RED(1) { int f() { return 1; } }, BLUE; Color() { this(0); } abstract int f(); }

    int area(Object shape) {
        return switch (shape) { case Circle(double r) when r > 1 -> (int) (r * r); default -> { yield -1; } };
    }
}
''',
}

BY_HAND = {
    ("javascript", "if (a) { f(x); } // why"): (
        "program",
        ("if_statement", "identifier", ("call_expression", "identifier", ("arguments", "identifier"))),
    ),
    ("javascript", "let a = 'x', b;"): (
        "program",
        ("lexical_declaration", "let", ("variable_declarator", "identifier", "string"), "identifier"),
    ),
    ("javascript", "`a${b}\\n`"): (
        "program",
        ("template_string", "string_fragment", ("template_substitution", "identifier"), "escape_sequence"),
    ),
    ("javascript", "for (;;) i++"): (
        "program",
        ("for_statement", "empty_statement", "empty_statement", ("update_expression", "identifier", "++")),
    ),
    ("javascript", "x => { y }"): (
        "program",
        ("arrow_function", "identifier", ("statement_block", "identifier")),
    ),
    ("javascript", "a?.b"): ("program", ("member_expression", "identifier", "optional_chain", "property_identifier")),
    ("javascript", "<a b={c}>t</a>"): (
        "program",
        (
            "jsx_element",
            ("jsx_opening_element", "identifier", ("jsx_attribute", "property_identifier", "identifier")),
            "jsx_text",
        ),
    ),
    ("javascript", "// nothing"): None,
    ("java", "if (a) {} else { f(x); }"): (
        "program",
        ("if_statement", "identifier", "else", ("method_invocation", "identifier", ("argument_list", "identifier"))),
    ),
    ("java", 'final String s = "a\\tb";'): (
        "program",
        (
            "local_variable_declaration",
            "final",
            "type_identifier",
            ("variable_declarator", "identifier", "string_literal"),
        ),
    ),
    ("java", 'f("a\\{b}c", "\\\\{b}");'): (
        "program",
        (
            "method_invocation",
            "identifier",
            (
                "argument_list",
                ("string_literal", "string_fragment", ("string_interpolation", "identifier"), "string_fragment"),
                "string_literal",
            ),
        ),
    ),
    ("java", "int[][] a; int[] b;"): (
        "program",
        ("local_variable_declaration", ("array_type", "integral_type", ("dimensions", "[", "[")), "identifier"),
        ("local_variable_declaration", ("array_type", "integral_type", "["), "identifier"),
    ),
    ("java", "x = (y) -> { f(); };"): (
        "program",
        (
            "assignment_expression",
            "identifier",
            (
                "lambda_expression",
                "identifier",
                ("block", ("method_invocation", "identifier", "argument_list")),
            ),
        ),
    ),
    ("java", "/* nothing */"): None,
}


@pytest.mark.parametrize(("language", "source"), BY_HAND, ids=repr)
def test_shape_rules(language: str, source: str) -> None:
    tree = parse(source, language)
    assert nested(tree) == BY_HAND[language, source]
    assert tree.error_bytes == 0
    check_invariants(tree, source.encode())


def signature(source: str, language: str) -> tuple[list[int], list[int]]:
    tree = parse(source, language)
    assert tree.error_bytes == 0, source
    return tree.label.tolist(), tree.parent.tolist()


@pytest.mark.parametrize(
    ("language", "one", "other"),
    [
        *(("javascript", one, other) for one, other in [
            ("a + b", "a - b"),
            ("a == b", "a === b"),
            ("i++", "++i"),
            ("i++", "i--"),
            ("typeof a", "void a"),
            ("a += b", "a ??= b"),
            ("a.b", "a?.b"),
            ("'a'", "'b'"),
            ("'a'", "`a`"),
            ("`a${b}`", "`c${b}`"),
            ("/a/g", "/a/i"),
            ("let a = 1", "const a = 1"),
            ("var a = 1", "let a = 1"),
            ("for (const a of b) c", "for (const a in b) c"),
            ("for (const a of b) c", "for (let a of b) c"),
            ("for (a;;) c", "for (;;a) c"),
            ("for (a;;) c", "for (;a;) c"),
            ("function f() {}", "async function f() {}"),
            ("function f() {}", "function* f() {}"),
            ("x = function a() { b }", "x = function (a) { b }"),
            ("x => y", "x => { y }"),
            ("class A { get x() {} }", "class A { set x(a) {} }"),
            ("class A { x() {} }", "class A { static x() {} }"),
            ("class A { x() {} }", "class A { *x() {} }"),
            ("x = class A {}", "x = class extends A {}"),
            ("function* f() { yield a }", "function* f() { yield* a }"),
            ("try { a } catch (e) {}", "try { a } catch { e }"),
            ("export default a", "export { a }"),
            ("export * from 'a'", "export {} from 'a'"),
            ("if (a) {} else { b }", "if (a) { b }"),
            ("f(...a)", "f(a)"),
            ("new.target", "import.meta"),
        ]),
        *(("java", one, other) for one, other in [
            ("x = a + b;", "x = a - b;"),
            ("x += b;", "x = b;"),
            ("i++;", "++i;"),
            ("x = a >> b;", "x = a >>> b;"),
            ('x = "a";', 'x = "b";'),
            ("x = 'a';", 'x = "a";'),
            ('x = "a\\{b}";', 'x = "c\\{b}";'),
            ("int a;", "long a;"),
            ("float a;", "double a;"),
            ("int[] a;", "int[][] a;"),
            ("int a;", "final int a;"),
            ("public class A {}", "private class A {}"),
            ("if (a) {} else { b(); }", "if (a) { b(); }"),
            ("for (a();;) c();", "for (;;a()) c();"),
            ("for (;a;) c();", "for (a=1;;) c();"),
            ("x = y -> f();", "x = y -> { f(); };"),
            ("class A { abstract void f(); }", "class A { abstract void f() {} }"),
            ("x = new A();", "x = new A() {};"),
            ("x = A::new;", "x = A::f;"),
            ("List<? extends A> a;", "List<? super A> a;"),
            ("import a.b;", "import static a.b;"),
            ("import a.b;", "import a.b.*;"),
            ("class A extends B {}", "class A implements B {}"),
            ("void f(int a) {}", "void f(int... a) {}"),
            ("switch (a) { case 1: b(); }", "switch (a) { default: b(); }"),
            ("switch (a) { case 1: b(); }", "switch (a) { case 1 -> b(); }"),
        ]),
    ],
)  # fmt: skip
def test_different_meaning_is_a_different_tree(language: str, one: str, other: str) -> None:
    assert signature(one, language) != signature(other, language)


@pytest.mark.parametrize(
    ("language", "one", "other"),
    [
        ("javascript", "a+b", "(a\n+ b);"),
        ("javascript", "'a'", '"a"'),
        ("javascript", "if (a) b", "if (a) { b; } // c"),
        ("javascript", "f(a, b)", "f(\r\n\ta,\r\n\tb,\r\n)"),
        ("javascript", "\ufeffx = 1", "x = 1;;"),
        ("javascript", "<a>b</a >", "<a >b</a>"),
        ("java", "x=a+b;", "x = (a\n+ b);"),
        ("java", "if (a) b();", "if (a) { b(); } // c"),
        ("java", "f(a, b);", "f(\r\n\ta, /* c */\r\n\tb);"),
        ("java", "x = (y) -> z;", "x = y -> z;"),
        ("java", "int [ ] a;", "int[] a;"),
        ("java", "\ufeffint x;", "int x;"),
    ],
)
def test_layout_is_not_structure(language: str, one: str, other: str) -> None:
    assert signature(one, language) == signature(other, language)


@pytest.mark.parametrize("language", REAL_CODE)
def test_real_code_has_neither_errors_nor_unknown_kinds(language: str) -> None:
    source = REAL_CODE[language]
    tree = parse(source, language)
    assert tree.error_bytes == 0
    assert 0 not in tree.kind
    assert len(set(tree.kind.tolist())) > 50
    check_invariants(tree, source.encode())


@pytest.mark.parametrize("language", LANGUAGES)
def test_vocabulary_is_that_of_the_installed_grammar(language: str) -> None:
    grammar = Language(GRAMMARS[language].language())
    visible = [i for i in range(grammar.node_kind_count) if grammar.node_kind_is_visible(i)]
    named = {grammar.node_kind_for_id(i) for i in visible if grammar.node_kind_is_named(i)}
    tokens = {grammar.node_kind_for_id(i) for i in visible if not grammar.node_kind_is_named(i)}
    rules = language_rules(language)
    kinds = set(kind_names(language))
    assert len(kinds) == num_kinds(language) == len(rules.kinds)
    assert kind_names(language)[:2] == ("unknown", "ERROR")
    assert parse("x", language).kind_version == f"{language}-1"
    # These two stand inside string_content only, which is an atom: no walk meets them.
    below_atoms = {"escape_sequence", "escape_interpolation"} if language == "python" else set()
    stay = frozenset().union(*rules.kept_below.values())
    assert named == (kinds & named) | (rules.dropped - stay) | below_atoms
    assert not kinds & (rules.dropped - stay)
    kept_tokens = frozenset().union(*rules.operators.values())
    # except_group_clause: of older grammars of Python.
    assert kinds - named - {"unknown", "ERROR", "except_group_clause"} <= kept_tokens
    assert kept_tokens <= kinds & tokens
    for listed in (rules.transparent, rules.atoms, rules.plain_leaves, rules.kept_below, rules.text_if_leaf, stay):
        assert named >= set(listed)
    assert set(rules.operators) <= named | {"ERROR"}
    assert rules.string in named


@pytest.mark.parametrize(
    ("language", "ids", "label"),
    [
        ("java", {"lambda_expression": 73, "open": 195}, 5062776461798583669),
        ("javascript", {"arrow_function": 6, "default": 172}, 5062776461798583669),
    ],
)
def test_ids_and_labels_are_pinned(language: str, ids: dict[str, int], label: int) -> None:
    """A checkpoint stores both."""
    assert {name: kind_names(language).index(name) for name in ids} == ids
    assert num_kinds(language) == max(ids.values()) + 1
    assert parse("x", language).label[[0, -1]].tolist() == [356879449529321870, label]


def test_unknown_language_and_missing_grammar(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="language: got 'cobol', but only these exist: java, javascript, python"):
        parse("x", "cobol")
    monkeypatch.setitem(sys.modules, "tree_sitter_java", None)
    with pytest.raises(ImportError, match="language: 'java' needs its grammar.*pip install tree-sitter-java$"):
        walk.grammar_and_rules.__wrapped__("java", TreeOptions())
    assert num_kinds("java") > 100, "the vocabulary needs no grammar"


@pytest.mark.parametrize("language", REAL_CODE)
def test_tokens_and_batches(language: str) -> None:
    source = "x = f('é', \"ü\");"
    offsets = [(0, 1), (1, 3), (3, 5), (5, 6), (6, 9), (9, 10), (10, 14), (14, 15), (15, 16)]
    spans = token_byte_spans(source, offsets)
    tree = parse(source, language)
    names = [kind_names(language)[k] for k in tree.kind[innermost_nodes(tree, spans)]]
    arguments, one, other = {
        "javascript": ("arguments", "string", "string"),
        "java": ("argument_list", "character_literal", "string_literal"),
    }[language]
    assert names[:1] + names[2:7] == ["identifier", "identifier", arguments, one, arguments, other]
    batch = TreeBatch.from_sources([source, ""], language, [spans, None])
    assert batch.sizes.tolist() == [tree.size, 0]
    assert batch.token_span[0, -1].tolist() == [0, 9]


@pytest.mark.parametrize("language", REAL_CODE)
def test_metrics_that_need_only_trees(language: str) -> None:
    source = REAL_CODE[language]
    other = source.replace("count", "total")
    assert tsed(source, source, language=language) == syntax_match(source, source, language=language) == 1.0
    assert 0.8 < tsed(source, other, language=language) < 1.0
    assert 0.5 < syntax_match(source, other, language=language) < 1.0
    assert syntax_match("", "", language=language) == 1.0
    assert syntax_match("((((", source, language=language) == 0.0
    with pytest.raises(ValueError, match="data flow is followed in 'python' only"):
        dataflow_match(source, source, language=language)
    with pytest.raises(TypeError, match="reference: got int, wants str"):
        syntax_match("x", 3, language=language)  # type: ignore[arg-type]


def test_syntax_match_by_hand() -> None:
    # program(f(arguments(x))) and program(f(arguments(y))): no sub-tree of two nodes is equal; f(x); f(y) shares one of
    # program, 2 x call, 2 x arguments with f(x): arguments(x), call(f, ..).
    assert syntax_match("f(x)", "f(y)", language="javascript") == 0.0
    assert syntax_match("f(x)", "f(x); f(y)", language="javascript") == pytest.approx(2 * 2 / (3 + 5))
