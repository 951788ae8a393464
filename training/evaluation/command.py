"""What `python -m training evaluate` does without a recipe: compare, grade a samples file, sample a model."""

from __future__ import annotations

import argparse
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training.config import ConfigError

if TYPE_CHECKING:
    from training.benchmarks import Benchmark
    from training.evaluation.generation import Sampling

Row = dict[str, Any]


def add_options(parser: argparse.ArgumentParser) -> None:
    what = parser.add_argument_group("instead of a recipe")
    what.add_argument("--compare", nargs=2, type=Path, metavar=("A", "B"), help="two runs, arms or graded samples")
    what.add_argument("--samples", type=Path, metavar="FILE", help="grade this file (EvalPlus's or human-eval's JSONL)")
    what.add_argument("--model", help="sample this checkpoint, or this model of --server, and grade it")
    what.add_argument("--server", metavar="URL", help="OpenAI-compatible server, e.g. http://localhost:8000/v1")

    grading = parser.add_argument_group("grading of samples")
    grading.add_argument("--benchmark", metavar="NAME", help="mbpp, mbpp_plus, humaneval, humaneval_plus, ...")
    grading.add_argument("--data", type=Path, help="folder or file of the benchmark (default: over the network)")
    grading.add_argument("--limit", type=int, metavar="N", help="the first N problems only")
    grading.add_argument("--out", type=Path, help="folder of the results (default: beside the samples)")
    grading.add_argument("--extract", action="store_true", help="take programs out of solutions and completions too")
    grading.add_argument("--partial", action="store_true", help="allow problems without a sample")
    grading.add_argument("--no-structure", action="store_true", help="no syntax match, data-flow match, TSED")
    grading.add_argument("--workers", type=int, default=2)
    grading.add_argument("--time-limit", type=float, default=4.0, metavar="S", help="seconds a program (not plus sets)")
    grading.add_argument("--memory-mb", type=int, default=4096)
    grading.add_argument("--cache", type=Path, help="folder of expected outputs (default: the user's cache)")
    grading.add_argument("--bubblewrap", action="store_true", help="start the sandbox's workers behind bubblewrap too")
    grading.add_argument("--unsafe", action="store_true", help="run without isolation where the machine has none")

    sampling = parser.add_argument_group("sampling (with --samples, --prompt and --temperature say how it was done)")
    sampling.add_argument("--prompt", metavar="ID", help="code-1, chat-1, think-1 (default: by the chat template)")
    sampling.add_argument("--n", type=int, default=1, help="samples a problem")
    sampling.add_argument("--temperature", type=float, help="0, the default, is greedy")
    sampling.add_argument("--max-new-tokens", type=int)
    sampling.add_argument("--seed", type=int, default=0)
    sampling.add_argument("--batch-size", type=int, default=16, help="local models")
    sampling.add_argument("--concurrency", type=int, default=16, help="requests to the server at a time")


def wanted(arguments: argparse.Namespace) -> bool:
    """Whether the options ask for something that needs no recipe."""
    return bool(arguments.compare or arguments.samples or arguments.model or arguments.server)


def work(arguments: argparse.Namespace) -> None:
    """Do what the options ask for; ConfigError where they do not fit together."""
    asked = [f"--{name}" for name in ("compare", "samples", "model") if getattr(arguments, name)]
    if len(asked) != 1 or (arguments.server and not arguments.model):
        raise ConfigError(
            f"give one of --compare, --samples, --model (with or without --server), got {asked or 'none'}"
        )
    if arguments.recipe is not None:
        raise ConfigError(f"{asked[0]} takes no recipe, got {arguments.recipe}")
    if arguments.compare:
        compare(*arguments.compare)
        return
    if not arguments.benchmark:
        raise ConfigError(f"{asked[0]} wants --benchmark NAME")
    grade(arguments)


def compare(first: Path, second: Path) -> None:
    from training.evaluation import compare as comparison

    pairs = comparison.pairs(comparison.find_evaluations(first), comparison.find_evaluations(second))
    for a, b in pairs:
        print(f"\n== A {a.name} {a.split}   B {b.name} {b.split}")
        print("\n".join(comparison.comparison_lines(a, b, comparison.compare(a, b))))


