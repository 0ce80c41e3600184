"""Image files: nothing that a conversion to 8 bits of RGB loses is lost without a word."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageCms

from convnorm.experiment.data.picture import read_picture
from convnorm.experiment.errors import InputError

RNG = np.random.default_rng(0)
COLOR = RNG.integers(0, 256, (8, 8, 3), dtype=np.uint8)
GRAY = COLOR[..., 0]
WIDE_GAMUT = (0.64, 0.33, 0.21, 0.71, 0.15, 0.06)  # Adobe RGB's primaries


def png(folder: Path, depth: int, color: int, row: bytes, *chunks: tuple[bytes, bytes]) -> Path:
    """Write a PNG of 8 rows, made by hand: Pillow writes no 16-bit RGB and no 4-bit tRNS."""
    size = struct.pack(">IIBBBBB", 8, 8, depth, color, 0, 0, 0)
    content = b"\x89PNG\r\n\x1a\n"
    for kind, data in (
        (b"IHDR", size),
        *chunks,
        (b"IDAT", zlib.compress((b"\0" + row) * 8)),
        (b"IEND", b""),
    ):
        content += struct.pack(">I", len(data)) + kind + data
        content += struct.pack(">I", zlib.crc32(kind + data))
    (folder / "x.png").write_bytes(content)
    return folder / "x.png"


def saved(folder: Path, image: Image.Image, suffix: str = "png", **options) -> Path:
    image.save(folder / f"x.{suffix}", **options)
    return folder / f"x.{suffix}"


# ----------------------------------------------------------------------------- transparency


def with_alpha(mode: str) -> Image.Image:
    """Noise whose left half is transparent."""
    alpha = Image.fromarray(np.where(np.arange(8) < 4, 0, 255).astype(np.uint8)[None].repeat(8, 0))
    image = Image.fromarray(COLOR if mode == "RGBA" else GRAY)
    image.putalpha(alpha)
    return image


def palette_with_alpha(**options) -> tuple[Image.Image, dict]:
    image = Image.fromarray(GRAY // 128 * 9 + 1).convert("P")
    image.putdata([0 if i % 8 < 4 else 1 + i % 2 for i in range(64)])
    image.putpalette([200, 0, 0, 0, 200, 0, 0, 0, 200])
    return image, options


TRANSPARENT = {
    "RGBA png": lambda f: saved(f, with_alpha("RGBA")),
    "RGBA webp": lambda f: saved(f, with_alpha("RGBA"), "webp", lossless=True),
    "RGBA tiff": lambda f: saved(f, with_alpha("RGBA"), "tiff"),
    "LA png": lambda f: saved(f, with_alpha("LA")),
    "palette, one": lambda f: saved(f, palette_with_alpha()[0], transparency=0),
    "palette, many": lambda f: saved(f, palette_with_alpha()[0], transparency=b"\0\xff\xff"),
    "palette gif": lambda f: saved(f, palette_with_alpha()[0], "gif", transparency=0),
    "gray level": lambda f: png(f, 8, 0, bytes([7] * 4 + [8] * 4), (b"tRNS", b"\0\7")),
    "gray level of 4 bits": lambda f: png(f, 4, 0, b"\x55\x55\x66\x66", (b"tRNS", b"\0\5")),
    "gray level of 2 bits": lambda f: png(f, 2, 0, b"\x55\xaa", (b"tRNS", b"\0\1")),
    "gray level of 1 bit": lambda f: png(f, 1, 0, b"\x0f", (b"tRNS", b"\0\0")),
    "color": lambda f: png(f, 8, 2, b"\1\2\3" * 4 + b"\1\2\4" * 4, (b"tRNS", b"\0\1\0\2\0\3")),
}


@pytest.mark.parametrize("kind", TRANSPARENT)
def test_what_is_transparent_shows_white(kind, tmp_path):
    """Dropped, the alpha channel lets hidden colors become pixels."""
    pixels = read_picture(TRANSPARENT[kind](tmp_path))
    assert (pixels[:, :4] == 255).all()
    if kind != "gray level of 1 bit":  # whose other level is white itself
        assert (pixels[:, 4:] < 255).any(axis=(1, 2)).all()
    assert pixels.shape[2] == (1 if kind.startswith(("LA", "gray")) else 3)


def test_half_transparent_pixels_are_mixed_with_white_and_opaque_ones_stay(tmp_path):
    alpha = np.full((8, 8, 1), 128, np.uint8)
    mixed = read_picture(saved(tmp_path, Image.fromarray(np.concatenate([COLOR, alpha], 2))))
    assert np.abs(mixed - (COLOR * (128 / 255) + 127)).max() < 1
    opaque = Image.fromarray(np.concatenate([COLOR, alpha | 255], 2))
    assert np.array_equal(read_picture(saved(tmp_path, opaque)), COLOR)


# ------------------------------------------------------------------------------------ depth


def deep_tiff(folder: Path) -> Path:
    """A TIFF of 16-bit RGB by hand: Pillow reads it as 8 bits, and writes none."""
    tags = [(256, 8), (257, 8), (258, 16), (259, 1), (262, 2), (273, 122), (277, 3), (278, 8)]
    tags.append((279, 384))
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    head = b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + b"\0" * 4
    (folder / "x.tif").write_bytes(head.ljust(122, b"\0") + RNG.bytes(384))
    return folder / "x.tif"


def written(folder: Path, name: str, content: bytes) -> Path:
    (folder / name).write_bytes(content)
    return folder / name


def deep_jpeg2000(folder: Path) -> Path:
    """8 bits whose header says 12: enough to be refused for."""
    path = saved(folder, Image.fromarray(COLOR), "j2k")
    content = path.read_bytes()
    start = content.index(b"\xff\x4f\xff\x51") + 42
    path.write_bytes(content[:start] + b"\x0b" + content[start + 1 :])
    return path


def deep_avif(folder: Path) -> Path:
    path = saved(folder, Image.fromarray(COLOR), "avif")
    content = bytearray(path.read_bytes())
    content[content.index(b"av1C") + 6] |= 0x40
    content = content.replace(b"\3\x08\x08\x08", b"\3\x0a\x0a\x0a")  # in the box pixi
    path.write_bytes(bytes(content))
    return path


DEEP = {
    "gray png": lambda f: png(f, 16, 0, RNG.bytes(16)),
    "color png": lambda f: png(f, 16, 2, RNG.bytes(48)),
    "gray png with alpha": lambda f: png(f, 16, 4, RNG.bytes(32)),
    "color png with alpha": lambda f: png(f, 16, 6, RNG.bytes(64)),
    "gray tiff": lambda f: saved(f, Image.fromarray(GRAY.astype(np.uint16) * 256), "tif"),
    "color tiff": deep_tiff,
    "integers": lambda f: saved(f, Image.fromarray(GRAY.astype(np.int32)), "tif"),
    "floats": lambda f: saved(f, Image.fromarray(GRAY.astype(np.float32)), "tif"),
    "pgm": lambda f: written(f, "x.pgm", b"P5 8 8 65535\n" + RNG.bytes(128)),
    "ppm": lambda f: written(f, "x.ppm", b"P6 8 8 1023\n" + bytes([1, 2] * 192)),
    "text ppm": lambda f: written(f, "x.ppm", b"P3 8 8 65535\n" + b"999 " * 192),
    "sgi": lambda f: saved(f, Image.fromarray(COLOR), "sgi", bpc=2),
    "jpeg 2000": deep_jpeg2000,
    "avif": deep_avif,
}


@pytest.mark.parametrize("kind", DEEP)
def test_more_than_8_bits_are_refused(kind, tmp_path):
    """Pillow keeps the upper 8 of them, or clips."""
    with pytest.raises(InputError, match=r"x\.\w+: has \d\d bits a channel, expected 8"):
        read_picture(DEEP[kind](tmp_path))


def test_fewer_bits_are_read(tmp_path):
    assert read_picture(png(tmp_path, 1, 0, b"\x0f"))[0, :, 0].tolist() == [0] * 4 + [255] * 4
    assert read_picture(png(tmp_path, 4, 0, b"\x00\x55\xaa\xff"))[0, ::2, 0].tolist() == [
        *(0, 85, 170, 255)
    ]
    path = written(tmp_path, "x.pgm", b"P5 8 8 15\n" + bytes([0, 5, 10, 15] * 16))
    assert read_picture(path)[0, :4, 0].tolist() == [0, 85, 170, 255]


# ------------------------------------------------------------------------------ orientation


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "tiff", "webp", "jpg", "avif"])
def test_a_picture_stands_as_viewers_show_it(suffix, orientation, tmp_path):
    image = Image.new("L", (8, 8))
    image.paste(255, (0, 0, 4, 8))
    image.paste(120, (0, 0, 4, 4))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    path = saved(tmp_path, image.convert("RGB"), suffix, exif=exif)
    turned = {
        1: lambda a: a,
        2: np.fliplr,
        3: lambda a: np.rot90(a, 2),
        4: np.flipud,
        5: np.transpose,
        6: lambda a: np.rot90(a, -1),
        7: lambda a: np.rot90(a, 2).T,
        8: np.rot90,
    }[orientation]
    difference = read_picture(path)[..., 0].astype(int) - turned(np.asarray(image).astype(int))
    assert np.abs(difference).max() < 60


# ----------------------------------------------------------------------------------- frames


@pytest.mark.parametrize("suffix", ["gif", "webp", "tiff", "png", "avif"])
def test_a_second_frame_or_page_is_refused(suffix, tmp_path):
    images = [Image.fromarray(COLOR), Image.fromarray(255 - COLOR)]
    path = saved(tmp_path, images[0], suffix, save_all=True, append_images=images[1:])
    with pytest.raises(InputError, match="has 2 frames or pages, expected a single image"):
        read_picture(path)


def test_of_a_phones_jpeg_with_a_second_picture_the_main_one_is_read(tmp_path):
    images = [Image.new("RGB", (8, 8), "white"), Image.new("RGB", (8, 8))]
    images[0].save(tmp_path / "x.jpg", "MPO", save_all=True, append_images=images[1:])
    with Image.open(tmp_path / "x.jpg") as image:
        assert image.n_frames == 2
    assert (read_picture(tmp_path / "x.jpg") == 255).all()


def test_the_thumbnail_at_the_start_of_a_raw_file_is_no_image(tmp_path):
    path = saved(tmp_path, Image.fromarray(COLOR), "dng", format="TIFF", tiffinfo={254: 1})
    with pytest.raises(InputError, match="raw or a smaller version"):
        read_picture(path)


# ----------------------------------------------------------------------------------- colors


def profile_of(kind: str) -> bytes:
    """An ICC profile: sRGB, one with its red and blue swapped, gray of gamma 1, or nonsense."""
    if kind == "nonsense":
        return b"nonsense"
    content = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    if kind == "swapped":
        red, blue = content.index(b"rXYZ"), content.index(b"bXYZ")
        content[red : red + 4], content[blue : blue + 4] = b"bXYZ", b"rXYZ"
    if kind == "gray":
        content = gray_profile()
    return bytes(content)


def gray_profile() -> bytearray:
    """A gray profile of gamma 1, as small as they can be."""

    def fixed(x: float) -> bytes:
        return struct.pack(">i", round(x * 65536))

    white = b"XYZ \0\0\0\0" + fixed(0.9642) + fixed(1) + fixed(0.8249)
    curve = b"curv\0\0\0\0" + struct.pack(">I", 0)
    tags = struct.pack(">I4sII4sII", 2, b"wtpt", 156, 20, b"kTRC", 176, 12)
    head = struct.pack(">I4sI4s4s4s", 188, b"lcms", 0x02400000, b"mntr", b"GRAY", b"XYZ ")
    head += bytes(12) + b"acsp" + bytes(28) + white[8:]
    return bytearray(head.ljust(128, b"\0") + tags + white + curve)


def test_the_srgb_profile_changes_nothing(tmp_path):
    path = saved(tmp_path, Image.fromarray(COLOR), icc_profile=profile_of("sRGB"))
    assert np.array_equal(read_picture(path), COLOR)
    path = saved(tmp_path, Image.fromarray(GRAY), icc_profile=profile_of("sRGB"))
    assert np.array_equal(read_picture(path)[..., 0], GRAY)


def test_a_profile_that_is_srgb_but_for_rounding_changes_nothing(tmp_path):
    """Makers of sRGB profiles differ in the last digits of its primaries."""
    content = bytearray(profile_of("sRGB"))
    (offset,) = struct.unpack_from(">I", content, content.index(b"rXYZ") + 4)
    (red,) = struct.unpack_from(">i", content, offset + 8)
    struct.pack_into(">i", content, offset + 8, red + 50)
    other = ImageCms.ImageCmsProfile(io.BytesIO(content))
    image = Image.fromarray(COLOR)
    moved = ImageCms.profileToProfile(image, other, ImageCms.createProfile("sRGB"))
    assert not np.array_equal(moved, COLOR)
    assert np.array_equal(read_picture(saved(tmp_path, image, icc_profile=bytes(content))), COLOR)


def test_colors_of_another_profile_become_srgb(tmp_path):
    """Ignored, a profile leaves other colors than every viewer shows."""
    for suffix in ("png", "tiff", "webp"):
        options = {"lossless": True} if suffix == "webp" else {}
        image = Image.fromarray(COLOR)
        path = saved(tmp_path, image, suffix, icc_profile=profile_of("swapped"), **options)
        assert np.abs(read_picture(path).astype(int) - COLOR[..., ::-1]).max() <= 2
    path = saved(tmp_path, Image.fromarray(GRAY), icc_profile=profile_of("gray"))
    linear = GRAY / 255
    srgb = np.where(linear < 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055) * 255
    assert np.abs(read_picture(path)[..., 0] - srgb).max() < 2


def with_interoperability(folder: Path) -> Path:
    exif = Image.Exif()
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.IFD.Interop.value] = {1: "R03"}
    return saved(folder, Image.fromarray(COLOR), "jpg", exif=exif)


def chromaticity(white_and_primaries: tuple[float, ...]) -> bytes:
    return struct.pack(">8I", *(round(x * 100_000) for x in white_and_primaries))


UNDEFINED = {
    "CMYK": (lambda f: saved(f, Image.fromarray(COLOR).convert("CMYK"), "jpg"), "is CMYK without"),
    "CMYK tiff": (lambda f: saved(f, Image.fromarray(COLOR).convert("CMYK"), "tif"), "is CMYK"),
    "Lab": (lambda f: saved(f, Image.new("LAB", (8, 8)), "tif"), "colours of mode LAB"),
    "profile of gray": (
        lambda f: saved(f, Image.fromarray(COLOR), icc_profile=profile_of("gray")),
        "colour profile of GRAY, expected one of RGB",
    ),
    "broken profile": (
        lambda f: saved(f, Image.fromarray(COLOR), icc_profile=profile_of("nonsense")),
        "its colour profile cannot be used",
    ),
    "gamma": (lambda f: png(f, 8, 0, bytes(8), (b"gAMA", struct.pack(">I", 100_000))), "not sRGB"),
    "primaries": (
        lambda f: png(f, 8, 2, bytes(24), (b"cHRM", chromaticity((0.3127, 0.329, *WIDE_GAMUT)))),
        "not sRGB",
    ),
    "Adobe RGB by EXIF": (with_interoperability, "not sRGB"),
}


@pytest.mark.parametrize("kind", UNDEFINED)
def test_colors_that_nothing_defines_are_refused(kind, tmp_path):
    make, message = UNDEFINED[kind]
    with pytest.raises(InputError, match=rf"x\.\w+: .*{message}"):
        read_picture(make(tmp_path))


def test_the_usual_gamma_and_primaries_are_srgb(tmp_path):
    srgb = chromaticity((0.3127, 0.329, 0.64, 0.33, 0.3, 0.6, 0.15, 0.06))
    path = png(tmp_path, 8, 0, bytes(8), (b"gAMA", struct.pack(">I", 45455)), (b"cHRM", srgb))
    assert (read_picture(path) == 0).all()


def test_gray_is_what_is_stored_as_gray(tmp_path):
    assert read_picture(saved(tmp_path, Image.fromarray(GRAY))).shape == (8, 8, 1)
    assert read_picture(saved(tmp_path, Image.fromarray(GRAY).convert("P"))).shape == (8, 8, 1)
    equal = Image.fromarray(GRAY).convert("RGB")
    assert read_picture(saved(tmp_path, equal)).shape == (8, 8, 3)
    assert read_picture(saved(tmp_path, palette_with_alpha()[0])).shape == (8, 8, 3)


# ----------------------------------------------------------------------------------- damage


@pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "webp", "tif", "bmp", "avif", "ppm"])
def test_half_a_file_is_refused(suffix, tmp_path):
    path = saved(tmp_path, Image.fromarray(RNG.integers(0, 256, (64, 64, 3), np.uint8)), suffix)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match=rf"x\.{suffix}: not a readable image"):
        read_picture(path)


def test_a_picture_that_unpacks_to_too_much_is_refused(tmp_path, monkeypatch):
    path = saved(tmp_path, Image.fromarray(COLOR))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 60)  # the one of Pillow's users: 89 million
    with pytest.raises(InputError, match=r"not a readable image .*decompression bomb"):
        read_picture(path)


def test_formats_that_are_not_known_inside_out_are_named(tmp_path):
    buffer = io.BytesIO()
    Image.fromarray(COLOR).save(buffer, "DDS")
    with pytest.raises(InputError, match=r"x\.dds: is DDS, expected one of PNG, JPEG"):
        read_picture(written(tmp_path, "x.dds", buffer.getvalue()))
