"""TreeBatch: padding, tokens on nodes against brute force, any trees from parents."""

from __future__ import annotations

import pickle
import random
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from structloss.trees import (
    TreeBatch,
    innermost_nodes,
    kind_names,
    node_token_spans,
    parse,
    syntax_tree,
    token_byte_spans,
)
from structloss.trees import batch as batch_module
from structloss.trees.kinds import LANGUAGES
from structloss.trees.walk import installed_grammar
from tests.structloss.test_trees_hard_inputs import SAMPLES

SOURCES = [
    "def add(a, b):\n    return a + b\n",
    "",
    "名前 = '🙂🙃' + \"é\"  # 注释\r\nif 名前 :\r\n\tprint( 名前 )\r\n",
    "for i in range(10):\n    x[i] = {'k': [1, 2.5, None], 'ключ': i ** 2}\n    if x[i] not in y: break\n",
    "def broken(:\n   return (a + \n",
    "s = 'a   b'\n\n\nt = f'{s!r:>10} ü'\n",
]


@pytest.mark.parametrize("add_prefix_space", [False, True])
@pytest.mark.parametrize("trim_offsets", [False, True])
def test_tokens_of_a_byte_level_tokenizer(add_prefix_space: bool, trim_offsets: bool) -> None:
    tokenizer = byte_level_tokenizer(add_prefix_space, trim_offsets)
    shared = 0
    for source in SOURCES:
        encoding = tokenizer.encode(source)
        spans = token_byte_spans(source, encoding.offsets)
        expected = [solid_bytes(source, start, end) for start, end in encoding.offsets]
        assert spans.tolist() == expected
        shared += sum(a == b for a, b in pairwise(encoding.offsets))
        check_token_spans(source, spans)
    assert shared > 0, "several tokens of one character are part of this test"


def byte_level_tokenizer(add_prefix_space: bool, trim_offsets: bool) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=trim_offsets)
    trainer = trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(SOURCES[:1] * 20 + SOURCES[3:4] * 20, trainer)
    return tokenizer


def solid_bytes(text: str, start: int, end: int) -> list[int]:
    """Byte span of text[start:end] without white space at its ends, the slow way."""
    while start < end and text[start] in " \t\n\r\f\v":
        start += 1
    while start < end and text[end - 1] in " \t\n\r\f\v":
        end -= 1
    if start >= end:
        return [-1, -1]
    return [
        len(text[:start].encode("utf-8", "surrogatepass")),
        len(text[:end].encode("utf-8", "surrogatepass")),
    ]


def check_token_spans(source: str, spans: np.ndarray) -> None:
    tree = parse(source)
    node_spans = node_token_spans(tree, spans)
    owners = innermost_nodes(tree, spans)
    holders: list[list[int]] = []
    for start, end in spans.tolist():
        inside = [i for i, (low, high) in enumerate(tree.byte_span.tolist()) if start >= 0 and low <= end - 1 < high]
        holders.append(inside)
    for i in range(tree.size):
        tokens = [t for t, inside in enumerate(holders) if i in inside]
        assert node_spans[i].tolist() == ([tokens[0], tokens[-1] + 1] if tokens else [-1, -1])
    # The holders of a byte are a chain of ancestors; the innermost is the first of them in post-order.
    assert owners.tolist() == [inside[0] if inside else -1 for inside in holders]


