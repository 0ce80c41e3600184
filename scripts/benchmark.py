"""Compare normalizers: train a grid of runs and report what can be concluded from them.

    python scripts/benchmark.py --cfg digits_gan
    python scripts/benchmark.py --cfg cifar10_sngan --print_plan
    python scripts/benchmark.py --cfg cifar10_free --cluster slurm --submitit gpus_per_node=1
    python scripts/benchmark.py --cfg cifar10_sngan --merge /mnt/other/runs/benchmark/cifar10_sngan
    python scripts/benchmark.py --cfg mine.yaml --merge results/cifar10_small

Writes report.html, report.md, results.json and results.csv into runs/benchmark/NAME, beside the
runs. The same command again goes on: runs that are done are not repeated, those that were cut
resume, those that failed are tried again. Where a grid gives a gain in place of normalizer.scale,
pilot runs come first, and what they tell stays in matched.json.
"""

import argparse
import math
import sys
from functools import partial
from pathlib import Path
from typing import Any, Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import yaml

from classification.benchmark import CLASSIFICATION
from convnorm.experiment.benchmark import matching, merge
from convnorm.experiment.benchmark.cluster import Cluster
from convnorm.experiment.benchmark.deadline import Deadline
from convnorm.experiment.benchmark.execute import Executor, execute
from convnorm.experiment.benchmark.grid import FOLDER, Benchmark
from convnorm.experiment.benchmark.loading import load
from convnorm.experiment.benchmark.local import local_executor
from convnorm.experiment.benchmark.plan import check, describe
from convnorm.experiment.benchmark.results import gather
from convnorm.experiment.config import require, yaml_text
from convnorm.experiment.config.arguments import Parser, path, whole
from convnorm.experiment.config.files import list_of_configs
from convnorm.experiment.errors import InputError, exit_code, shortened
from convnorm.experiment.report import page
from gan.benchmark import GAN

MOST_HOURS = 10_000
PIPELINES = {pipeline.name: pipeline for pipeline in (GAN, CLASSIFICATION)}


def parse_args() -> argparse.Namespace:
    parser = Parser(__doc__)
    parser.add_argument("--cfg", help="a path or a name; without it, the configs are listed")
    parser.add_argument("--folder", type=path, help="of runs and report (runs/benchmark/NAME)")
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--print_plan", action="store_true", help="show what is done and left")
    action.add_argument("--report", action="store_true", help="report on what is done")
    action.add_argument(
        "--merge",
        type=path,
        nargs="+",
        metavar="FOLDER",
        help="take over finished runs of the same config, data and protocol from these folders, of "
        "this grid or others, then report; where a folder has a report alone, its numbers; runs "
        "that are here stay as they are",
    )
    parser.add_argument(
        "--workers",
        type=number_or_auto,
        help="runs side by side (1, or with --runs_per_gpu as many as it makes room for); auto: "
        "one a GPU or, without GPUs, one a core",
    )
    parser.add_argument(
        "--runs_per_gpu",
        type=number_or_auto,
        default=1,
        help="how many runs share a GPU (%(default)s); auto: one until it has been scored, then as "
        "many as stay within 80 %% of the memory by what runs say they take",
    )
    parser.add_argument(
        "--processes_per_run",
        type=whole(1, 1024),
        default=1,
        help="more than 1: torchrun (%(default)s)",
    )
    parser.add_argument(
        "--hours",
        type=hours,
        default=math.inf,
        metavar="H",
        help="begin no run that would not end within H hours from now, as far as finished runs "
        "tell; what still goes on then saves and stops, and the same command again resumes it",
    )
    parser.add_device("of the runs; auto takes CUDA devices where there are some")
    parser.add_argument(
        "--cluster",
        choices=["slurm", "local"],
        help="submit a job for each run, through submitit; local is for trying it out",
    )
    parser.add_argument(
        "--submitit", nargs="+", default=[], metavar="KEY=VALUE", help="parameters of submitit"
    )
    args = parser.parse_args()
    if args.cfg is None:
        parser.print_help()
        print(f"\n{list_of_configs(FOLDER)}", flush=True)
        raise InputError("--cfg: nothing given; expected a path or one of the names above")
    check_combinations(args)
    return args


