"""One YAML file describes a run; dotted overrides change single values; everything is checked before work starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator


class ConfigError(ValueError):
    """A recipe or an override that cannot be used; the message says where and what is wanted."""


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class KataConfig(Section):
    """The embedded default: problems made by a grammar."""

    num_train: int = Field(4000, ge=1, description="training problems")
    num_validation: int = Field(100, ge=1, description="validation problems")
    num_test: int = Field(300, ge=1, description="problems of each test split")
    seed: int = Field(0, ge=0, description="of the problems; the same for all training seeds")
    traces_per_problem: int = Field(1, ge=1, description="teacher traces, in different structures")


class MbppConfig(Section):
    """Real problems and real teacher traces, given by path."""

    problems: Path = Field(description="mbpp.jsonl")
    traces: Path = Field(description="teacher traces, .jsonl or .jsonl.gz")
    plus: Path = Field(description="MbppPlus.jsonl.gz: its tasks are kept out of training")
    humaneval: Path | None = Field(None, description="HumanEval.jsonl.gz: its tasks too")
    references: bool = Field(True, description="MBPP's own solutions of training problems as further traces")
    test_limit: int | None = Field(None, ge=1, description="evaluate on the first so many test problems")

    @field_validator("problems", "traces", "plus", "humaneval")
    @classmethod
    def absolute(cls, path: Path | None) -> Path | None:
        return None if path is None else path.expanduser().resolve()


class DataConfig(Section):
    source: Literal["kata", "mbpp"] = "kata"
    kata: KataConfig = KataConfig()
    mbpp: MbppConfig | None = None
    max_tokens: int = Field(1024, ge=16, description="longer examples are dropped, and counted")

    @model_validator(mode="after")
    def source_is_described(self) -> DataConfig:
        if self.source == "mbpp" and self.mbpp is None:
            raise ValueError("source 'mbpp' wants the section data.mbpp with problems, traces and plus")
        return self


class StudentConfig(Section):
    """A Llama-shaped student from scratch, or a local checkpoint (or hub name) with its own tokenizer."""

    pretrained: str | None = Field(None, description="folder or hub name; the sizes below are then unused")
    vocab_size: int = Field(1024, ge=300)
    hidden_size: int = Field(128, ge=8)
    intermediate_size: int = Field(384, ge=8)
    layers: int = Field(4, ge=1)
    heads: int = Field(4, ge=1)

    @model_validator(mode="after")
    def heads_divide(self) -> StudentConfig:
        if self.hidden_size % (2 * self.heads):
            raise ValueError(f"hidden_size ({self.hidden_size}) must be a multiple of 2 * heads ({2 * self.heads})")
        return self


class TrainConfig(Section):
    tokens: int = Field(1_100_000, ge=1, description="budget: training ends when so many were seen")
    batch_size: int = Field(8, ge=1)
    optimizer: Literal["adamw", "muon"] = Field("muon", description="muon: for the trunk's matrices, AdamW elsewhere")
    learning_rate: float = Field(3e-3, gt=0)
    warmup: float = Field(0.03, ge=0, le=1, description="share of the steps")
    final_learning_rate: float = Field(0.05, ge=0, le=1, description="share of learning_rate at the end")
    weight_decay: float = Field(0.1, ge=0)
    max_grad_norm: float = Field(1.0, gt=0)
    log_every: int = Field(20, ge=1, description="steps")
    checkpoint_every: int = Field(200, ge=1, description="steps")


class LossConfig(Section):
    """Arguments of structloss.StructureAwareLoss."""

    reasoning_weight: float = Field(1.0, ge=0)
    code_weight: float = Field(1.0, ge=0)
    alpha: float = Field(1.0, ge=0)
    gap_temperature: float = Field(0.25, gt=0)
    same_kind: float = Field(0.5, ge=0, le=1)
    lambda_align: float = Field(0.1, ge=0)
    lambda_path: float = Field(0.0, ge=0)
    path_beta: float = Field(10.0, gt=0)
    path_margin: float = Field(0.5, ge=0)
    path_margin_per_distance: float = Field(2.0, ge=0)
    ramp_shape: Literal["constant", "linear", "cosine"] = "linear"
    ramp_end: float = Field(0.5, gt=0, le=1)
    rho: float = Field(0.1, gt=0, lt=1)


class PathwayConfig(Section):
    """Groups of candidate solutions for L_path; used when an arm's lambda_path is above 0."""

    problems: int = Field(400, ge=1, description="training problems with a group of candidates")
    candidates: int = Field(4, ge=2, description="candidates a problem, right and wrong ones")