@settings(max_examples=100, deadline=None)
@given(st.text(alphabet="ab é\t\n🙂(=:)'\ud800", max_size=25), st.data())
def test_token_spans_of_any_cut(text: str, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    offsets = list(pairwise(cuts))
    spans = token_byte_spans(text, offsets)
    assert spans.shape == (len(offsets), 2)
    assert spans.tolist() == [solid_bytes(text, start, end) for start, end in offsets]
    check_token_spans(text, spans)


def test_leading_space_belongs_to_the_token_after_it() -> None:
    source = "x = 1"
    spans = token_byte_spans(source, [(0, 1), (1, 3), (3, 5)])
    assert spans.tolist() == [[0, 1], [2, 3], [4, 5]]
    batch = TreeBatch.from_sources([source], tokens=[spans])
    names = [kind_names()[k] for k in batch.kind[0].tolist()]
    assert dict(zip(names, batch.token_span[0].tolist(), strict=True)) == {
        "identifier": [0, 1],
        "integer": [2, 3],
        "assignment": [0, 3],
        "module": [0, 3],
    }
    # `=` is no node: its token belongs to the assignment.
    assert [names[i] for i in innermost_nodes(parse(source), spans)] == [
        "identifier",
        "assignment",
        "integer",
    ]


def test_region_of_a_longer_text() -> None:
    text = "Frage: é?\nx = 1\nEnde"
    start = text.index("x")
    end = text.index("Ende")
    offsets = [(i, i + 1) for i in range(len(text))]
    spans = token_byte_spans(text, offsets, region=(start, end))
    assert (spans[:start] == -1).all()
    assert (spans[end:] == -1).all()
    np.testing.assert_array_equal(
        spans[start:end], token_byte_spans(text[start:end], [(i, i + 1) for i in range(end - start)])
    )
    # A token across the left edge is cut to the region; its last solid byte decides.
    across = token_byte_spans(text, [(start - 3, start + 1)], region=(start, end))
    assert across.tolist() == [[0, 1]]


def test_batch_is_padded_trees() -> None:
    trees = [parse(source) for source in SOURCES]
    tokens = [
        token_byte_spans(s, [(i, min(i + 2, len(s))) for i in range(0, len(s), 2)]) if k != 3 else None
        for k, s in enumerate(SOURCES)
    ]
    batch = TreeBatch.from_trees(trees, tokens=tokens)
    n = max(tree.size for tree in trees)
    assert len(batch) == len(SOURCES)
    assert batch.label.shape == batch.kind.shape == batch.parent.shape == batch.leftmost.shape == (len(trees), n)
    assert batch.byte_span.shape == batch.token_span.shape == (len(trees), n, 2)
    assert batch.sizes.tolist() == [tree.size for tree in trees]
    assert batch.sizes.dtype == batch.label.dtype == batch.token_span.dtype == torch.int64
    assert batch.error_share.dtype == torch.float32
    for i, tree in enumerate(trees):
        for name in ("label", "kind", "parent", "leftmost", "byte_span"):
            values = getattr(batch, name)[i]
            np.testing.assert_array_equal(values[: tree.size].numpy(), getattr(tree, name))
            assert (values[tree.size :] == -1).all()
        assert batch.error_share[i].item() == pytest.approx(tree.error_share)
        spans = tokens[i]
        expected = node_token_spans(tree, spans) if spans is not None else np.full((tree.size, 2), -1)
        np.testing.assert_array_equal(batch.token_span[i, : tree.size].numpy(), expected)
        assert (batch.token_span[i, tree.size :] == -1).all()
    from_sources = TreeBatch.from_sources(SOURCES, tokens=tokens)
    assert torch.equal(from_sources.label, batch.label)
    assert torch.equal(from_sources.token_span, batch.token_span)


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("language", LANGUAGES)
def test_from_sources_is_the_batch_of_parsed_trees(
    language: str, compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not compiled:
        grammar = installed_grammar(language)._replace(walker=None)
        monkeypatch.setattr(syntax_tree, "installed_grammar", lambda language, options: grammar)
    whole = SAMPLES[language]
    generator = random.Random(0)
    torn = [whole[: generator.randrange(len(whole))] + generator.choice("([{'\"`\0") for _ in range(20)]
    sources = [whole, "", *torn, "((((", b"\xff\0", "# x", "//", whole.encode()[:400], *SOURCES]
    tokens = [
        token_byte_spans(s, [(i, min(i + 3, len(s))) for i in range(0, len(s), 3)]) if isinstance(s, str) else None
        for s in sources
    ]
    for its_tokens in (None, tokens):
        batch = TreeBatch.from_sources(sources, language, its_tokens)
        expected = TreeBatch.from_trees([parse(source, language) for source in sources], its_tokens)
        assert vars(batch).keys() == vars(expected).keys()
        for name, value in vars(expected).items():
            if isinstance(value, torch.Tensor):
                got = getattr(batch, name)
                assert got.dtype == value.dtype, name
                assert got.is_contiguous(), name
                assert torch.equal(got, value), name
            else:
                assert getattr(batch, name) == value, name
        assert (batch.error_share > 0).sum() > 10
        assert (batch.error_share == 0).sum() > 2


def test_from_sources_takes_any_iterable_and_names_what_is_no_source() -> None:
    assert TreeBatch.from_sources(iter(["x", b"y = 1"])).sizes.tolist() == [2, 4]  # type: ignore[arg-type]
    assert TreeBatch.from_sources([], "no language").sizes.tolist() == []
    with pytest.raises(TypeError, match="source: got int, wants str or bytes"):
        TreeBatch.from_sources(["x", 3])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="language: got 'cobol'"):
        TreeBatch.from_sources(["x"], "cobol")
    with pytest.raises(ValueError, match=r"language: got \['java'\]"):
        TreeBatch.from_sources(["x"], ["java"])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="tokens: got 1 arrays for 2 trees"):
        TreeBatch.from_sources(["x", "y"], tokens=[None])
    with pytest.raises(ValueError, match=r"tokens\[1\]: token_spans: token 1 ends before token 0"):
        TreeBatch.from_sources(["x", "x = 1"], tokens=[None, np.array([[4, 5], [0, 1]])])


