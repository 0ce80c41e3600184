"""Images that are wider than high: read, trained on, generated, scored; or refused in one line."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from runs import differing, log_of, run, state_of, tiny, tiny_classifier
from test_augmentation import PUBLISHED, uniform
from test_data import random_pixels, refused

from convnorm.experiment.config import parse
from convnorm.experiment.data import DataConfig, load_images, read_images
from convnorm.experiment.data.pixels import resize
from convnorm.experiment.errors import InputError
from convnorm.experiment.run import checkpoint
from gan.augmentation import AUGMENTATIONS, augmented
from gan.config import GanConfig
from gan.extractors import load_extractor
from gan.memory import estimate
from gan.models import load_generator
from gan.pictures import write_grid, write_npz
from gan.protocols import PROTOCOLS
from gan.sources import ImageSource, Origin, read_source, resized
from gan.statistics_files import save_statistics

CPU = torch.device("cpu")
SIZE = (16, 24)  # height, width


@pytest.fixture
def file(tmp_path):
    """32 images of 12 x 18 pixels in an .npz, in two classes."""
    path = tmp_path / "wide_train.npz"
    np.savez(path, images=random_pixels(32, 12, 18, 3), labels=np.arange(32) % 2)
    return path


def config_of(file, **changes):
    data = {"data.name": "npz", "data.root": str(file), "data.image_size": SIZE}
    return {**data, "model.arch": "sngan_cnn", **changes}


# Data


def test_a_size_is_height_and_width_and_survives_the_files_of_a_run():
    config, _ = parse(GanConfig, "gan", "sngan_none", ["--data.image_size=[16, 24]"])
    assert config.data.image_size == SIZE
    saved = checkpoint.plain(config)
    assert saved["data"]["image_size"] == [16, 24]
    assert checkpoint.config_in({"config": saved}, GanConfig) == config


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ((16, 16), r"got \[16, 16\], expected 16, of a square"),
        ((0, 16), r"got \[0, 16\], expected an integer from 1 to 1024, or two of them"),
        ((16, 1025), r"got \[16, 1025\], expected an integer from 1 to 1024, or two of them"),
        ((16.0, 8), r"got \[16.0, 8\], expected an integer"),
    ],
)
def test_a_size_that_cannot_be_is_refused(size, message):
    with pytest.raises(InputError, match=rf"^data\.image_size: {message}"):
        DataConfig(image_size=size)


def test_images_of_one_shape_are_resized_and_those_of_another_are_refused(file):
    """A stretched image is another image, and nothing would say so."""
    images = load_images(DataConfig("npz", str(file), SIZE))
    assert images.images.shape == (32, 3, *SIZE)
    assert images.found.endswith("18x12 resized to 24x16 (antialiased bicubic)")
    native = read_images("npz", str(file), "train", None)
    assert (native.size, native.native_sizes) == ((12, 18), ((12, 18), (12, 18)))
    floats = F.interpolate(native.images.float(), SIZE, mode="bicubic", antialias=True)
    assert torch.equal(images.images, floats.round().clamp(0, 255).byte())
    line = refused(DataConfig("npz", str(file), 16))
    assert line.endswith("each image is 18 wide and 12 high, expected a square")
    line = refused(DataConfig("npz", str(file), (24, 16)))
    assert line.endswith("each image is 18 wide and 12 high, expected the shape of 16x24")


def test_a_folder_of_several_sizes_has_one_shape(tmp_path):
    for index, (height, width) in enumerate([(12, 18), (8, 12), (16, 24)]):
        Image.fromarray(random_pixels(height, width, 3)).save(tmp_path / f"{index}.png")
    images = load_images(DataConfig("folder", str(tmp_path), SIZE))
    assert images.images.shape == (3, 3, *SIZE)
    assert ", 12x8 to 24x16 resized to 24x16" in images.found
    assert torch.equal(
        images.images[0],
        resize(
            torch.from_numpy(np.asarray(Image.open(tmp_path / "0.png")).copy()).permute(2, 0, 1)[
                None
            ],
            SIZE,
        )[0],
    )
    Image.fromarray(random_pixels(18, 12, 3)).save(tmp_path / "3.png")
    line = refused(DataConfig("folder", str(tmp_path), SIZE))
    assert line.endswith("3.png: is 12 wide and 18 high, expected the shape of 24x16")


# Training


def test_a_gan_trains_on_them_is_scored_and_resumes(file, tmp_path):
    changes = config_of(
        file,
        **{
            "train.diffaugment": "color,translation,cutout",
            "score.protocol": "digits",
            "score.num_real": 20,
            "score.num_fake": 20,
            "log.norms_every": 2,
        },
    )
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    run(whole, {**changes, "steps": 2, "optim.decay": "none"})
    run(cut, {**changes, "steps": 1, "optim.decay": "none"})
    run(cut, {**changes, "steps": 2, "optim.decay": "none"})
    for network in ("generator", "discriminator"):
        assert differing(state_of(cut)[network], state_of(whole)[network]) == []
    (line,) = log_of(whole, "metrics.jsonl")
    assert line["protocol"]["image_size"] == [16, 24]
    assert "size=24x16" in line["protocol"]["name"]
    loaded = load_generator(whole)
    assert loaded.sample(3, seed=0).shape == (3, 3, *SIZE)
    assert estimate(loaded.config).batch > 0


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_augmentations_are_the_published_ones_on_each_side(name):
    x = torch.rand(9, 3, 16, 40, generator=torch.Generator().manual_seed(0)) * 2 - 1
    draws = uniform(9, AUGMENTATIONS[name].numbers, 0)
    expected = [PUBLISHED[name](image, d.tolist()) for image, d in zip(x, draws, strict=True)]
    torch.testing.assert_close(augmented(x, {name: draws}), torch.stack(expected))


# Scores and pictures


def test_a_record_of_a_protocol_is_the_same_from_memory_and_from_a_file():
    wide, square = (PROTOCOLS["digits"].changed(image_size=size) for size in (SIZE, 32))
    assert wide.name == "digits[size=24x16]"
    assert wide.facts["image_size"] == [16, 24]
    assert (square.name, square.facts["image_size"]) == ("digits[size=32]", 32)


def test_two_shapes_are_never_scored_against_each_other(file):
    source = read_source(str(file), "REAL", "train", CPU, "data", size=SIZE)
    assert source.image_size == SIZE
    assert source.origin.resized_from == (12, 18)
    with pytest.raises(InputError, match="18 wide and 12 high, expected a square"):
        read_source(str(file), "REAL", "train", CPU, "data", size=32)
    generator = ImageSource(lambda *_: (), SIZE, Origin("run"))
    assert resized(generator, (32, 48)).image_size == (32, 48)
    with pytest.raises(InputError, match="run: is 24 wide and 16 high, expected a square"):
        resized(generator, 32)


def test_statistics_of_them_are_not_saved(tmp_path):
    features = SimpleNamespace()
    with pytest.raises(InputError, match="--save_statistics: not allowed with images of 24x16"):
        save_statistics(tmp_path / "a.npz", features, load_extractor("digits", CPU), SIZE)
    assert not list(tmp_path.iterdir())


def test_pictures_of_them_are_whole(tmp_path):
    images = torch.from_numpy(random_pixels(6, 3, *SIZE))
    write_npz([images], 6, SIZE, tmp_path / "a.npz")
    with np.load(tmp_path / "a.npz") as archive:
        assert np.array_equal(archive["arr_0"], images.permute(0, 2, 3, 1))
    write_grid([images], 6, SIZE, 3, tmp_path / "a.png")
    factor = 8  # two rows of 16 are the shorter side
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.size == (3 * (24 * factor + 2) + 2, 2 * (16 * factor + 2) + 2)
        pixels = np.asarray(picture)
    assert np.array_equal(
        pixels[2 : 2 + 16 * factor : factor, 2 : 2 + 24 * factor : factor],
        images[0].permute(1, 2, 0),
    )


# Where they are refused


@pytest.mark.parametrize("arch", ["dcgan", "sngan_resnet"])
def test_architectures_of_squares_say_so(arch):
    with pytest.raises(InputError, match=rf"data\.image_size: \[16, 24\], {arch} expects 16, 32"):
        estimate(tiny({"model.arch": arch, "data.image_size": SIZE}))


def test_classifiers_take_squares():
    with pytest.raises(
        InputError, match=r"data\.image_size: \[16, 24\] is not allowed; .* squares"
    ):
        tiny_classifier({"data.image_size": SIZE})
