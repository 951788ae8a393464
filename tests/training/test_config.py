"""Recipes: every shipped one is valid, and faults are named before work starts."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from training.config import ConfigError, RunConfig, load_config

RECIPES = Path("training/recipes")


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text("name: test\n")
    return path


@pytest.mark.parametrize("path", sorted(RECIPES.glob("kata*.yaml")), ids=lambda path: path.stem)
def test_shipped_recipes_are_valid(path: Path) -> None:
    config = load_config(path, [])
    assert config.arms
    assert RunConfig(**config.model_dump(mode="json")) == config


def test_overrides_reach_their_values(recipe: Path) -> None:
    config = load_config(recipe, ["train.tokens=5", "loss.alpha=0.5", "arms.cross_entropy.alpha=0", "seed=3"])
    assert (config.train.tokens, config.seed) == (5, 3)
    assert config.loss_of("cross_entropy").alpha == 0
    assert load_config(recipe, []).loss_of("structure_aware").alpha == 1.0


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.tokens=0", r"train\.tokens: .*greater than or equal to 1 \(got 0\)"),
        ("train.token=5", r"train\.token: Extra inputs"),
        ("seed", "wants the form section.name=value"),
        ("name.first=x", "'name' is a value, not a section"),
        ("data.source=mbpp", "wants the section data.mbpp"),
        ("arms={}", "arms: "),
        ("arms.nearest={}", "no usable name"),
        ("arms.mine.alpha=-1", "alpha"),
        ("student.heads=3", r"hidden_size \(128\) must be a multiple"),
        ("name=a/b", "name: "),
        ("train.tokens=[", "not YAML"),
    ],
)
def test_faults_are_named(recipe: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(recipe, [override])


def test_missing_files_are_named(tmp_path: Path, recipe: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read the recipe"):
        load_config(tmp_path / "none.yaml", [])
    paths = [f"data.mbpp.{name}={tmp_path / 'none.jsonl'}" for name in ("problems", "plus", "traces")]
    with pytest.raises(ConfigError, match=r"data\.mbpp\.problems: no such file"):
        load_config(recipe, paths)
    recipe.write_text("- a\n- b\n")
    with pytest.raises(ConfigError, match="wants a mapping"):
        load_config(recipe, [])


def test_pathways_want_candidates(tmp_path: Path, recipe: Path) -> None:
    file = tmp_path / "f.jsonl"
    file.write_text("")
    paths = {name: str(file) for name in ("problems", "traces", "plus")}
    recipe.write_text(yaml.safe_dump({"name": "t", "data": {"source": "mbpp", "mbpp": paths}}))
    load_config(recipe, [])
    with pytest.raises(ConfigError, match="lambda_path: candidates for the pathway term exist for 'kata' only"):
        load_config(recipe, ["loss.lambda_path=1"])
