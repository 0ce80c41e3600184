"""Read the results of a benchmark: every number of its report is in results.json.

python docs/examples/read_results.py results/digits_gan/results.json
"""

import json
import sys
from pathlib import Path

from convnorm.experiment.codec import from_json
from convnorm.experiment.records import Report


def main(file: Path) -> None:
    report = from_json(Report, json.loads(file.read_text()), file)  # refuses other formats
    print(report.question)
    for cell in report.cells:
        summary = cell.scores[report.score.at][report.score.name]
        print(f"{cell.name}: {report.score_name} {summary.mean:.3g} over {summary.n} seeds")
    for test in report.comparisons:
        if test.is_tested:
            print(f"{test.cell} against {test.against}: {test.verdict}, p = {test.p_holm:.3g}")
    curves = {run.name: run.result.curve for run in report.done}
    name, curve = next(iter(curves.items()))
    print(f"{report.curve_name} of {name}:", [(point.step, point.value) for point in curve])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
