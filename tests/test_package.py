"""What `pip install .` brings: the layer, which runs where nothing but torch is installed."""

import configparser
import importlib
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from runs import ROOT, Child
from test_house import PROJECT, is_home

import convnorm

# The two commands whose files a wheel is made of; to zip them, old setuptools needs a package more.
BUILD = """
import setuptools, sys
sys.argv = ["setup.py", "-q", "build_py", "--build-lib", "built", "egg_info", "--egg-base", "info"]
setuptools.setup()
"""
# What the suite imports and the layer must not, whichever package brings it.
ABSENT = (
    *("PIL", "jsonargparse", "markdown", "matplotlib", "numpy", "scipy", "sklearn", "submitit"),
    *("tensorboard", "timm", "torch_fidelity", "torchvision", "tqdm", "yaml"),
)


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """A folder with the content of the wheel in built/ and its metadata in info/."""
    folder = tmp_path_factory.mktemp("package")
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    for package in ("convnorm", "gan", "classification"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / package, folder / package, ignore=ignored)
    (folder / "info").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", BUILD], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return folder


def test_it_brings_the_layer_and_nothing_else(built):
    """Packages called gan and classification would stand in the way of anybody's own."""
    files = {str(path.relative_to(built / "built")) for path in (built / "built").rglob("*.*")}
    expected = {f"convnorm/{path.name}" for path in (ROOT / "convnorm").glob("*.py")}
    assert files == expected | {"convnorm/py.typed"}


def test_it_needs_torch_alone(built):
    (info,) = (built / "info").iterdir()
    always = (info / "requires.txt").read_text().split("\n\n")[0].splitlines()
    assert [line.split(">")[0] for line in always] == ["torch"]
    fields = (info / "PKG-INFO").read_text().splitlines()
    assert f"Version: {convnorm.__version__}" in fields


def test_every_pinned_version_is_one_that_is_asked_for():
    """A pin of what nobody installs, or none of what everybody does, tells of no tested version."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    extras = setup["options.extras_require"]
    brought = (extras[name] for name in ("suite", "onnx", "prepare", "dev"))
    lines = [setup["options"]["install_requires"], *brought]
    asked = {name_of(line) for text in lines for line in text.split("\n") if line}
    oracles = next(
        line for line in (ROOT / "Makefile").read_text().splitlines() if line.startswith("ORACLES")
    ).split(":= ")[1]
    pins = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = {name_of(line) for line in pins if not line.startswith("#")}
    # torch decides which setuptools it takes.
    assert pinned - set(oracles.split()) == asked - {"convnorm", "setuptools"}


def name_of(requirement: str) -> str:
    return requirement.split("[")[0].split("=")[0].split(">")[0].strip().lower()


def use_the_layer(built: Path) -> None:
    """Use what was built where nothing of the suite, nor what it needs, can be imported."""
    sys.path[:] = [str(built / "built")] + [p for p in sys.path if not is_home(p)]
    sys.meta_path[:] = [f for f in sys.meta_path if "editable" not in repr(f).lower()]
    for module in list(sys.modules):
        if module.split(".")[0] in (*PROJECT, *ABSENT):
            del sys.modules[module]
    sys.modules.update(dict.fromkeys(ABSENT))
    for path in sorted((built / "built" / "convnorm").glob("*.py")):
        if path.stem not in ("__init__", "fused_kernel"):  # the kernel is for GPUs, with triton
            importlib.import_module(f"convnorm.{path.stem}")
    import convnorm
    from convnorm.spectrum import operator_norm

    assert convnorm.__file__ == str(built / "built" / "convnorm" / "__init__.py")
    layer = convnorm.ConvNorm2d(3, 4, 3, padding=1)
    layer(torch.randn(2, 3, 8, 8)).square().sum().backward()
    assert layer.weight.grad.isfinite().all()
    assert operator_norm(layer.eval(), torch.Size((1, 3, 8, 8))) > 0
    for name in ("numpy", "gan", "classification", "convnorm.experiment"):
        assert not is_there(name), name


def is_there(name: str) -> bool:
    try:
        importlib.import_module(name)
    except ImportError:
        return False
    return True


def test_it_runs_where_only_torch_is(built, tmp_path):
    code, output = Child(tmp_path / "output.txt", use_the_layer, built).end()
    assert code == 0, output


def test_importing_it_imports_no_compiler():
    """torch.compile brings as many modules as torch itself, and most who use a layer never do."""
    code = "import sys, convnorm; print('torch._dynamo' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "False\n"
