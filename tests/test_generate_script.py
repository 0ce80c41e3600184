"""scripts/generate.py: the images that are scored, in formats that others read, whole or not."""

import json
import math
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from runs import run, script
from torch.nn.functional import cosine_similarity

from convnorm.experiment import files
from gan import pictures
from gan.interpolation import STEPS, great_circle, interpolated
from gan.models import Prior, load_generator

QUICK = {"normalizer.kind": "none", "train.n_dis": 1, "steps": 2, "checkpoints.every": 1}


@pytest.fixture(scope="module")
def runs_dir(tmp_path_factory) -> Path:
    """Two runs: of gray digits, and of pictures in colour."""
    folder = tmp_path_factory.mktemp("runs")
    run(folder / "gray", QUICK)
    random = np.random.default_rng(0)
    for index in range(16):
        (folder / "data").mkdir(exist_ok=True)
        pixels = random.integers(0, 256, (16, 16, 3), np.uint8)
        Image.fromarray(pixels).save(folder / "data" / f"{index}.png")
    run(folder / "colour", {**QUICK, "data.name": "folder", "data.root": str(folder / "data")})
    return folder


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path.parent / "cache"))
    monkeypatch.setattr(sys, "argv", [])
    monkeypatch.setattr(sys, "path", sys.path.copy())
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


def ended(name: str, *argv: object) -> int:
    with pytest.raises(SystemExit) as end:
        script(name, *map(str, argv), "--device", "cpu")
    return end.value.code


def generate(*argv: object) -> None:
    assert ended("generate.py", *argv) == 0


def test_what_is_written_has_the_scores_of_the_run(runs_dir):
    """Catches other latents, a rounding of its own, another order and a lossy file."""
    sizes = ["--num_real", 300, "--num_fake", 300, "--seed", 3, "--json", "record.json"]

    def scores(fake) -> tuple[dict, dict]:
        assert ended("fid.py", fake, "digits", *sizes) == 0
        record = json.loads(Path("record.json").read_text())
        return record["scores"], record["spreads"]

    expected = scores(runs_dir / "gray")
    for out in ("images", "samples.npz"):
        generate(runs_dir / "gray", "--num", 300, "--seed", 3, "--out", out)
        assert scores(out) == expected
    generate(runs_dir / "gray", "--num", 300, "--seed", 4, "--out", "other.npz")
    assert scores("other.npz") != expected


@pytest.mark.parametrize(("kind", "mode"), [("gray", "L"), ("colour", "RGB")])
def test_a_folder_and_an_npz_hold_the_same_images(runs_dir, kind, mode):
    """In the forms that other programs read: PNGs in the order of their names, and RGB `arr_0`."""
    images = load_generator(runs_dir / kind).sample(11, seed=0)
    generate(runs_dir / kind, "--num", 11, "--out", "new/images")
    generate(runs_dir / kind, "--num", 11, "--out", "samples.npz")
    with np.load("samples.npz") as archive:
        assert archive.files == ["arr_0"]
        stored = archive["arr_0"]
    assert (stored.dtype, stored.shape) == (np.uint8, (11, 16, 16, 3))
    assert np.array_equal(stored, images.expand(-1, 3, -1, -1).permute(0, 2, 3, 1))
    names = sorted(path.name for path in Path("new/images").iterdir())
    assert names == [f"{index:06d}.png" for index in range(11)]
    for name, pixels in zip(names, stored, strict=True):
        with Image.open(Path("new/images") / name) as picture:
            assert (picture.format, picture.mode) == ("PNG", mode)
            assert np.array_equal(picture.convert("RGB"), pixels)


