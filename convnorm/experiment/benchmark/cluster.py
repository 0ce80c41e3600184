"""Runs attempts as jobs of a cluster, through submitit."""

import io
import json
import math
import os
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import submitit
from submitit.core.utils import pickle_load
from tqdm import tqdm

from convnorm.experiment import files
from convnorm.experiment.benchmark import slurm
from convnorm.experiment.benchmark.attempt import Attempt, AttemptRecord, Ended, lost
from convnorm.experiment.benchmark.local import available_cores, threads
from convnorm.experiment.codec import from_json
from convnorm.experiment.config import ROOT, require
from convnorm.experiment.errors import InputError

TIMEOUT = 24 * 60  # minutes, where timeout_min is not given; submitit's own are 2 and 5
REQUEUES = 100  # a run that outlasts its time is resumed by the next job
START = 210  # seconds for Python, and because Slurm's warning comes up to a minute early
WARNING = {"slurm": 90, "local": 30}  # seconds before the end, submitit's signal_delay_s
GRACE = 10  # seconds for a result to come over a network file system
# These end a job through no fault of its run, which resumes.
INTERRUPTED = {"BOOT_FAIL", "CANCELLED", "DEADLINE", "NODE_FAIL", "PREEMPTED", "REVOKED", "TIMEOUT"}
# The warning would end a Python that has not yet begun to listen for it.
PYTHON = shlex.join(["sh", "-c", 'trap "" USR2; exec "$0" "$@"', sys.executable])


class _Job:
    """An attempt that goes back into the queue when its time is up or it has to make room."""

    def __init__(self, attempt: Attempt):
        self.attempt = attempt

    def __call__(self) -> AttemptRecord:
        # Slurm sends it to all processes of a job that is cancelled or preempted; submitit ignores
        # it, and the run that saves and ends would seem to have failed.
        signal.signal(signal.SIGTERM, lambda *_: self.attempt.stop())
        share = threads(_cores_of_job(), self.attempt.processes)
        self.attempt.environment = {**self.attempt.environment, "OMP_NUM_THREADS": str(share)}
        return self.attempt()

    def checkpoint(self) -> submitit.helpers.DelayedSubmission:
        """Called by submitit at the cluster's signal; the next job resumes the run."""
        again = _Job(replace(self.attempt))
        self.attempt.stop()
        return submitit.helpers.DelayedSubmission(again)


def _cores_of_job() -> int:
    """Return the cores of this job; a node that does not bind its jobs shows them all its cores."""
    for name in ("SLURM_CPUS_PER_TASK", "SLURM_CPUS_ON_NODE"):
        if (value := os.environ.get(name, "")).isdecimal():
            return min(int(value), available_cores())
    return 1  # submitit's local jobs start all at once


@dataclass(frozen=True)
class Submitted:
    """A job whose end was not noted yet: a file beside those of submitit.

    run, arguments, processes, device: what it carries out. job: its id. name: in the queue. log:
    what the run's commands say.
    """

    run: str
    job: str
    name: str
    log: str
    arguments: tuple[str, ...]
    processes: int
    device: str


class _Going:
    """A submitted job.

    job: submitit's. end: returns the word for how the job ended, None while it goes on. grace:
    seconds between its end and that of the hope for a result. file: holds `submitted`, if any does.
    """

    def __init__(
        self,
        submitted: Submitted,
        job: submitit.Job,
        end: Callable[[], str | None],
        grace: float,
        file: Path | None,
    ):
        self.submitted, self.job, self.file = submitted, job, file
        self.wanted = self.cancelled = False
        self._end, self._grace = end, grace
        self._over: float | None = None  # since when

    @property
    def where(self) -> str:
        """The job and where to look for what it said."""
        return f"job {self.submitted.job}: {self.submitted.log}, {self.job.paths.stderr}"

    def record(self) -> AttemptRecord | None:
        """Return how it went, None while it goes on. A requeued job goes on."""
        word = self._end()
        if word is None:
            self._over = None
            return None
        if (result := self._result()) is not None:
            return result
        self._over = self._over or time.monotonic()
        if time.monotonic() - self._over < self._grace:
            return None
        stopped = self.cancelled or word in INTERRUPTED
        said = f"; its log ends: {last}" if (last := _last_line(self.job.paths.stderr)) else ""
        reason = f"job {self.submitted.job} ended without a result ({word}){said}"
        return lost(self.submitted.run, "stopped" if stopped else "failed", reason)

    def _result(self) -> AttemptRecord | None:
        """Return what the job wrote, None if it did not."""
        path = self.job.paths.result_pickle
        with suppress(OSError):  # lets a network file system look again
            path.parent.chmod(path.parent.stat().st_mode)
        if not path.exists():
            return None
        try:
            outcome, content = pickle_load(path)
        except Exception as error:  # pickle's can be any
            return lost(self.submitted.run, "failed", f"{path}: cannot be read ({error!r})")
        if outcome == "success":
            return content
        return lost(self.submitted.run, "failed", str(content).strip().splitlines()[-1])


