"""The choices of parse: what each changes, that both walks agree on it, and that trees of two choices do not meet."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import tree_sitter

from structloss import TreeBatch, encode_example, parse, tree_edit_distance
from structloss.losses import VisitCache
from structloss.trees import TreeCache, TreeOptions, kind_names
from structloss.trees.walk import compiled_walk, installed_grammar, python_walk

SOURCES = {
    "python": "for x in f(a - b, 'c', 1):\n    (y) = x[1:2]\nelse:\n    print(f'{y!r} {x:>3}')\n",
    "javascript": "for (const x of f(a - b, 'c', 1)) { (y) = `n ${x}` } /re/.test(y => { y })",
    "java": 'class A { int f(int a) { for (int i = 0; i < a - 1; i++) { g("s" + 2); } return (a); } }',
}
EVERY = [TreeOptions(*chosen) for chosen in itertools.product([True, False], repeat=5)]


def distance(a: str, b: str, **options: bool) -> float:
    trees = (TreeBatch.from_sources([source], options=TreeOptions(**options)) for source in (a, b))
    return tree_edit_distance(*trees).item()


@pytest.mark.parametrize(
    ("a", "b", "option", "otherwise"),
    [
        ("x = y", "x = z", {"names": False}, 1),
        ("x = 1", "x = 2", {"literals": False}, 1),
        ("x = 'a'", "x = b'b'", {"literals": False}, 1),
        ("x = rf'{a}'", "x = f'{a}'", {"literals": False}, 1),
        ("a + b", "a - b", {"operators": False}, 1),
        ("x = (y)", "x = y", {"collapse": True}, 0),
    ],
)
def test_each_choice_hides_one_difference(a: str, b: str, option: dict[str, bool], otherwise: float) -> None:
    assert distance(a, b) == otherwise
    assert distance(a, b, **option) == 0


def test_collapse_and_fields_show_what_is_hidden_by_default() -> None:
    assert distance("x = (y)", "x = y", collapse=False) > 0
    body, orelse = "while x:\n    pass\nelse:\n    pass", "while x:\n    pass\n"
    assert distance(body, orelse, fields=True) >= distance(body, orelse)
    assert distance("f(a)", "f(a)", fields=True) == 0
    # The two sides of a subtraction: without fields the operands differ by their order alone.
    assert distance("a - a", "b - a", fields=True, names=False) == 0
    left, right = (TreeBatch.from_sources(["a - b"], options=TreeOptions(fields=f, names=False)) for f in (False, True))
    a_plain, b_plain = left.label[0, [0, 2]].tolist()
    a_field, b_field = right.label[0, [0, 2]].tolist()
    assert a_plain == b_plain
    assert a_field != b_field


@pytest.mark.parametrize("language", SOURCES)
@pytest.mark.parametrize("options", EVERY, ids=str)
def test_both_walks_agree(language: str, options: TreeOptions) -> None:
    grammar = installed_grammar(language, options)
    if grammar.walker is None:
        pytest.skip("the compiled extension is not built")
    source = SOURCES[language].encode()
    root = tree_sitter.Parser(grammar.language).parse(source).root_node
    for compiled, plain in zip(compiled_walk(root, source, grammar), python_walk(root, source, grammar), strict=True):
        assert np.array_equal(compiled, plain)
    assert (parse(source, language, options).label >= 0).all()


def test_kinds_mean_the_same_whatever_is_chosen() -> None:
    kinds = {kind_names()[kind] for options in EVERY for kind in parse(SOURCES["python"], options=options).kind}
    assert "unknown" not in kinds
    assert "expression_statement" in kinds, "kept where chains do not collapse"


def test_trees_of_two_choices_do_not_meet(tmp_path) -> None:
    one, other = parse("x = 1"), parse("x = 1", options=TreeOptions(fields=True))
    with pytest.raises(ValueError, match="^trees: got trees of several TreeOptions"):
        TreeBatch.from_trees([one, other])
    cache = TreeCache(tmp_path)
    for tree in (one, other):
        for _ in range(2):  # parsed, then from the folder
            stored = cache.parse("x = 1", options=tree.options)
            assert stored.options == tree.options
            assert np.array_equal(stored.label, tree.label)


def test_the_students_code_is_read_like_the_teachers(tokenizer, examples, batch) -> None:
    options = TreeOptions(names=False, fields=True)
    example = encode_example(tokenizer, [("prompt", "p"), ("code", "x = 1")], id="a", tree_options=options)
    assert example.tree.options == options
    visits = VisitCache(tokenizer)
    visits._store("visit:", [example], lambda: [example.input_ids[example.regions == 2]])
    (own,) = visits._take("visit:", [example])
    assert own.tree.options == options
    assert np.array_equal(own.tree.label, example.tree.label)
