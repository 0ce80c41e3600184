"""Runs attempts as jobs of a cluster, through submitit."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import submitit

from convnorm.experiment.benchmark.attempt import Attempt, AttemptRecord
from convnorm.experiment.config import ROOT
from convnorm.experiment.errors import InputError

TIMEOUT = 24 * 60  # minutes, where timeout_min is not given; submitit's own are 2 and 5
REQUEUES = 100  # a run that outlasts its time is resumed by the next job


class _Job:
    """An attempt that goes back into the queue when its time is up or it has to make room."""

    def __init__(self, attempt: Attempt):
        self.attempt = attempt

    def __call__(self) -> AttemptRecord:
        return self.attempt()

    def checkpoint(self) -> submitit.helpers.DelayedSubmission:
        """Called by submitit at the cluster's signal; the next job resumes the run."""
        again = _Job(replace(self.attempt))
        self.attempt.stop()
        return submitit.helpers.DelayedSubmission(again)


class Cluster:
    """Submits a job for each run, all at once; the cluster decides when they start.

    kind: slurm, or local for processes on this machine. parameters: those of submitit's
        AutoExecutor, such as timeout_min, gpus_per_node, slurm_partition. folder: for submitit's
        own files.
    """

    def __init__(self, kind: str, parameters: dict[str, Any], folder: Path):
        # The jobs' Python finds the suite as ours did, installed or not.
        path = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        os.environ["PYTHONPATH"] = os.pathsep.join(path)
        try:
            requeues = {f"{kind}_max_num_timeout": REQUEUES}
            self._executor = submitit.AutoExecutor(folder, cluster=kind, **requeues)
            self._executor.update_parameters(**{"timeout_min": TIMEOUT, **parameters})
        except (AssertionError, NameError, OSError, RuntimeError, TypeError, ValueError) as error:
            raise InputError(f"--cluster {kind}: {error}") from None
        self._jobs: list[submitit.Job] = []

    @property
    def workers(self) -> int:
        """The largest number of jobs that can go on at a time."""
        return max(1, len(self._jobs))

    def submit(self, attempt: Attempt) -> submitit.Job:
        """Return the job, whose result is the attempt's record."""
        self._jobs.append(self._executor.submit(_Job(attempt)))
        return self._jobs[-1]

    def stop(self) -> None:
        """Cancel all jobs; a run that is going on saves and ends."""
        for job in self._jobs:
            job.cancel()