def grade(arguments: argparse.Namespace) -> None:
    """Sample if a model is given, then grade the samples and print the numbers."""
    from training.benchmarks import load_benchmark
    from training.evaluation.compare import samples_stem
    from training.evaluation.generation import Sampling
    from training.evaluation.verdict_file import Limits, grade_file

    samples, out = arguments.samples, arguments.out
    if samples is None:
        if out is None:
            raise ConfigError("--model wants --out FOLDER, for samples and results")
        sampling = Sampling(arguments.n, arguments.temperature or 0.0, arguments.max_new_tokens or 1024, arguments.seed)
    elif not samples.is_file():
        raise ConfigError(f"--samples: no such file: {samples}")
    benchmark = load_benchmark(arguments.benchmark, arguments.data)
    if arguments.limit:
        benchmark = replace(benchmark, problems=benchmark.problems[: arguments.limit])
    if samples is None:
        samples = sample(arguments, benchmark, sampling)
    out = out or samples.with_name(f"{samples_stem(samples)}.{benchmark.name}")
    results = grade_file(
        samples,
        benchmark,
        out,
        extract=arguments.extract,
        partial=arguments.partial,
        structure=not arguments.no_structure,
        limits=Limits(
            arguments.workers, arguments.memory_mb, arguments.time_limit, arguments.unsafe, arguments.bubblewrap
        ),
        cache=arguments.cache,
        generation=_conditions(samples, arguments),
    )
    print("\n".join(result_lines(results)))
    print(f"\nverdicts and results: {out}")


def sample(arguments: argparse.Namespace, benchmark: Benchmark, sampling: Sampling) -> Path:
    """Sample the model, local or behind a server; returns the samples file."""
    from training.evaluation.generation import sample_from_server, sample_locally
    from training.evaluation.server import Server

    out, prompt = arguments.out, arguments.prompt
    if not arguments.server:
        return sample_locally(
            arguments.model, benchmark, out, sampling, prompt_id=prompt, batch_size=arguments.batch_size
        )
    server = Server(arguments.server, arguments.model, api_key=os.environ.get("OPENAI_API_KEY"))
    return sample_from_server(server, benchmark, out, sampling, prompt_id=prompt, concurrency=arguments.concurrency)


def _conditions(samples: Path, arguments: argparse.Namespace) -> Row:
    """How the samples were made: what this program noted beside them, else what the options say."""
    from training.runs import read_json

    noted = samples.with_name("generation.json")
    if samples.name == "samples.jsonl" and noted.is_file():
        return {
            name: value
            for name, value in read_json(noted).items()
            if name in ("model", "server", "prompt", "temperature", "max_new_tokens", "seed")
        }
    return {
        "prompt": arguments.prompt,
        "temperature": arguments.temperature,
        "max_new_tokens": arguments.max_new_tokens,
    }


def result_lines(results: Row) -> list[str]:
    """The numbers of one graded file, in percent, and the conditions that they hold under."""
    from training.evaluation.summary import STRUCTURE, conditions_line

    lines = []
    for title in ("pass@k", "base pass@k"):
        for k, rate in results.get(title, {}).items():
            name = title.replace("@k", f"@{k}")
            lines.append(f"{name:16s}{100 * rate['value']:5.1f} [{100 * rate['low']:.1f}, {100 * rate['high']:.1f}]")
    for name in STRUCTURE:
        if (found := results[name])["n"]:
            interval = f"[{100 * found['low']:.1f}, {100 * found['high']:.1f}]"
            lines.append(f"{name:16s}{100 * found['mean']:5.1f} {interval} on {found['n']} problems")
    lines.append("verdicts        " + ", ".join(f"{name} {count}" for name, count in results["statuses"].items()))
    if left := results["problems_without_samples"]:
        lines.append(f"warning: {left} problems have no sample and are left out")
    if faults := results["statuses"].get("sandbox_error"):
        lines.append(f"warning: the sandbox failed on {faults} samples; they count as not passed")
    return [*lines, conditions_line(results)]
