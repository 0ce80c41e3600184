"""Asks Slurm about all jobs of this user at once, with accounting or without."""

import os
import subprocess
import sys
import time

from tqdm import tqdm

POLL = 5  # seconds; squeue takes as long for one job as for a hundred
PATIENCE = 60  # seconds that an answer may take
OVER = {
    "BOOT_FAIL",
    "CANCELLED",
    "COMPLETED",
    "DEADLINE",
    "FAILED",
    "NODE_FAIL",
    "OUT_OF_MEMORY",
    "PREEMPTED",
    "REVOKED",
    "TIMEOUT",
}
GONE = "gone from the queue"
USUAL = {"None", "Resources", "Priority", "BeginTime", "Cleaning"}  # why a job waits


class Queue:
    """What Slurm said last, at most POLL seconds ago.

    squeue knows a job for some minutes after its end (Slurm's MinJobAge), and needs no accounting,
    which sacct does.
    """

    def __init__(self):
        self._asked = self._answered = float("-inf")
        self._jobs: dict[str, tuple[str, str, str]] = {}  # id -> state, reason, name
        self._silent = False
        self._told: set[str] = set()

    def end(self, job: str, name: str, since: float) -> str | None:
        """Return how a job ended, a word of OVER or GONE; None while it may go on.

        name: of the job; another one with the same id is not it. since: when it was submitted, by
        time.monotonic(): what Slurm said before tells nothing about it.
        """
        self._ask()
        if self._answered < since:
            return None
        state, reason, found = self._jobs.get(job, (GONE, "None", name))
        if found != name:
            return GONE
        if state == "PENDING" and reason not in USUAL | self._told:  # it may never start
            self._told.add(reason)
            tqdm.write(f"job {job} ({name}) waits: {reason}", file=sys.stderr)
        return state if state in OVER or state == GONE else None

    def _ask(self) -> None:
        """Ask again if it is time; where Slurm does not answer, jobs are taken to go on."""
        now = time.monotonic()
        if now - self._asked < POLL:
            return
        self._asked = now
        words = ["squeue", "--noheader", "--states=all", f"--user={os.getuid()}"]
        # A user's SQUEUE_PARTITION and the like would hide jobs.
        variables = {k: v for k, v in os.environ.items() if not k.startswith("SQUEUE_")}
        try:
            answer = subprocess.run(
                [*words, "--format=%A|%T|%r|%j"],
                capture_output=True,
                text=True,
                timeout=PATIENCE,
                check=True,
                env=variables,
            )
        except (OSError, subprocess.SubprocessError) as error:
            if not self._silent:
                said = (getattr(error, "stderr", None) or str(error)).strip()
                tqdm.write(f"squeue does not answer, waiting: {said}", file=sys.stderr)
            self._silent = True
            return
        self._answered, self._silent = now, False
        lines = (line.split("|", 3) for line in answer.stdout.splitlines())
        self._jobs = {line[0]: (line[1], line[2], line[3]) for line in lines if len(line) == 4}


def cancel(jobs: list[str]) -> None:
    """Cancel jobs: those that wait leave the queue, those that run get a SIGTERM first."""
    if jobs:
        done = subprocess.run(["scancel", *jobs], capture_output=True, text=True, check=False)
        if done.stderr.strip():
            tqdm.write(done.stderr.strip(), file=sys.stderr)
