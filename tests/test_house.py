"""The rules of the house: who imports whom, and scripts that start from anywhere."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from runs import ROOT, Child, script

PROJECT = ("convnorm", "gan", "classification", "scripts", "tests")
SOURCES = sorted(
    path.relative_to(ROOT) for folder in PROJECT for path in (ROOT / folder).rglob("*.py")
)
# Room of convnorm.experiment -> the rooms that it may import from.
ROOMS = {"run": {"run"}, "benchmark": {"benchmark", "run"}, "report": {"report"}}
SCRIPTS = sorted(path.name for path in (ROOT / "scripts").glob("*.py"))


def imports(path) -> set[str]:
    """The modules that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import hides whom it names"
            found.add(node.module)
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return found


def is_allowed(path, module: str) -> bool:
    """Whether a file of this place may import this module, as far as it is of the project."""
    top = module.split(".")[0]
    if top not in PROJECT:
        return True
    names = module.split(".")
    in_experiment = names[:2] == ["convnorm", "experiment"]
    if path.parts[:2] == ("convnorm", "experiment"):
        room = path.parts[2]  # a file beside the rooms, which all of them may import, or a room
        wanted = names[2] if in_experiment and len(names) > 2 else None
        if room == "run" and top == "convnorm" and not in_experiment:
            return True  # an average asks each normalizer what becomes of its buffers
        return in_experiment and (wanted not in ROOMS or wanted in ROOMS.get(room, ()))
    if path.parts[0] == "convnorm":
        return top == "convnorm" and not in_experiment
    if path.parts[0] in ("gan", "classification"):
        return top in ("convnorm", path.parts[0])
    return True


@pytest.mark.parametrize("path", SOURCES, ids=str)
def test_nobody_imports_against_the_rules(path):
    assert [module for module in imports(path) if not is_allowed(path, module)] == []


@pytest.mark.parametrize(
    ("place", "module"),
    [
        ("convnorm/layer.py", "convnorm.experiment.config"),
        ("convnorm/experiment/config/parsing.py", "convnorm.experiment.run.loop"),
        ("convnorm/experiment/run/loop.py", "convnorm.experiment.benchmark.grid"),
        ("convnorm/experiment/benchmark/grid.py", "convnorm.experiment.report.page"),
        ("convnorm/experiment/report/page.py", "convnorm.experiment.benchmark.results"),
        ("convnorm/experiment/report/page.py", "convnorm.experiment.run.checkpoint"),
        ("convnorm/experiment/benchmark/grid.py", "gan.config"),
        ("convnorm/experiment/report/page.py", "convnorm.layer"),
        ("gan/config.py", "classification.config"),
        ("classification/train.py", "scripts.benchmark"),
    ],
)
def test_an_import_against_the_rules_is_seen(place, module):
    assert not is_allowed(Path(place), module)


@pytest.mark.parametrize(
    ("package", "home"),
    [
        ("torch_fidelity", "gan/fidelity.py"),
        ("timm", "gan/timm_extractors.py"),
        ("jsonargparse", "convnorm/experiment/config/parsing.py"),
        ("triton", "convnorm/fused_kernel.py"),
    ],
)
def test_awkward_packages_have_one_home(package, home):
    sources = [path for path in SOURCES if path.parts[0] != "tests"]
    users = [p for p in sources if any(m.split(".")[0] == package for m in imports(p))]
    assert [str(path) for path in users] == [home]


def test_the_core_needs_torch_alone():
    """Who takes the layer into a model of their own should not need what runs need.

    Torch for GPUs brings triton along, so the kernel may need it; nobody may need the kernel.
    """
    for path in SOURCES:
        if path.parts[0] == "convnorm" and len(path.parts) == 2:
            tops = {module.split(".")[0] for module in imports(path)}
            allowed = {"torch", "convnorm", *(["triton"] if path.stem == "fused_kernel" else [])}
            assert tops - set(sys.stdlib_module_names) <= allowed, path
            at_once = ast.parse((ROOT / path).read_text()).body
            modules = {node.module for node in at_once if isinstance(node, ast.ImportFrom)}
            assert "convnorm.fused_kernel" not in modules, path


def lonely_script(name: str, *argv: str) -> None:
    """Run a script where nothing but its own folder is on the path."""
    sys.path[:] = [str(ROOT / "scripts")] + [p for p in sys.path if not is_home(p)]
    sys.meta_path[:] = [f for f in sys.meta_path if "editable" not in repr(f).lower()]
    for module in list(sys.modules):
        if module.split(".")[0] in PROJECT:
            del sys.modules[module]
    script(name, *argv)


def is_home(path: str) -> bool:
    return path in ("", ".", str(ROOT), str(ROOT / "tests"))


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_script_helps_from_another_folder(name, tmp_path, monkeypatch):
    """Python puts the folder of the script on its path, not the repository."""
    monkeypatch.chdir(tmp_path)
    code, output = Child(tmp_path / "output.txt", lonely_script, name, "--help").end()
    assert code == 0, output
    assert output.startswith("usage: ")


def test_nothing_large_is_tracked():
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if listed.returncode != 0:
        pytest.skip("not a clone")
    files = [ROOT / name for name in listed.stdout.split("\0") if name]
    large = [path.name for path in files if path.is_file() and path.stat().st_size > 2**20]
    assert large == []