def _last_line(path: Path) -> str:
    try:
        lines = path.read_text(errors="replace").split("\n")
    except OSError:
        return ""
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


class Cluster:
    """Submits a job for each run, all at once; the cluster decides when they start.

    A Slurm job outlives us: its id is kept in `folder`, and the next Cluster there adopts it.

    kind: slurm, or local for processes on this machine. parameters: those of submitit's
        AutoExecutor, such as timeout_min, gpus_per_node, slurm_partition. folder: for submitit's
        own files.
    """

    def __init__(self, kind: str, parameters: dict[str, Any], folder: Path):
        check(kind, parameters)
        self._kind, self._folder, self._queue = kind, folder, slurm.Queue()
        self._gpus = parameters.get(f"{kind}_gpus_per_node", parameters.get("gpus_per_node"))
        # The jobs' Python finds the suite as ours did, installed or not.
        path = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        os.environ["PYTHONPATH"] = os.pathsep.join(path)
        options = {f"{kind}_max_num_timeout": REQUEUES, f"{kind}_python": PYTHON}
        cores = parameters.get("slurm_cpus_per_task", parameters.get("cpus_per_task"))
        # Since 22.05 srun does not take them over from sbatch.
        srun = {} if cores is None else {"slurm_srun_args": [f"--cpus-per-task={cores}"]}
        try:
            self._executor = submitit.AutoExecutor(folder, cluster=kind, **options)
            self._executor.update_parameters(**{"timeout_min": TIMEOUT, **srun, **parameters})
        except (AssertionError, NameError, OSError, RuntimeError, TypeError, ValueError) as error:
            raise InputError(f"--cluster {kind}: {error}") from None
        for command in ("sbatch", "squeue", "scancel") if kind == "slurm" else ():
            if shutil.which(command) is None:
                raise InputError(f"--cluster slurm: there is no {command}; expected it on the PATH")
        kept = sorted(folder.glob("*.json")) if kind == "slurm" else []
        self._going = {job.submitted.run: job for job in map(self._adopted, kept)}

    @property
    def workers(self) -> int:
        """The largest number of jobs that can go on at a time."""
        return max(1, len(self._going))

    seconds_left = math.inf  # the jobs have an end of their own

    def has_room(self) -> bool:
        """Whether another job can be submitted: the cluster has a queue for them."""
        return True

    def wait(self, seconds: float) -> None:
        """Wait so long."""
        time.sleep(seconds)

    def submit(self, attempt: Attempt) -> None:
        """Submit a job for the attempt, unless one that was submitted before still goes on."""
        if type(self._gpus) is int and attempt.device != "cpu":
            fits = self._gpus == 0 or self._gpus >= attempt.processes
            expected = f"{attempt.processes} or more, as --processes_per_run says"
            require(fits, "--submitit gpus_per_node", self._gpus, expected)
        name = f"{attempt.benchmark.name}:{attempt.label}"
        wanted = Submitted(
            run=attempt.run.name,
            job="",
            name=name,
            log=str(attempt.log),
            arguments=attempt.run.arguments,
            processes=attempt.processes,
            device=attempt.device,
        )
        if (going := self._going.get(wanted.run)) is not None:
            job = going.submitted.job
            if replace(going.submitted, job="") != wanted:
                raise InputError(
                    f"{going.file}: job {job} carries out {wanted.run} with other settings and is "
                    f"still in the queue; expected the same grid and options, or `scancel {job}`"
                )
            going.wanted = True
            tqdm.write(f"{wanted.run}: goes on as job {job}", file=sys.stderr)
            return
        try:
            with redirect_stderr(io.StringIO()):  # submitit prints what its error says as well
                self._executor.update_parameters(name=name)
                job = self._executor.submit(_Job(attempt))
        except (OSError, RuntimeError) as error:
            raise InputError(f"--cluster {self._kind}: {wanted.run}: {error}") from None
        job.paths.result_pickle.unlink(missing_ok=True)  # of an earlier job with the same id
        submitted, file = replace(wanted, job=job.job_id), None
        if self._kind == "slurm":
            file = self._folder / f"{attempt.label}.json"
            files.write_json(file, asdict(submitted))
        end = self._end(submitted, job, time.monotonic())
        self._going[wanted.run] = _Going(submitted, job, end, GRACE, file)
        self._going[wanted.run].wanted = True

    def ended(self) -> Iterator[Ended]:
        """Yield what has ended; it is forgotten when the next one is asked for."""
        for run, going in list(self._going.items()):
            if (record := going.record()) is not None:
                del self._going[run]
                yield Ended(record, going.where)
                if going.file is not None:
                    going.file.unlink(missing_ok=True)

    def stop(self) -> None:
        """Cancel the jobs of all that was submitted; a run that is going on saves and ends."""
        wanted = [going for going in self._going.values() if going.wanted]
        for going in wanted:
            going.cancelled = True
            if self._kind == "local":
                going.job.cancel()
        if self._kind == "slurm":
            slurm.cancel([going.submitted.job for going in wanted])

    def _adopted(self, file: Path) -> _Going:
        """The job that an earlier process has submitted; it may be over."""
        try:
            submitted = from_json(Submitted, json.loads(file.read_bytes()), file)
        except (OSError, RecursionError, ValueError) as error:
            raise InputError(
                f"{file}: damaged ({error}); expected the id of a job, or no such file where no "
                "job of its run is left in the queue"
            ) from None
        job = submitit.SlurmJob(folder=self._folder, job_id=submitted.job)
        return _Going(submitted, job, self._end(submitted, job, float("-inf")), 0, file)

    def _end(
        self, submitted: Submitted, job: submitit.Job, since: float
    ) -> Callable[[], str | None]:
        if self._kind == "slurm":
            return lambda: self._queue.end(submitted.job, submitted.name, since)
        return lambda: job.state if job.done() else None


def check(kind: str, parameters: dict[str, Any]) -> None:
    """Raise an InputError for parameters of submitit under which no run would get far."""
    given = {key.removeprefix(f"{kind}_"): (key, value) for key, value in parameters.items()}
    ours = {"name", "job_name", "array_parallelism"} & given.keys()
    for key, value in map(given.get, sorted(ours)):
        require(False, f"--submitit {key}", value, "none: each run is a job, named after it")
    for name in {"nodes", "tasks_per_node", "ntasks_per_node"} & given.keys():
        key, value = given[name]
        require(value == 1, f"--submitit {key}", value, "1, as --processes_per_run sets the others")
    key, delay = given.get("signal_delay_s", ("", WARNING[kind]))
    fits = type(delay) is int and delay > 0
    require(fits, f"--submitit {key}", delay, "a number of seconds")
    least = max(5, -(-(delay + START) // 60))
    for name in {"timeout_min", "time"} & given.keys():
        key, minutes = given[name]
        fits = type(minutes) in (int, float) and least <= minutes < float("inf")
        why = f"the cluster's warning comes {delay} s and up to a minute before the end, and a job"
        expected = f"{least} minutes or more: {why} that has not begun by then loses what it did"
        require(fits, f"--submitit {key}", minutes, expected)
