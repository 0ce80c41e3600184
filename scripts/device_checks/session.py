"""Carries out parts within a budget of time: no failure stops what comes next."""

import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from device_checks.part import Case, Part, Setup, Skip

Status = Literal["ok", "failed", "skipped"]
NO_TIME = "no time left"


@dataclass(frozen=True)
class CaseResult:
    """What came of a case, and why that; `line` is what a reader sees of it."""

    status: Status
    line: str
    numbers: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class PartResult:
    """What came of a part: failed if one of its cases is, skipped if all of them are."""

    cases: dict[str, CaseResult]
    seconds: float

    @property
    def status(self) -> Status:
        """The worst that holds for the part as a whole."""
        found = {case.status for case in self.cases.values()}
        if "failed" in found:
            return "failed"
        return "ok" if "ok" in found else "skipped"

    @property
    def why(self) -> str:
        """What failed and what was skipped, in words; empty where all is right."""
        reasons = []
        for status in ("failed", "skipped"):
            lines = [
                f"{name}: {case.line}" if status == "failed" else case.line
                for name, case in self.cases.items()
                if case.status == status
            ]
            if lines:
                reasons.append(
                    f"{len(lines)} of {len(self.cases)} cases {status} "
                    f"({'; '.join(dict.fromkeys(lines))})"
                )
        return ", ".join(reasons)

    def record(self) -> dict[str, Any]:
        """As JSON."""
        return {"status": self.status, "why": self.why, **asdict(self)}


def deadlines(weights: dict[str, float], start: float, seconds: float) -> dict[str, float]:
    """Part -> when its time ends, each with a share of `seconds` in proportion to its weight.

    What a part leaves over goes to the next one.
    """
    total, so_far, found = sum(weights.values()), 0.0, {}
    for name, weight in weights.items():
        so_far += weight
        found[name] = start + seconds * so_far / total
    return found


def carry_out(part: Part, setup: Setup, tell: Callable[[str, CaseResult], None]) -> PartResult:
    """Carry out the cases of a part that begin before the deadline, and tell of each."""
    start, results = time.monotonic(), {}
    for name, result in _results(part, setup):
        results[name] = result
        tell(name, result)
    return PartResult(results, time.monotonic() - start)


def _results(part: Part, setup: Setup) -> Iterator[tuple[str, CaseResult]]:
    try:
        for name, case in part(setup):
            in_time = setup.seconds_left() > 0
            yield name, _result(case) if in_time else CaseResult("skipped", NO_TIME)
    except Exception as error:
        yield "all", _failed(error)


def _result(case: Case) -> CaseResult:
    try:
        finding = case()
    except Skip as skip:
        return CaseResult("skipped", str(skip))
    except Exception as error:
        return _failed(error)
    if finding.failures:
        return CaseResult("failed", "; ".join(finding.failures), finding.numbers)
    return CaseResult("ok", finding.line, finding.numbers)


def _failed(error: Exception) -> CaseResult:
    """The last line of an error is what says most; the record has all."""
    text = "".join(traceback.format_exception(error)).strip()
    return CaseResult("failed", text.splitlines()[-1], {"traceback": text})
