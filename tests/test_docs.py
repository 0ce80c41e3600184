"""What the documentation says of files, tables and commands is there; its code runs elsewhere.

`pytest --markdown-docs docs README.md` runs every Python block of it.
"""

import re
import runpy
import sys
import warnings
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from PIL import Image
from runs import ROOT, TINY, classifier_run, rough_measurements, script
from sklearn.datasets import load_digits

from convnorm.catalogue import CATALOGUE

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
EXAMPLES = sorted((ROOT / "docs" / "examples").glob("*.py"))
LINK = re.compile(r"\]\(([^)\s]+)\)")
FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub and mkdocs make of the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page):
    dead = []
    for link in LINK.findall(FENCE.sub("", page.read_text())):
        if link.startswith(("http://", "https://")):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            dead.append(link)
    assert dead == []


def test_every_page_is_in_the_table_of_contents():
    pages = {path.name for path in (ROOT / "docs").glob("*.md")}
    assert pages == set(re.findall(r"[\w-]+\.md", (ROOT / "mkdocs.yml").read_text()))
    linked = {Path(link).name for link in LINK.findall((ROOT / "docs/index.md").read_text())}
    assert pages - {"index.md"} <= linked


def test_the_readme_is_read_in_five_minutes():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 120


def test_the_table_of_normalizers_is_that_of_the_catalogue(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", [])
    with pytest.raises(SystemExit) as ended:
        script("list_normalizers.py")
    assert ended.value.code == 0
    page = (ROOT / "docs" / "normalizers.md").read_text()
    assert f"\n\n{capsys.readouterr().out}\n" in page, "see scripts/list_normalizers.py"


def arguments(example: str, folder: Path) -> list[str]:
    """What an example is called with, made in a folder."""
    match example:
        case "train_gan":
            return [f"--run_dir={folder / 'run'}", "--device=cpu"]
        case "orthogonium_classifier":
            pytest.importorskip("orthogonium")
            return ["--train.epochs=1", f"--run_dir={folder / 'run'}", "--device=cpu"]
        case "own_normalizer":
            tiny = [f"--{key}={value}" for key, value in TINY.items()]
            return [*tiny, f"--run_dir={folder / 'run'}", "--device=cpu"]
        case "draw_corruptions":
            return [str(folder / "corruptions.png"), "digits"]
        case "evaluate_classifier":
            classifier_run(folder / "run")
            return [str(folder / "run")]
        case "score_a_folder":
            (folder / "images").mkdir()
            for index, digit in enumerate(load_digits().images[:200]):
                file = folder / "images" / f"{index}.png"
                Image.fromarray((digit * 15).astype(np.uint8)).save(file)
            return [str(folder / "images")]
        case "convert_and_deploy":
            pytest.importorskip("timm")
            pytest.importorskip("onnxscript")
            return ["timm:test_resnet", "32"]
        case "read_results":
            return [str(ROOT / "results/digits_gan/results.json")]
    return []


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_runs_and_is_short(example, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [str(example), *arguments(example.stem, tmp_path)])
    # One example adds a kind, and the exporter that another one calls warns of itself.
    with rough_measurements(), mock.patch.dict(CATALOGUE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning)
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        runpy.run_path(str(example), run_name="__main__")
    assert capsys.readouterr().out
    assert len(example.read_text().splitlines()) < 40
