"""The command line: python -m training VERB RECIPE [section.name=value ...]."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from training.config import ConfigError, RunConfig, load_config
from training.evaluation import command

if TYPE_CHECKING:
    from training.runs import RunFolder

EXAMPLES = """examples:
  python -m training distill training/recipes/kata.yaml                      everything, with a report at the end
  python -m training distill training/recipes/kata.yaml seed=1               another seed, in a folder of its own
  python -m training train training/recipes/kata.yaml --arm cross_entropy train.tokens=200000
  python -m training evaluate --samples samples.jsonl --benchmark humaneval_plus --data DATA
  python -m training evaluate --compare runs/a/arms/cross_entropy runs/a/arms/structure_aware
  python -m training doctor                                                  may model-written code be run here?
  python -m training report runs/kata-seed0 runs/kata-seed1 --out runs/seeds.json

A verb that was stopped continues where it was when it is called again with the same recipe and overrides.
"""
VERBS = {
    "verify": "make or load the data and run every teacher trace against its tests",
    "train": "verify, then train the arms one after the other",
    "evaluate": "evaluate trained arms and baselines on the test splits; or samples, or any model, on a benchmark",
    "distill": "all stages: data, verify, train, evaluate, report",
}


DOCTOR = "which walls around model-written code really hold here, and what they cost"


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m training",
        description="Distil a teacher's traces into a student with the structure-aware loss, and evaluate it.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for name, description in VERBS.items():
        verb = verbs.add_parser(name, help=description, description=description)
        verb.add_argument(
            "recipe", type=Path, nargs="?" if name == "evaluate" else None, help="YAML file, see training/recipes/"
        )
        verb.add_argument(
            "overrides", nargs="*", metavar="section.name=value", help="change single values of the recipe"
        )
        verb.add_argument("--run", type=Path, help="run folder (default: runs/NAME-seedSEED)")
        if name in ("train", "evaluate"):
            verb.add_argument("--arm", action="append", help="only this arm (may be given more than once)")
        if name == "evaluate":
            command.add_options(verb)
    verbs.add_parser("doctor", help=DOCTOR, description=f"Probe this machine: {DOCTOR}. Exit status 1 where not.")
    report = verbs.add_parser("report", help="write the report of a run, or one table over several runs")
    report.add_argument("runs", nargs="+", type=Path, help="run folders")
    report.add_argument("--out", type=Path, help="with several runs: where the table goes (JSON, and HTML beside it)")
    return parser


def work(arguments: argparse.Namespace) -> None:
    # The stages import torch and transformers; --help and a faulty recipe should not wait for them.
    if arguments.verb == "doctor":
        from training.doctor import examine

        sys.exit(examine())
    if arguments.verb == "report":
        from training import report
        from training.runs import RunFolder

        opened = [RunFolder.existing(root) for root in arguments.runs]
        if len(opened) == 1 and arguments.out is None:
            path = report.write_report(*opened[0])
            report.print_results(*opened[0])
        else:
            path = arguments.out or Path("runs/comparison.json")
            print("\n".join(report.table_lines(report.compare_runs(opened, path))))
        print(f"\nreport: {path}")
        return

    if arguments.verb == "evaluate" and command.wanted(arguments):
        command.work(arguments)
        return
    if arguments.recipe is None:
        raise ConfigError("evaluate wants a recipe, or one of --compare, --samples, --model")

    config = load_config(arguments.recipe, arguments.overrides)
    from training.distill import distill
    from training.runs import RunFolder

    run = RunFolder.create(arguments.run or default_run_folder(config), config)
    with run.lock():
        if arguments.verb == "distill":
            distill(run, config)
        else:
            do_stages(arguments, run, config)


def do_stages(arguments: argparse.Namespace, run: RunFolder, config: RunConfig) -> None:
    """The verbs verify, train and evaluate."""
    from training.data import prepare_data, verify_data
    from training.distill import timed

    timed(run, "data", lambda: prepare_data(run, config))
    verified = timed(run, "verify", lambda: verify_data(run, config))
    if arguments.verb == "verify":
        print(f"   {verified['traces']}\n   verdicts: {run.verified_path}")
    elif arguments.verb == "train":
        from training.train import train_arm

        for arm in arguments.arm or config.arms:
            config.loss_of(arm)
            summary = timed(run, f"train {arm}", lambda arm=arm: train_arm(run, config, arm))  # type: ignore[misc]
            print(f"   {summary['tokens']} tokens, {summary['steps']} steps, {summary['seconds']} s")
    else:
        from training.evaluate import BASELINES, evaluate_arm
        from training.report import print_results

        wanted = [*config.arms, *(b for b in BASELINES if getattr(config.evaluate, b))]
        for arm in arguments.arm or wanted:
            if arm not in BASELINES:
                config.loss_of(arm)
            timed(run, f"evaluate {arm}", lambda arm=arm: evaluate_arm(run, config, arm))  # type: ignore[misc]
        print_results(run, config)


def default_run_folder(config: RunConfig) -> Path:
    return Path("runs") / f"{config.name}-seed{config.seed}"


def main(argv: list[str] | None = None) -> int:
    parser = build_parser()
    # Overrides may also follow an option, which argparse does not take as the same positional list.
    arguments, rest = parser.parse_known_args(argv)
    if unknown := [word for word in rest if word.startswith("-") or "=" not in word or arguments.verb == "report"]:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    if rest:
        arguments.overrides += rest
    try:
        work(arguments)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (RuntimeError, OSError, ValueError) as error:
        print(f"\nerror: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nstopped; the same command continues from here", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
