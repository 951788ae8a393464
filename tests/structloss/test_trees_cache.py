"""TreeCache: the same trees, several processes, a kill, damaged entries."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import warnings
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest

from structloss.trees import Tree, TreeBatch, TreeCache, parse
from structloss.trees import cache as cache_module
from structloss.trees.kinds import LANGUAGES
from tests.structloss.test_trees import stdlib_functions
from tests.structloss.test_trees_hard_inputs import SAMPLES


def assert_same(one: Tree, other: Tree) -> None:
    for name in ("label", "kind", "parent", "leftmost", "byte_span"):
        got, wanted = getattr(one, name), getattr(other, name)
        np.testing.assert_array_equal(got, wanted)
        assert got.dtype == wanted.dtype
        assert got.flags.writeable
    for name in ("language", "kind_version", "source_bytes", "error_bytes", "faults"):
        assert getattr(one, name) == getattr(other, name)


def entries(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_stored_tree_is_the_parsed_one(tmp_path: Path, language: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = TreeCache(tmp_path / "new" / "folder")
    sources = [SAMPLES[language], SAMPLES[language][:301], "", "名 = '🙂'", b"\xff\0", "((("]
    for source in sources:
        assert_same(cache.parse(source, language), parse(source, language))
    assert len(entries(cache.folder)) == len(sources)
    monkeypatch.setattr(cache_module, "parse", None)
    for source in sources:
        assert_same(TreeCache(cache.folder).parse(source, language), parse(source, language))
    # str and bytes of one text are one entry, and a batch takes stored trees.
    assert_same(cache.parse(SAMPLES[language].encode(), language), parse(SAMPLES[language], language))
    assert TreeBatch.from_trees([cache.parse(source, language) for source in sources]).sizes[2] == 0


def test_language_and_versions_are_in_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = TreeCache(tmp_path)
    for language in LANGUAGES:
        assert cache.parse("x", language).language == language
    assert len(entries(tmp_path)) == len(LANGUAGES)
    monkeypatch.setitem(LANGUAGES, "python", replace(LANGUAGES["python"], version="python-2"))
    assert cache.parse("x").kind_version == "python-2"
    monkeypatch.setattr(cache_module, "_FORMAT", b"structloss tree 2\n")
    cache.parse("x")
    assert len(entries(tmp_path)) == len(LANGUAGES) + 2


def test_releases_of_parser_and_grammar_are_in_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = TreeCache(tmp_path)
    installed = {name: metadata.version(name) for name in ("tree-sitter", "tree-sitter-python", "tree-sitter-java")}
    for upgraded in (None, "tree-sitter-java", "tree-sitter-python", "tree-sitter"):
        monkeypatch.setattr(metadata, "version", {**installed, upgraded: "99"}.__getitem__)
        cache_module._releases.cache_clear()
        cache.parse("x")
    cache_module._releases.cache_clear()
    assert len(entries(tmp_path)) == 3


def test_damaged_entries_are_parsed_again(tmp_path: Path) -> None:
    source = "x = f(1"
    cache = TreeCache(tmp_path)
    cache.parse(source)
    (path,) = entries(tmp_path)
    whole = path.read_bytes()
    generator = random.Random(0)
    flipped = bytearray(whole)
    flipped[generator.randrange(len(whole))] ^= 1
    for damaged in (b"", whole[:10], whole[:-1], whole + b"x", bytes(flipped), b"\0" * len(whole)):
        path.write_bytes(damaged)
        with pytest.warns(RuntimeWarning, match=f"TreeCache: {path}: the entry is damaged; parsed again"):
            assert_same(cache.parse(source), parse(source))
        assert path.read_bytes() == whole


def fill(folder: Path, sources: list[str], forever: bool) -> None:
    warnings.simplefilter("error")
    cache = TreeCache(folder)
    while True:
        for source in random.sample(sources, len(sources)):
            assert_same(cache.parse(source), parse(source))
        if not forever:
            return
        for path in entries(folder):
            path.unlink(missing_ok=True)


@pytest.mark.parametrize("killed", [False, True])
def test_several_processes_and_a_kill(tmp_path: Path, killed: bool) -> None:
    sources = stdlib_functions()[:15]
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=fill, args=(tmp_path, sources, killed)) for _ in range(3)]
    for worker in workers:
        worker.start()
    if killed:
        while not entries(tmp_path):
            pass
        for worker in workers:
            assert worker.pid is not None
            os.kill(worker.pid, signal.SIGKILL)
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == (-signal.SIGKILL if killed else 0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fill(tmp_path, sources, False)


def test_wrong_arguments(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="language: got 'cobol'"):
        TreeCache(tmp_path).parse("x", "cobol")
    with pytest.raises(TypeError, match="source: got int"):
        TreeCache(tmp_path).parse(3)  # type: ignore[arg-type]
    (tmp_path / "file").write_text("")
    with pytest.raises(FileExistsError):
        TreeCache(tmp_path / "file")


def test_the_page_shows_the_results() -> None:
    """docs/trees.md has the rows of the file that the benchmark wrote."""
    results = json.loads(Path("benchmarks/results/trees_to_batch.json").read_text())
    assert results["compiled"]
    rows = {row["call"]: row for row in results["rows"]}
    page = Path("docs/trees.md").read_text()
    for call, shown in (
        ("parse alone (floor)", "parse alone"),
        ("parse, compiled walk", "parse and walk, compiled"),
        ("parse, Python walk", "parse and walk, Python"),
        ("from_sources", "`from_sources`"),
        ("from_sources, every text hashed anew", "`from_sources`, every identifier and literal hashed anew"),
    ):
        median = rows[call]["median_ms"]
        assert f"| {shown} | {median:.1f} | {median / rows['parse alone (floor)']['median_ms']:.2f} |" in page
    for call, shown in (
        ("structloss.parse", "`structloss.parse`"),
        ("TreeCache, every tree stored", "`TreeCache`, every tree stored"),
        ("TreeCache, no tree stored", "`TreeCache`, no tree stored"),
    ):
        row = rows[call]
        assert f"| {shown} | {row['median_ms']:.1f} | {row['p25_ms']:.1f} to {row['p75_ms']:.1f} |" in page