def test_best_and_last_are_told_apart(runs_dir, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    for name, step in (("best.pt", 1), ("last.pt", 2)):
        source = runs_dir / "gray" / "checkpoints" / f"step_000000{step}.pt"
        (folder / name).write_bytes(source.read_bytes())
    for options, name in (
        ([], "last"),
        (["--checkpoint", "last"], "last"),
        (["--checkpoint", "best"], "best"),
    ):
        generate(folder, "--num", 2, "--out", "".join(["a", *options]) + ".npz", *options)
        images = load_generator(folder / f"{name}.pt").sample(2, seed=0)
        with np.load("".join(["a", *options]) + ".npz") as archive:
            assert np.array_equal(archive["arr_0"][..., 0], images[:, 0])


@pytest.mark.parametrize(
    ("num", "columns", "rows"), [(1, 1, 1), (4, 2, 2), (7, 3, 3), (300, 17, 18)]
)
def test_a_grid_is_one_picture_of_all_images_and_large_enough_to_see(runs_dir, num, columns, rows):
    generate(runs_dir / "gray", "--num", num, "--out", "grid.png", "--grid")
    with Image.open("grid.png") as picture:
        pixels = np.asarray(picture.convert("RGB"))
    factor = math.ceil(256 / (16 * min(rows, columns)))
    side = 16 * factor + 2
    assert pixels.shape[:2] in ((rows * side + 2, columns * side + 2), (side - 2, side - 2))
    assert min(pixels.shape[:2]) >= 256
    inset = 0 if num == 1 else 2
    row, column = divmod(num - 1, columns)
    at = (inset + row * side, inset + column * side)
    last = pixels[at[0] : at[0] + side - 2 : factor, at[1] : at[1] + side - 2 : factor, 0]
    image = load_generator(runs_dir / "gray").sample(num, seed=0)[-1, 0]
    assert np.array_equal(last, image)


def test_the_rows_of_an_interpolation_go_from_one_latent_to_another(runs_dir):
    loaded = load_generator(runs_dir / "gray")
    latents = interpolated(loaded.prior, 3, seed=5)
    pairs = loaded.prior.draw(6, 5, "interpolation")
    z = latents.z.view(3, STEPS, -1)
    torch.testing.assert_close(z[:, 0], pairs.z[::2])
    torch.testing.assert_close(z[:, -1], pairs.z[1::2])
    assert torch.equal(latents.labels.view(3, STEPS), pairs.labels[::2, None].expand(3, STEPS))
    generate(runs_dir / "gray", "--num", 3, "--seed", 5, "--out", "rows.png", "--interpolate")
    with Image.open("rows.png") as picture:
        width, height = picture.size
    assert (width - 2) / (height - 2) == STEPS / 3


@pytest.mark.parametrize("dim", [2, 8, 64])
def test_the_way_between_two_latents_is_an_arc_of_equal_angles(dim):
    """The chord, for one, has its middle far inside of the sphere and larger angles there."""
    start, end = torch.randn(2, 5, dim, generator=torch.Generator().manual_seed(0))
    way = great_circle(start, end, 7)
    angles = cosine_similarity(way[:, 1:], way[:, :-1], dim=-1).clamp(-1, 1).acos()
    whole = cosine_similarity(start, end, dim=-1).acos()
    torch.testing.assert_close(angles, (whole / 6)[:, None].expand(-1, 6), atol=1e-3, rtol=1e-3)
    first, last = (each.norm(dim=-1)[:, None] for each in (start, end))
    lengths = torch.lerp(first, last, torch.arange(7) / 6)
    torch.testing.assert_close(way.norm(dim=-1), lengths, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("end", [[1.0, 2.0], [2.0, 4.0], [-1.0, -2.0]])
def test_parallel_and_opposite_latents_have_a_straight_way(end):
    start, end = torch.tensor([[1.0, 2.0]]), torch.tensor([end])
    way = great_circle(start, end, 3)
    torch.testing.assert_close(way[0], torch.stack([start[0], (start + end)[0] / 2, end[0]]))
    assert interpolated(Prior(1, 1), 4, 0).z.isfinite().all()


@pytest.mark.parametrize("argv", ["--out images", "--out a.npz", "--out a.png --grid"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_what_ends_early_leaves_nothing(runs_dir, here, monkeypatch, argv, error):
    """Half a folder would be scored as if it were whole."""

    def fail(*args, **kwargs):
        raise error

    written = []
    original = Image.Image.save

    def save(self, *args, **kwargs):
        written.append(None)
        if len(written) == 3:
            fail()
        original(self, *args, **kwargs)

    if "--grid" in argv:
        monkeypatch.setattr(files.os, "fsync", fail)
    elif ".npz" in argv:
        monkeypatch.setattr(pictures.np, "savez", fail)
    else:
        monkeypatch.setattr(Image.Image, "save", save)
    code = ended("generate.py", runs_dir / "gray", "--num", "5", *argv.split())
    assert code == (130 if error is KeyboardInterrupt else 2)
    assert list(here.iterdir()) == []


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        ("RUN --num 3 --out full", "--out: full is not empty; expected a new folder or an empty"),
        ("RUN --num 3 --out a.npz", "--out: a.npz is there already; expected a new name"),
        ("RUN --num 3 --out text", "--out: text is there already; expected a new name"),
        ("RUN --num 3 --out link.npz", "--out: link.npz is there already"),
        ("RUN --num 3 --out folder.npz", "--out: folder.npz is there already"),
        ("RUN --num 3 --out a.png --grid", "--out: a.png is there already"),
        ("RUN --num 3 --out absent/b.npz", "--out: absent/b.npz cannot be written; expected a fol"),
        ("RUN --num 3 --out text/images", "--out: .*text/images cannot be written"),
        ("RUN --num 3 --out b.jpg --grid", "--out: b.jpg is not allowed for a grid; expected FIL"),
        ("RUN --num 3 --out b --interpolate", "--out: b is not allowed for a grid; expected FIL"),
        ("RUN --num 3 --out b.png", "--out: b.png is not allowed; expected a folder or FILE.npz"),
        ("RUN --num 3 --out b.JPG", "--out: b.JPG is not allowed; expected a folder or FILE.npz"),
        ("RUN --num 10001 --out b.png --grid", "--num: 10001 is not allowed; expected 1 to 10000"),
        ("RUN --num 0 --out b", "--num: '0' is not allowed; expected 1 to 1000000"),
        ("RUN --num many --out b", "--num: 'many' is not allowed; expected 1 to 1000000"),
        ("RUN --num 3 --out b --seed -1", "--seed: '-1' is not allowed; expected 0 to"),
        (
            "RUN --num 3 --out b.png --grid --interpolate",
            "--interpolate: not allowed with argument",
        ),
        ("RUN --num 3 --out b --checkpoint best", ".*best.pt: no such checkpoint; expected a run"),
        ("RUN/last.pt --num 3 --out b --checkpoint last", "--checkpoint: last is not allowed with"),
        ("RUN --out b", "--num: missing; see --help"),
        ("RUN --num 3", "--out: missing; see --help"),
        ("absent --num 3 --out b", "RUN: 'absent' is no run; expected a run folder or a check"),
        ("digits --num 3 --out b", "RUN: 'digits' is no run; expected a run folder or a check"),
        ("full --num 3 --out b", "RUN: 'full' is no run"),
        ("absent.pt --num 3 --out b", "absent.pt: no such checkpoint"),
    ],
)
def test_what_is_wrong_is_told_in_one_line_and_nothing_is_lost(runs_dir, here, capsys, argv, line):
    for name in ("a.npz", "a.png", "text"):
        Path(name).write_text(name)
    for name in ("full", "folder.npz"):
        Path(name).mkdir()
    Path("full/.hidden").touch()
    Path("link.npz").symlink_to("nowhere")
    before = sorted(here.rglob("*"))
    code = ended("generate.py", *argv.replace("RUN", str(runs_dir / "gray")).split())
    said = capsys.readouterr().err
    assert code == 2
    assert re.fullmatch(f"error: {line}.*\n", said)
    assert sorted(here.rglob("*")) == before
    assert all(Path(name).read_text() == name for name in ("a.npz", "a.png", "text"))


@pytest.mark.parametrize("out", [".", "empty", "a/b/c", "v1.2"])
def test_a_folder_may_be_new_or_empty(runs_dir, here, out):
    Path("empty").mkdir() if out == "empty" else None
    generate(runs_dir / "gray", "--num", 1, "--out", out)
    assert [path.name for path in (here / out).iterdir()] == ["000000.png"]
    assert (here / out).stat().st_mode & 0o777 == 0o755
