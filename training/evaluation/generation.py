"""Samples of a model on a benchmark, from a local model or a server, appended to a file that can be gone on with."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from training.benchmarks import Benchmark
from training.config import ConfigError
from training.evaluation.folder import held_folder
from training.evaluation.prompts import Prompt, choose_prompt, local_prompt
from training.evaluation.samples import Sample, by_task_id, find_problem, program_of, read_samples
from training.evaluation.server import Answer, Server, ask_all
from training.evaluation.summary import problems_hash
from training.extraction import EXTRACTOR
from training.jsonl import JsonlAppender
from training.progress import Progress

Row = dict[str, Any]


@dataclass(frozen=True)
class Sampling:
    """How samples are drawn. temperature 0 is greedy, and then n must be 1."""

    n: int = 1
    temperature: float = 0.0
    max_new_tokens: int = 1024
    seed: int = 0

    def __post_init__(self) -> None:
        if self.n < 1:
            raise ConfigError(f"--n: got {self.n}, wants at least 1")
        if self.temperature < 0:
            raise ConfigError(f"--temperature: got {self.temperature}, wants 0 (greedy) or more")
        if self.n > 1 and self.temperature == 0:
            raise ConfigError(f"--n: {self.n} greedy samples are all the same; set --temperature, e.g. 0.8")


def sample_locally(
    model_path: str, benchmark: Benchmark, out: Path, sampling: Sampling, *, prompt_id: str | None, batch_size: int
) -> Path:
    """Samples of a local checkpoint (or hub name) in `out`/samples.jsonl; returns that path.

    Samples are drawn problem after problem. Where a run goes on after a stop, the batches are others than they would
    have been, so sampled answers differ from those of a run that was not stopped.
    """
    import torch
    from transformers import AutoModelForCausalLM

    from training.generate import generate
    from training.students import load_tokenizer

    tokenizer = load_tokenizer(model_path)
    prompt = choose_prompt(prompt_id, has_chat_template=bool(tokenizer.chat_template))
    with _samples_file(out, benchmark, sampling, prompt, model=model_path) as file:
        asked = [(problem, index) for problem, indices in file.missing for index in indices]
        if not asked:
            return file.path
        device = "cuda" if torch.cuda.is_available() else "cpu"
        model: Any = AutoModelForCausalLM.from_pretrained(model_path, dtype="auto")
        model.to(device)
        texts = [local_prompt(prompt, problem, tokenizer) for problem, _ in asked]
        batches = generate(
            model,
            tokenizer,
            [text for text, _ in texts],
            batch_size=batch_size,
            max_new_tokens=sampling.max_new_tokens,
            temperature=sampling.temperature,
            seed=sampling.seed,
            first=file.done,
            add_special_tokens=prompt.special_tokens and not prompt.chat,
        )
        answers = (answer for batch in batches for answer in batch)
        for (problem, index), (_, opening), (text, ended) in zip(asked, texts, answers, strict=True):
            file.add(problem, index, Answer(opening + text, ended))
        return file.path


def sample_from_server(
    server: Server, benchmark: Benchmark, out: Path, sampling: Sampling, *, prompt_id: str | None, concurrency: int
) -> Path:
    """Samples of a model behind an OpenAI-compatible server in `out`/samples.jsonl; returns that path."""
    prompt = choose_prompt(prompt_id, has_chat_template=True)
    with _samples_file(out, benchmark, sampling, prompt, model=server.model, server=server.url) as file:
        ask_all(
            server,
            prompt,
            file.missing,
            file.add,
            concurrency=concurrency,
            temperature=sampling.temperature,
            max_new_tokens=sampling.max_new_tokens,
            seed=sampling.seed,
        )
        return file.path


@dataclass
class _SamplesFile:
    """A samples file that is being written: what is missing in it, and a way to add a row."""

    path: Path
    done: int
    missing: list[tuple[Row, list[int]]]
    appender: JsonlAppender
    progress: Progress

    def add(self, problem: Row, index: int, answer: Answer) -> None:
        """Appends an answer, with the program in it for tools that read EvalPlus's samples."""
        name = str(problem["task_id"])
        name = f"Mbpp/{name}" if name.isdigit() else name
        code, _ = program_of(Sample(name, index, answer.text, "output", answer.ended), problem, extract=True)
        row = {"task_id": name, "sample": index, "solution": code, "output": answer.text, "ended": answer.ended}
        self.appender.append(row | {"extractor": EXTRACTOR})
        self.progress.update(1)


@contextlib.contextmanager
def _samples_file(
    out: Path, benchmark: Benchmark, sampling: Sampling, prompt: Prompt, *, model: str, server: str | None = None
) -> Iterator[_SamplesFile]:
    """Holds `out`/samples.jsonl, with how it is made in generation.json; synced to the disk at the end."""
    settings = {
        "set": benchmark.name,
        "version": benchmark.version,
        "problems_sha256": problems_hash(benchmark.problems),
        "model": model,
        "server": server,
        "prompt": prompt.id,
        **asdict(sampling),
    }
    path = out / "samples.jsonl"
    with held_folder(out, "generation.json", settings), JsonlAppender(path) as appender:
        names = by_task_id(benchmark.problems)
        there: dict[str, set[int]] = {}
        for sample in read_samples(path):
            there.setdefault(find_problem(names, sample.task_id)["id"], set()).add(sample.index)
        missing = []
        for problem in benchmark.problems:
            if indices := [index for index in range(sampling.n) if index not in there.get(problem["id"], ())]:
                missing.append((problem, indices))
        left = sum(len(indices) for _, indices in missing)
        with Progress(f"sample {benchmark.name}", left, unit="sample") as progress:
            yield _SamplesFile(path, sum(map(len, there.values())), missing, appender, progress)
        appender.sync()