class EvaluateConfig(Section):
    splits: list[str] | None = Field(None, description="default: every test split of the data")
    max_new_tokens: int = Field(160, ge=1)
    batch_size: int = Field(50, ge=1)
    n: int = Field(1, ge=1, description="samples a problem; above 1 wants a temperature")
    temperature: float = Field(0.0, ge=0, description="0 is greedy")
    untrained: bool = Field(True, description="evaluate the student before training as well")
    nearest: bool = Field(True, description="copy of the nearest training solution as a baseline")

    @model_validator(mode="after")
    def samples_can_differ(self) -> EvaluateConfig:
        if self.n > 1 and self.temperature == 0:
            raise ValueError(f"n ({self.n}) greedy samples are all the same; set temperature, e.g. 0.8")
        return self


class SandboxConfig(Section):
    workers: int = Field(2, ge=1)
    time_limit_s: float = Field(4.0, gt=0)
    memory_mb: int = Field(512, ge=64)
    bubblewrap: bool = Field(False, description="start the workers behind bubblewrap as well, which must be installed")
    unsafe: bool = Field(False, description="run without isolation where the machine has none")


class RunConfig(Section):
    """A run. `arms` are trained on the same tokens; each overrides values of `loss`."""

    name: str = Field(pattern=r"^[A-Za-z0-9_.-]+$")
    seed: int = Field(0, ge=0, description="of the student and the order of training")
    data: DataConfig = DataConfig()
    student: StudentConfig = StudentConfig()
    train: TrainConfig = TrainConfig()
    loss: LossConfig = LossConfig()
    arms: dict[str, dict[str, Any]] = Field(
        default={"cross_entropy": {"alpha": 0.0, "lambda_align": 0.0}, "structure_aware": {}}, min_length=1
    )
    pathway: PathwayConfig = PathwayConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    sandbox: SandboxConfig = SandboxConfig()

    @model_validator(mode="after")
    def arms_are_valid(self) -> RunConfig:
        for arm in self.arms:
            if not arm.isidentifier() or arm in ("untrained", "nearest"):
                raise ValueError(f"arms: {arm!r} is no usable name (a Python identifier, not a baseline's name)")
            self.loss_of(arm)
        if self.data.source != "kata" and any(self.loss_of(arm).lambda_path > 0 for arm in self.arms):
            raise ValueError(
                f"lambda_path: candidates for the pathway term exist for 'kata' only, not for {self.data.source!r}"
            )
        return self

    @property
    def max_positions(self) -> int:
        """Positions that a student from scratch must have: the longest example, or a prompt and what is generated."""
        return self.data.max_tokens + self.evaluate.max_new_tokens

    def loss_of(self, arm: str) -> LossConfig:
        """The loss of one arm: `loss` with the arm's overrides."""
        if arm not in self.arms:
            raise ConfigError(f"no arm {arm!r} in this recipe; it has {', '.join(self.arms)}")
        return LossConfig(**{**self.loss.model_dump(), **self.arms[arm]})


def apply_override(values: dict[str, Any], override: str) -> None:
    """Set `a.b.c=value` in nested mappings; the value is YAML."""
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise ConfigError(f"override {override!r}: wants the form section.name=value, e.g. train.tokens=200000")
    *sections, last = key.split(".")
    for section in sections:
        inner = values.setdefault(section, {})
        if not isinstance(inner, dict):
            raise ConfigError(f"override {override!r}: {section!r} is a value, not a section")
        values = inner
    try:
        values[last] = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"override {override!r}: the value is not YAML ({error})") from None


def load_config(recipe: Path, overrides: list[str]) -> RunConfig:
    """Read a recipe, apply overrides, check everything.

    Relative paths of data files are relative to the working directory.

    Raises:
        ConfigError: with one line a fault, each with its dotted name.
    """
    try:
        values = yaml.safe_load(recipe.read_text())
    except OSError as error:
        raise ConfigError(f"cannot read the recipe {recipe}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{recipe} is not YAML: {error}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{recipe}: wants a mapping of sections at the top")
    for override in overrides:
        apply_override(values, override)
    try:
        config = RunConfig.model_validate(values)
    except ValidationError as error:
        faults = [
            f"  {'.'.join(map(str, fault['loc'])) or 'recipe'}: {fault['msg']}"
            + (f" (got {fault['input']!r})" if not isinstance(fault["input"], dict) else "")
            for fault in error.errors()
        ]
        raise ConfigError(f"{recipe} with its overrides is not valid:\n" + "\n".join(faults)) from None
    if config.data.mbpp is not None:
        for name in ("problems", "traces", "plus", "humaneval"):
            path = getattr(config.data.mbpp, name)
            if path is not None and not path.is_file():
                raise ConfigError(f"data.mbpp.{name}: no such file: {path}")
    return config
