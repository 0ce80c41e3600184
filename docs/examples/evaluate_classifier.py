"""Attack a trained classifier from Python; the command is scripts/evaluate_cls.py.

python scripts/train_cls.py --cfg digits_convnorm
python docs/examples/evaluate_classifier.py runs/classification/digits_convnorm/seed0
"""

import sys
from pathlib import Path

import torch

from classification.evaluate import checkpoint_of, evaluate, load
from classification.evaluation_options import Options
from classification.named_attacks import Budget


def main(run: Path) -> None:
    device = torch.device("cpu")
    loaded = load(checkpoint_of(run, "last"), device)
    budget = Budget(eps=loaded.config.adversary.eps)  # in grey levels of 255
    options = Options(attacks=("fgsm", "pgd5"), budget=budget, num=40)
    record = evaluate(loaded, options, device).record
    accuracies = {"clean": record.clean.top1} | {it.name: it.accuracy for it in record.attacks}
    for name, accuracy in accuracies.items():
        low, high = accuracy.interval
        print(f"{name}: {accuracy.value:.1%} of {accuracy.n} (95 %: {low:.1%} to {high:.1%})")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