def check_combinations(args: argparse.Namespace) -> None:
    """Refuse options that would have no effect beside each other."""
    unbounded = args.hours == math.inf
    for name in ("report", "merge", "print_plan"):
        if getattr(args, name):
            require(unbounded, "--hours", args.hours, f"none with --{name}, which starts no run")
            if name != "print_plan":
                what = f"none with --{name}, which starts no run"
                require(args.cluster is None, "--cluster", args.cluster, what)
    if args.cluster is not None:
        one = args.workers in (None, 1)
        require(one, "--workers", args.workers, "no --workers: a cluster has a queue of its own")
        alone = "1 with --cluster, whose jobs have GPUs of their own"
        require(args.runs_per_gpu == 1, "--runs_per_gpu", args.runs_per_gpu, alone)
        timed = "none with --cluster: --submitit timeout_min ends its jobs, which are resumed"
        require(unbounded, "--hours", args.hours, timed)
    else:
        require(not args.submitit, "--submitit", args.submitit, "none without --cluster")


def number_or_auto(given: str) -> int | Literal["auto"]:
    return "auto" if given == "auto" else whole(1, 1024)(given)


def hours(text: str) -> float:
    try:
        found = float(text)
    except ValueError:
        found = 0.0
    if not 0 < found <= MOST_HOURS:
        expected = f"more than 0 and at most {MOST_HOURS}"
        raise argparse.ArgumentTypeError(
            f"{shortened(repr(text))} is not allowed; expected {expected}"
        )
    return found


def executor(args: argparse.Namespace, deadline: Deadline, folder: Path) -> Executor:
    """Where the runs of a folder are carried out."""
    if args.cluster is not None:
        return Cluster(args.cluster, parameters(args.submitit), folder / "jobs")
    workers = args.workers or (1 if args.runs_per_gpu == 1 else "auto")
    numbers = (None if it == "auto" else it for it in (workers, args.runs_per_gpu))
    return local_executor(*numbers, args.processes_per_run, args.device, deadline)


def parameters(pairs: list[str]) -> dict[str, Any]:
    """KEY=VALUE with the values read as YAML."""
    for pair in pairs:
        require("=" in pair, "--submitit", pair, "KEY=VALUE")
    try:
        for pair in pairs:
            yaml_text.check(pair.partition("=")[2])
        return {key: yaml.safe_load(value) for key, _, value in (p.partition("=") for p in pairs)}
    except yaml.YAMLError:
        raise InputError(f"--submitit {' '.join(pairs)}: a value is not readable as YAML") from None


def matched(args: argparse.Namespace, deadline: Deadline, benchmark: Benchmark) -> Benchmark:
    """Find and keep the factors that the grid gives by a gain, and return it with its runs."""
    where = partial(executor, args, deadline)
    for found in matching.match(benchmark, where, args.processes_per_run, args.device):
        matching.freeze(benchmark, found)
        print(f"matched: {matching.told(found)}", flush=True)
    benchmark = load(args.cfg, args.folder, PIPELINES)
    check(benchmark)
    return benchmark


def merged(args: argparse.Namespace, benchmark: Benchmark) -> tuple[Benchmark, bool]:
    """Take over what other folders have; return the benchmark, and whether any run was refused."""
    for found in merge.take_gains(benchmark, args.merge):
        print(f"matched: taken over: {matching.told(found)}", flush=True)
    benchmark = load(args.cfg, args.folder, PIPELINES)
    check(benchmark)
    refused = False
    for run in merge.take_runs(benchmark, args.merge):
        print(run, file=sys.stderr if run.outcome == "refused" else sys.stdout, flush=True)
        refused |= run.outcome == "refused"
    return benchmark, refused


def main() -> int:
    args = parse_args()
    deadline = Deadline(args.hours)
    benchmark = load(args.cfg, args.folder, PIPELINES)
    check(benchmark)
    refused = False
    if args.merge:
        benchmark, refused = merged(args, benchmark)
    elif not args.report:
        where = executor(args, deadline, benchmark.folder)
        if benchmark.wanted:
            print(matching.describe(benchmark, where.workers), flush=True)
            if args.print_plan:
                return 0
            benchmark = matched(args, deadline, benchmark)
        print(describe(benchmark, where.workers), flush=True)
        if args.print_plan:
            return 0
        execute(benchmark, where, args.processes_per_run, args.device)
    report = gather(benchmark)
    print(f"report: {page.write(report, benchmark.folder)}")
    if args.report or args.merge:
        return int(bool(report.failed) or refused)
    return int(any(run.state != "done" for run in report.runs))


if __name__ == "__main__":
    sys.exit(exit_code(main))