def test_empty_batches() -> None:
    assert TreeBatch.from_trees([]).label.shape == (0, 0)
    assert len(TreeBatch.from_trees([])) == 0
    empty = TreeBatch.from_sources(["", "# x"])
    assert empty.label.shape == (2, 0)
    assert empty.byte_span.shape == (2, 0, 2)
    assert empty.sizes.tolist() == [0, 0]
    assert TreeBatch.from_parents([[]], [[]]).sizes.tolist() == [0]


def test_to_and_pickle() -> None:
    batch = TreeBatch.from_sources(SOURCES)
    for other in (batch.to("cpu"), pickle.loads(pickle.dumps(batch))):
        assert torch.equal(other.label, batch.label)
        assert torch.equal(other.error_share, batch.error_share)
    assert batch.to("meta").byte_span.device.type == "meta"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_pin_memory_and_device() -> None:
    batch = TreeBatch.from_sources(SOURCES).pin_memory()
    assert batch.label.is_pinned()
    assert torch.equal(batch.to("cuda", non_blocking=True).label.cpu(), batch.label)
    assert batch.table_columns == TreeBatch.from_sources(SOURCES).table_columns


@st.composite
def nested_lists(draw: st.DrawFn) -> list:
    return draw(st.recursive(st.just([]), lambda inner: st.lists(inner, max_size=4), max_leaves=25))


def number(form: list, parents: list[int], leftmost: list[int]) -> int:
    """Number a tree of nested lists in post-order, by recursion; returns the root's index."""
    children = [number(child, parents, leftmost) for child in form]
    here = len(parents)
    for child in children:
        parents[child] = here
    parents.append(-1)
    leftmost.append(leftmost[children[0]] if children else here)
    return here


@settings(max_examples=100, deadline=None)
@given(st.lists(nested_lists(), min_size=1, max_size=4))
def test_from_parents_agrees_with_recursion(forms: list[list]) -> None:
    parents, leftmost = [], []
    for form in forms:
        p: list[int] = []
        l: list[int] = []
        number(form, p, l)
        parents.append(p)
        leftmost.append(l)
    labels = [[7 * k + i for i in range(len(p))] for k, p in enumerate(parents)]
    batch = TreeBatch.from_parents(labels, parents)
    for k, size in enumerate(batch.sizes.tolist()):
        assert batch.leftmost[k, :size].tolist() == leftmost[k]
        assert batch.parent[k, :size].tolist() == parents[k]
        assert batch.label[k, :size].tolist() == labels[k]
        for values in (batch.leftmost, batch.parent, batch.label, batch.kind):
            assert (values[k, size:] == -1).all()
    assert (batch.kind[batch.label >= 0] == 0).all()


