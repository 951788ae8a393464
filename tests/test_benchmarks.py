"""The studies of tree alignment run at tiny sizes and print no number when something is wrong; the page has results."""

from __future__ import annotations

import argparse
import ast
import doctest
import itertools
import json
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch

import structloss
from benchmarks import plots, tree_alignment, tree_alignment_accuracy, tree_device, tree_pairs, tree_peers, tree_report
from benchmarks.timing import Variant, WrongResult, interleave, spread
from structloss.tree_alignment import reference
from structloss.trees import parse

PAGE = Path("docs/tree_alignment.md")
TINY = ["--sizes", "20", "--pairs", "2", "--rounds", "2", "--temperatures", "0.5", "--threads", "1"]
HARD, SOFT = ["--study", "hard"], ["--study", "soft"]
INSTALLED = [name for name in tree_peers.PACKAGES if name not in tree_peers.missing_packages()]


def refused(
    capsys: pytest.CaptureFixture[str], out: Path, arguments: list[str], main: Any = tree_alignment.main
) -> str:
    """Runs a study that has to refuse, and returns its reason."""
    assert main([*arguments, "--out", str(out)]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert not out.exists()
    return printed.err.rpartition("refused: ")[2]


def test_both_studies(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "tree_alignment.json"
    assert tree_alignment.main([*TINY, "--peers", *INSTALLED, "--out", str(out)]) == 0
    report = json.loads(out.read_text())
    assert {row["set"] for row in report["hard"]} == {row["set"] for row in report["soft"]} == set(tree_pairs.SETS)
    assert {"tree_edit_distance", "align_trees", *INSTALLED} <= {row["variant"] for row in report["hard"]}
    assert all(row["p25_ms"] <= row["median_ms"] <= row["p75_ms"] for row in report["hard"] + report["soft"])
    assert all(row["posterior_error"] < 1e-10 for row in report["soft"] if row["temperature"])
    assert report["environment"]["versions"]["torch"] == torch.__version__
    assert [row["size"] for row in report["memory"]] == [20, 20]
    printed = capsys.readouterr().out
    assert all(table in printed for table in tree_report.tables(report).values())

    tree_alignment.main(["--results", str(tmp_path), "--plot", str(tmp_path)])
    drawn = ElementTree.parse(tmp_path / "tree_alignment_cost.svg").getroot()
    labels = {element.text for element in drawn.iter("{http://www.w3.org/2000/svg}text")}
    assert {"tree_edit_distance", "temperature 0.5", *INSTALLED} <= labels


@pytest.mark.skipif("x-ted" not in INSTALLED, reason="x-ted is not installed")
def test_refuses_transposed_rename_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    right = tree_peers.x_ted_renamed
    pairs = tree_pairs.pair_sets([20], 2, ["unrelated"])[0]
    tree_alignment.check_rename_costs(pairs)
    monkeypatch.setattr(tree_peers, "x_ted_renamed", lambda trees, rename: right(trees, lambda x, y: rename(y, x)))
    with pytest.raises(WrongResult, match="rename matrix"):
        tree_alignment.check_rename_costs(pairs)


def test_refuses_another_distance(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def off_by_one(pairs: tree_peers.Pairs) -> tree_peers.Distances:
        a, b = (structloss.TreeBatch.from_trees(trees) for trees in zip(*pairs, strict=True))
        return lambda: (structloss.tree_edit_distance(a, b) + torch.tensor([0.0, 1.0])).tolist()

    monkeypatch.setattr(tree_peers, "missing_packages", list)
    monkeypatch.setattr(tree_peers, "apted", off_by_one)
    assert "apted" in refused(capsys, tmp_path / "no.json", [*TINY, *HARD, "--peers", "apted"])


@pytest.mark.parametrize("fault", ["order", "cost"])
def test_refuses_another_mapping(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    right = tree_alignment.align_trees

    def wrong(a: structloss.TreeBatch, b: structloss.TreeBatch) -> structloss.TreeAlignment:
        found = right(a, b)
        first, second = (found.match_a[0] >= 0).nonzero().squeeze(1)[:2].tolist()
        if fault == "order":
            found.match_a[0, [first, second]] = found.match_a[0, [second, first]]
            found.match_b[0, found.match_a[0, [first, second]]] = torch.tensor([first, second])
        else:
            found.match_b[0, found.match_a[0, first]] = -1
            found.match_a[0, first] = -1
        return found

    monkeypatch.setattr(tree_alignment, "align_trees", wrong)
    assert "align_trees" in refused(capsys, tmp_path / "no.json", [*TINY, *HARD, "--peers"])


def test_refuses_a_mapping_that_breaks_ancestry() -> None:
    """A chain x < y onto two leaves x, y: order is kept and the cost is what the distance says, but y is above x."""
    chain = structloss.TreeBatch.from_parents([[1, 2]], [[1, -1]])
    leaves = structloss.TreeBatch.from_parents([[1, 2, 3]], [[2, 2, -1]])
    wrong = structloss.TreeAlignment(
        torch.tensor([1.0]), torch.tensor([[0, 1]]), torch.tensor([[0, 1, -1]]), ("exact",)
    )
    tree_alignment.check_mappings(chain, leaves, structloss.align_trees(chain, leaves))
    with pytest.raises(WrongResult, match="align_trees"):
        tree_alignment.check_mappings(chain, leaves, wrong)


@pytest.mark.parametrize("fault", ["posterior", "value", "nan"])
def test_refuses_another_posterior(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    right = reference.log_partition_and_posterior

    def wrong(*arguments: Any) -> tuple[torch.Tensor, torch.Tensor]:
        log_z, posterior = right(*arguments)
        if fault == "value":
            return log_z + 1e-7, posterior
        posterior[0, 0] += 1e-9 if fault == "posterior" else torch.nan
        return log_z, posterior

    monkeypatch.setattr(reference, "log_partition_and_posterior", wrong)
    assert "errors against the reference" in refused(capsys, tmp_path / "no.json", [*TINY, *SOFT])


def test_refuses_a_wrong_timed_call(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the call that is timed is wrong: default costs, no posterior."""
    right = tree_alignment.soft_tree_edit_distance

    def wrong(*arguments: Any, **options: Any) -> Any:
        result = right(*arguments, **options)
        return result if options.get("return_posterior") else result * 1.001

    monkeypatch.setattr(tree_alignment, "soft_tree_edit_distance", wrong)
    assert "single precision" in refused(capsys, tmp_path / "no.json", [*TINY, *SOFT])


def test_device_study_gives_no_time_to_a_wrong_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    right = tree_device.soft_tree_edit_distance

    def wrong(*arguments: Any, **options: Any) -> Any:
        result = right(*arguments, **options)
        return result + 1e-3 if options["backend"] == "reference" and not options["return_posterior"] else result

    options = argparse.Namespace(device="cpu", backends=["cpu", "cuda", "reference"], batches=[2, 3], size=20, rounds=2)
    assert "no time" not in tree_report.device(tree_device.study(replace_backends(options, ["cpu", "reference"])))
    monkeypatch.setattr(tree_device, "soft_tree_edit_distance", wrong)
    rows = tree_device.study(options)
    reasons = {row["backend"]: row["refused"] for row in rows if "refused" in row}
    assert set(reasons) == {"cuda", "reference"}
    assert "backward" in reasons["reference"]
    assert {row["backend"] for row in rows if "median_ms" in row} == {"cpu"}
    assert [row["batch"] for row in rows if row.get("call") == "forward and backward"] == [2, 2, 3, 3]
    assert tree_report.device(rows).count("no time: ") == 8


def replace_backends(options: argparse.Namespace, backends: list[str]) -> argparse.Namespace:
    return argparse.Namespace(**vars(options) | {"backends": backends})


SMALL = ["--pairs", "5", "--size", "8", "--real", "20", "--unequal", "10", "20", "--longest", "40"]


def test_accuracy_study(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "accuracy.json"
    assert tree_alignment_accuracy.main([*SMALL, "--out", str(out)]) == 0
    report = json.loads(out.read_text())
    assert set(tree_report.tables(report)) == {"accuracy", "large", "textbook"}
    assert [(row["mappings"], round(row["textbook_counted"], 6)) for row in report["textbook"]][:2] == [(2, 3), (6, 13)]
    assert all(row["counted"] == pytest.approx(row["mappings"]) for row in report["textbook"])
    assert tree_report.tables(report)["textbook"] in capsys.readouterr().out


@pytest.mark.parametrize(("fault", "reason"), [(1e-9, "value"), (torch.nan, "value")])
def test_accuracy_study_refuses(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, fault: float, reason: str
) -> None:
    right = tree_alignment_accuracy.soft_tree_edit_distance

    def wrong(*arguments: Any, **options: Any) -> Any:
        result = right(*arguments, **options)
        return (result[0] + fault, result[1]) if isinstance(result, tuple) else result + fault

    monkeypatch.setattr(tree_alignment_accuracy, "soft_tree_edit_distance", wrong)
    assert reason in refused(capsys, tmp_path / "no.json", SMALL, tree_alignment_accuracy.main)


def test_pairs_are_what_they_are_called() -> None:
    unrelated, near = tree_pairs.pair_sets([50], 3)
    again = tree_pairs.pair_sets([50], 3, ["near-identical"])[0]
    assert [b.label.tolist() for _, b in near.trees] == [b.label.tolist() for _, b in again.trees]
    assert all(45 <= tree.size <= 55 for pair in unrelated.trees + near.trees for tree in pair)
    distance = [structloss.tree_edit_distance(*pairs.batches()) for pairs in (unrelated, near)]
    assert 0 < distance[1].min() <= distance[1].max() < distance[0].min()


@pytest.mark.parametrize("edit", tree_pairs._EDITS)
def test_every_edit_changes_the_tree(edit: Any) -> None:
    source = "def f(x):\n    y = x + 1\n    z = y\n    return z"
    function = ast.parse(source)
    edit(function)[0]()
    before, after = parse(source), parse(ast.unparse(function))
    assert before.label.tolist() != after.label.tolist()


def test_timing_rotates_and_summarises() -> None:
    order: list[str] = []
    names = {"a": None, "b": 1, "c": None}
    variants = [Variant(n, lambda n=n: order.append(n), pairs=2, rounds=r) for n, r in names.items()]  # type: ignore[misc]
    seconds = interleave(variants, 3, lambda: None)
    # Those without a limit are called in a loop before the call that counts.
    turns = [name for name, _ in itertools.groupby(order)]
    assert turns == ["a", "b", "c", "a", "c", "a"]
    assert order.count("b") == 1
    assert len(order) > 9
    assert [len(x) for x in seconds] == [3, 1, 3]
    assert spread([1.0, 3.0, 2.0], pairs=2) == {"median_ms": 1000, "p25_ms": 750, "p75_ms": 1250, "rounds": 3}


def test_the_page_shows_the_results() -> None:
    """After new results: python -m benchmarks.tree_alignment --plot docs/images --write-docs docs/tree_alignment.md"""
    page = PAGE.read_text()
    found: dict[str, str] = {}
    for name in tree_report.FILES:
        path = Path("benchmarks/results", name)
        if path.is_file():
            found |= tree_report.tables(json.loads(path.read_text()))
    assert tree_report.fill(page, found) == page
    assert Path("docs/images/tree_mapping.svg").read_text() == plots.mapping_picture(plots.FIRST, plots.SECOND)


def test_places_of_a_page() -> None:
    page = "x\n<!-- begin hard: a command -->\nold\n<!-- end hard -->\ny\n"
    filled = tree_report.fill(page, {"hard": "new"})
    assert filled == "x\n<!-- begin hard: a command -->\nnew\n\n`a command`\n<!-- end hard -->\ny\n"
    assert tree_report.fill(filled, {"hard": "new"}) == filled
    assert "Not measured yet." in tree_report.fill(filled, {})
    with pytest.raises(ValueError, match="markers"):
        tree_report.fill(page.replace("end hard", "end soft"), {})


def test_examples_of_the_page_and_of_the_studies() -> None:
    for module in (tree_pairs, tree_alignment_accuracy):
        result = doctest.testmod(module)
        assert (result.attempted > 0, result.failed) == (True, 0), module
    text = PAGE.read_text()
    for number, block in enumerate(re.findall(r"```pycon\n(.*?)```", text, flags=re.DOTALL)):
        example = doctest.DocTestParser().get_doctest(block, {}, f"{PAGE} {number}", str(PAGE), 0)
        assert doctest.DocTestRunner().run(example).failed == 0
    names: dict[str, Any] = {}
    exec(re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)[0], names)
    assert structloss.tree_edit_distance(names["a"], names["b"]).item() == 6
    assert names["posterior"].shape == (1, 10, 14)
