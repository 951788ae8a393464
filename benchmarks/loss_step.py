"""What one training step costs, by loss: python -m benchmarks.loss_step [--out FILE.json].

One student (a Llama from a configuration), one batch of real teacher code, one thread. Interleaved in rotating order:
the trunk alone, eager cross-entropy on full logits, the fused plain loss, the gap-weighted loss, and the gap with the
alignment term. The floor is the trunk.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F

from structloss import StructureAwareLoss, StructureCollator, VisitCache, encode_example, hidden_and_head
from structloss.trees import num_kinds
from training import text
from training.config import StudentConfig
from training.kata import make_kata
from training.students import build_student, load_tokenizer, train_tokenizer


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.loss_step", description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, help="write the result as JSON")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--hidden-size", type=int, default=128)
    options = parser.parse_args()
    torch.set_num_threads(1)
    variants = build_variants(options.batch_size, options.hidden_size)
    seconds = measure(variants, options.rounds)
    floor = statistics.median(seconds["trunk"])
    plain = statistics.median(seconds["fused cross-entropy"])
    rows = []
    for name, times in seconds.items():
        quartiles = statistics.quantiles(times, n=4)
        rows.append(
            {
                "variant": name,
                "median_ms": 1e3 * statistics.median(times),
                "p25_ms": 1e3 * quartiles[0],
                "p75_ms": 1e3 * quartiles[2],
                "over_trunk": statistics.median(times) / floor,
                "over_fused_cross_entropy": statistics.median(times) / plain,
            }
        )
        row = rows[-1]
        print(
            f"{name:32} {row['median_ms']:8.1f} ms  [{row['p25_ms']:.1f}, {row['p75_ms']:.1f}]  "
            f"{row['over_trunk']:.2f} x trunk  {row['over_fused_cross_entropy']:.2f} x fused"
        )
    if options.out:
        report = {
            "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            "torch": torch.__version__,
            "python": platform.python_version(),
            "machine": platform.machine(),
            "threads": 1,
            "rows": rows,
        }
        options.out.write_text(json.dumps(report | {"batch_size": options.batch_size}, indent=1) + "\n")


def build_variants(batch_size: int, hidden_size: int) -> dict[str, Callable[[], torch.Tensor]]:
    """Each variant gives the scalar to differentiate; they agree where they compute the same."""
    traces = make_kata(max(batch_size, 40), 1, 1).traces[:batch_size]
    with tempfile.TemporaryDirectory() as folder:
        written = ("".join(part for _, part in text.segments(trace)) for trace in traces)
        train_tokenizer(written, 1024).save_pretrained(folder)
        tokenizer = load_tokenizer(folder)
    config = StudentConfig(hidden_size=hidden_size, intermediate_size=3 * hidden_size)
    student = build_student(config, tokenizer, seed=0, max_positions=512)
    examples = [
        encode_example(tokenizer, text.segments(trace), id=trace["id"], code_prefix=trace["code_prefix"])
        for trace in traces
    ]
    inputs = StructureCollator(tokenizer.pad_token_id)(examples)
    batch = inputs["structure"]
    visits = VisitCache(tokenizer)
    visits.update(examples, batch.labels)
    plain = StructureAwareLoss(alpha=0.0)
    gap = StructureAwareLoss(alpha=1.0, ramp_shape="constant")
    both = StructureAwareLoss(
        alpha=1.0, lambda_align=0.1, ramp_shape="constant", hidden_size=hidden_size, num_kinds=num_kinds("python")
    )

    def head() -> tuple[torch.Tensor, torch.Tensor]:
        made = hidden_and_head(student, input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"])
        return made.hidden, made.weight

    def eager() -> torch.Tensor:
        hidden, weight = head()
        return F.cross_entropy((hidden[:, :-1] @ weight.T).flatten(0, 1), batch.labels[:, 1:].flatten())

    def with_own_code(loss: StructureAwareLoss) -> torch.Tensor:
        structure = visits.attach(batch, examples)
        output = loss(*head(), structure, progress=0.5)
        visits.update(examples, output.argmax)
        return output.loss

    variants = {
        "trunk": lambda: head()[0].sum(),
        "eager cross-entropy": eager,
        "fused cross-entropy": lambda: plain(*head(), batch, progress=0.5).loss,
        "structure-aware, gap": lambda: with_own_code(gap),
        "structure-aware, gap + alignment": lambda: with_own_code(both),
    }
    torch.testing.assert_close(variants["eager cross-entropy"](), variants["fused cross-entropy"]())
    return variants


def measure(variants: dict[str, Callable[[], torch.Tensor]], rounds: int) -> dict[str, list[float]]:
    """Seconds of forward and backward, interleaved with rotating order; the first two rounds are warm-up."""
    names = list(variants)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds + 2):
        shift = number % len(names)
        for name in names[shift:] + names[:shift]:
            started = time.perf_counter()
            variants[name]().backward()
            if number >= 2:
                seconds[name].append(time.perf_counter() - started)
    return seconds


if __name__ == "__main__":
    main()