@settings(max_examples=150, deadline=None)
@given(st.lists(st.integers(-2, 7), min_size=1, max_size=6))
def test_from_parents_accepts_exactly_the_post_orders(parents: list[int]) -> None:
    assert accepted(parents) == is_post_order(parents)


def test_from_parents_accepts_exactly_the_post_orders_of_random_parents() -> None:
    generator = random.Random(0)
    seen = {True: 0, False: 0}
    for _ in range(2000):
        size = generator.randint(1, 6)
        parents = [generator.randint(i + 1, size - 1) for i in range(size - 1)] + [-1]
        expected = is_post_order(parents)
        assert accepted(parents) == expected, parents
        seen[expected] += 1
    assert min(seen.values()) > 100


def accepted(parents: list[int]) -> bool:
    try:
        TreeBatch.from_parents([[0] * len(parents)], [parents])
    except ValueError:
        return False
    return True


def is_post_order(parents: list[int]) -> bool:
    """Whether a recursive walk from the last node visits 0, 1, 2, ... in order."""
    n = len(parents)
    if parents[-1] != -1 or any(not i < p < n for i, p in enumerate(parents[:-1])):
        return False
    visited: list[int] = []

    def visit(node: int) -> None:
        for child in range(n):
            if parents[child] == node:
                visit(child)
        visited.append(node)

    visit(n - 1)
    return visited == list(range(n))


@settings(max_examples=100, deadline=None)
@given(st.lists(nested_lists(), max_size=4))
def test_table_columns_of_any_trees(forms: list[list]) -> None:
    parents: list[list[int]] = [[] for _ in forms]
    for form, p in zip(forms, parents, strict=True):
        number(form, p, [])
    for compiled in {None, batch_module.compiled_table_columns}:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(batch_module, "compiled_table_columns", compiled)
            batch = TreeBatch.from_parents([[0] * len(p) for p in parents], parents)
        assert type(batch.table_columns) is int
        assert batch.table_columns == max((max(keyroot_columns(form)) for form in forms), default=0)


@pytest.mark.skipif(batch_module.compiled_table_columns is None, reason="the compiled extension was not built")
def test_compiled_table_columns_of_real_trees_and_of_none() -> None:
    trees = TreeBatch.from_sources([*SOURCES, SAMPLES["python"]])
    compiled = trees.table_columns
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batch_module, "compiled_table_columns", None)
        assert batch_module._table_columns(trees.parent.numpy(), trees.leftmost.numpy()) == compiled
    with pytest.raises(IndexError, match="parent: no such node"):
        batch_module._table_columns(np.array([[5, -1]]), np.array([[0, 0]]))


def keyroot_columns(form: list, keyroot: tuple[bool, bool] = (True, True)) -> tuple[int, int]:
    """Sum over keyroots of (subtree size + 1): nodes that are no first child, and nodes that are no last child."""
    columns = [(count(form) + 1) * is_one for is_one in keyroot]
    for k, child in enumerate(form):
        below = keyroot_columns(child, (k > 0, k < len(form) - 1))
        columns = [a + b for a, b in zip(columns, below, strict=True)]
    return columns[0], columns[1]


def count(form: list) -> int:
    return 1 + sum(count(child) for child in form)


def test_table_columns_by_hand_and_kept() -> None:
    # Root with three leaves: the root's 4 + 1 and 1 + 1 for two leaves, either way. A chain has one keyroot. The last
    # tree has 5 + 1, and beside it 1 + 1 of a second leaf or 3 + 1, 1 + 1 of the first child and its first leaf.
    parents = [[3, 3, 3, -1], [1, 2, -1], [2, 2, 4, 4, -1]]
    columns = [9, 4, 12]
    for p, expected in zip(parents, columns, strict=True):
        assert TreeBatch.from_parents([[0] * len(p)], [p]).table_columns == expected
    batch = TreeBatch.from_parents([[0] * len(p) for p in parents], parents)
    assert batch.table_columns == 12
    assert batch.to("meta").table_columns == 12
    assert batch.select(torch.tensor([1, 1])).table_columns == 12
    assert pickle.loads(pickle.dumps(batch)).table_columns == 12
    trees = TreeBatch.from_sources(SOURCES)
    size = trees.sizes.tolist()
    again = TreeBatch.from_parents([[0] * n for n in size], [trees.parent[k, :n].tolist() for k, n in enumerate(size)])
    assert trees.table_columns == again.table_columns
    assert TreeBatch.from_sources(["", "# x"]).table_columns == 0
    fields = {name: value for name, value in vars(batch).items() if isinstance(value, torch.Tensor)}
    assert TreeBatch(**fields).to("cpu").table_columns is None


def test_from_parents_keeps_kinds() -> None:
    batch = TreeBatch.from_parents([[5, 6], [1]], [[1, -1], np.array([-1])], kinds=[[3, 4], [9]])
    assert batch.kind.tolist() == [[3, 4], [9, -1]]
    assert (batch.byte_span == -1).all()
    assert (batch.token_span == -1).all()


@pytest.mark.parametrize(
    ("labels", "parents", "message"),
    [
        ([[1], [1, 2]], [[-1], [-1, -1]], "parents: tree 1: node 0 is a second root"),
        ([[1, 2]], [[1, 0]], "parents: tree 0: the last node 1 has parent 0, but it is the root"),
        ([[1, 2]], [[0, -1]], "parents: tree 0: node 0 has parent 0"),
        ([[1, 2]], [[5, -1]], "parents: tree 0: node 0 has parent 5"),
        ([[1, 2, 3, 4, 5]], [[3, 2, 4, 4, -1]], "the subtree of node 3 is not contiguous: it misses node 0"),
        ([[1, 2]], [[-1]], r"parents: tree 0 has shape \(1,\)"),
        ([[1]], [[-1], [-1]], "parents: got 2 trees, but labels has 1"),
        ([[1.5]], [[-1]], "labels: tree 0 has dtype float64"),
    ],
)
def test_from_parents_says_what_is_wrong(labels: list, parents: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TreeBatch.from_parents(labels, parents)


def test_wrong_arguments() -> None:
    tree = parse("x = 1")
    with pytest.raises(ValueError, match="tokens: got 2 arrays for 1 trees"):
        TreeBatch.from_trees([tree], tokens=[None, None])
    with pytest.raises(ValueError, match=r"tokens\[0\]: token_spans: token 1 ends before token 0"):
        TreeBatch.from_trees([tree], tokens=[np.array([[4, 5], [0, 1]])])
    with pytest.raises(ValueError, match="wants integers of shape"):
        innermost_nodes(tree, np.zeros((2, 3), dtype=np.int64))
    with pytest.raises(TypeError, match="sources: got one string"):
        TreeBatch.from_sources("x = 1")
    with pytest.raises(ValueError, match=r"offsets: token 1 has \[3, 9\)"):
        token_byte_spans("x = 1", [(0, 1), (3, 9)])
    with pytest.raises(ValueError, match=r"offsets: token 0 has \[2, 1\)"):
        token_byte_spans("x = 1", [(2, 1)])
    with pytest.raises(ValueError, match="offsets: got shape"):
        token_byte_spans("x = 1", np.zeros((2, 3)))
    with pytest.raises(ValueError, match="region: got"):
        token_byte_spans("x = 1", [(0, 1)], region=(0, 9))
