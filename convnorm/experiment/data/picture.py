"""Reads one encoded image, and knows what a conversion to 8 bits of RGB would lose.

Transparency is laid on white, an orientation in EXIF is applied, and a colour profile is converted
to sRGB. What cannot be kept is refused: more than 8 bits a channel, a second frame or page, colours
that nothing defines.
"""

import re
import warnings
from functools import lru_cache
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageCms, ImageOps

from convnorm.experiment.errors import InputError

# Those whose depth, transparency, frames and colours are known below.
FORMATS = (
    *("PNG", "JPEG", "MPO", "GIF", "TIFF", "WEBP", "AVIF", "BMP", "DIB"),
    *("PPM", "JPEG2000", "TGA", "ICO", "PCX", "QOI", "SGI"),
)
GRAY = ("1", "L", "LA")
MODES = (*GRAY, "P", "PA", "RGB", "RGBA", "RGBa", "CMYK")
BACKGROUND = 255  # white: what most viewers and paper show behind a transparent pixel
SAME_COLOUR = 2  # levels of 255 between profiles that are all called sRGB
SRGB_GAMMA = 0.45455
SRGB_CHROMATICITY = (0.3127, 0.329, 0.64, 0.33, 0.3, 0.6, 0.15, 0.06)  # white, red, green, blue


def read_picture(path: Path) -> np.ndarray:
    """Return the pixels of an image file, see `decoded`."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: not a readable image ({error.strerror})") from error
    return decoded(content, path)


def decoded(content: bytes, name: object) -> np.ndarray:
    """Return the pixels of an encoded image as (H, W, C) uint8: C is 1 if it is gray, else 3.

    Whatever its suffix, a file is read by its content. A file is gray if its mode is, or if its
    palette holds nothing else.

    - Transparent pixels show white: alpha channels, palettes and a transparent colour alike.
    - Pixels are turned as EXIF says.
    - Colours of an embedded profile (RGB, gray or CMYK) become sRGB with the profile's own
      (perceptual) intent; those of a profile that is sRGB to 2 levels stay as they are.
    - Of a picture with smaller versions beside it (MPO of phones, ICO) the main one is read.

    name: of the image, for errors.

    Raises:
        InputError: The file is damaged, of no format in `FORMATS`, larger than Pillow finds safe,
            has more than 8 bits a channel or more than one frame, or has colours that are not
            defined: CMYK without a profile, a profile of another kind or gamma or Adobe RGB
            without one, or another mode.
    """
    try:
        if not content:
            raise ValueError("the file is empty")
        with warnings.catch_warnings(action="ignore"):
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(BytesIO(content)) as image:
                return _pixels(image, content, name)
    except InputError:
        raise
    except Exception as error:  # what Pillow raises for a corrupt file depends on the format
        reason = re.sub(" <_io.BytesIO [^>]*>", "", str(error))
        raise InputError(f"{name}: not a readable image ({reason})") from error


def _pixels(image: Image.Image, content: bytes, name: object) -> np.ndarray:
    def require(condition: bool, found: str, expected: str) -> None:
        if not condition:
            raise InputError(f"{name}: {found}, expected {expected}")

    require(image.format in FORMATS, f"is {image.format}", f"one of {', '.join(FORMATS)}")
    require(_bits(image, content) <= 8, f"has {_bits(image, content)} bits a channel", "8")
    frames = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
    require(frames == 1, f"has {frames} frames or pages", "a single image")
    require(not _is_preview(image), "is raw or a smaller version of what it holds", "an image")
    require(image.mode in MODES, f"has colours of mode {image.mode}", "RGB or gray")
    _widen_transparent_gray(image)

    ImageOps.exif_transpose(image, in_place=True)
    profile = image.info.get("icc_profile")
    if not profile:
        require(image.mode != "CMYK", "is CMYK without a colour profile", "RGB or gray")
        require(_is_srgb(image), "has colours that are not sRGB and no profile of them", "sRGB")
    gray = image.mode in GRAY or _has_gray_palette(image)
    alpha = None
    if image.has_transparency_data:
        image = image.convert("RGBA")
        alpha = image.getchannel("A")
    if image.mode != "CMYK":
        image = image.convert("RGB")
    if profile:
        image = _to_srgb(image, profile, gray, name)
    if alpha:
        white = Image.new("RGB", image.size, (BACKGROUND,) * 3)
        image = Image.composite(image, white, alpha)
    pixels = np.asarray(image)
    return pixels[..., :1] if gray else pixels


def _bits(image: Image.Image, content: bytes) -> int:
    """How many bits a channel has in the file; Pillow would quietly keep the upper 8 of them.

    image: before it is loaded, while it still knows how its bytes are packed.
    """
    packed = [tile[3] if isinstance(tile[3], tuple) else (tile[3],) for tile in image.tile]
    numbers = {arg for args in packed for arg in args if isinstance(arg, int)}
    match image.format:
        case "TIFF":
            return max(image.tag_v2.get(258, (1,)))
        case "PPM" if any(tile[0].startswith("ppm") for tile in image.tile):
            return max(numbers, default=1).bit_length()  # the largest value
        case "SGI":
            wide = any(tile[0] == "SGI16" or tile[3][-1] == 2 for tile in image.tile)
            return 16 if wide else 8
        case "JPEG2000":  # SIZ, the codestream's first segment, holds it behind the sizes
            start = content.index(b"\xff\x4f\xff\x51")
            channels = int.from_bytes(content[start + 40 : start + 42])
            return max((content[start + 42 + 3 * i] & 127) + 1 for i in range(channels))
        case "AVIF":  # flags of the box av1C
            return 10 if content[content.index(b"av1C") + 6] & 0x40 else 8
    deep = image.mode[0] in "IF" or any(
        re.search(r";(12|16|32)[BLN]", str(arg)) for args in packed for arg in args
    )
    return 16 if deep else 8


def _is_preview(image: Image.Image) -> bool:
    """Whether a TIFF begins with a thumbnail, as the raw files of cameras do, or is raw itself."""
    if image.format != "TIFF":
        return False
    color_filter_array, linear_raw = 32803, 34892
    kind = image.tag_v2.get(262)
    return bool(image.tag_v2.get(254, 0) & 1) or kind in (color_filter_array, linear_raw)


def _widen_transparent_gray(image: Image.Image) -> None:
    """Scale a transparent gray level of 2 or 4 bits to 8, as Pillow does with pixels alone."""
    level = image.info.get("transparency")
    if image.format == "PNG" and image.mode == "L" and isinstance(level, int):
        factor = {"L;2": 85, "L;4": 17}.get(image.tile[0][3], 1)
        image.info["transparency"] = level * factor


def _is_srgb(image: Image.Image) -> bool:
    """Whether a file without a profile can be taken for sRGB: nothing in it says otherwise."""
    info = image.info
    if image.format == "PNG" and "srgb" not in info:
        gamma, points = info.get("gamma"), info.get("chromaticity")
        if gamma and abs(gamma - SRGB_GAMMA) > 0.01:
            return False
        if points and not np.allclose(points, SRGB_CHROMATICITY, rtol=0, atol=0.01):
            return False
    exif = image.getexif()  # cameras say Adobe RGB by these alone
    interoperability = exif.get_ifd(ExifTags.IFD.Interop).get(1)
    return interoperability != "R03" and exif.get_ifd(ExifTags.IFD.Exif).get(0xA001) != 2


def _has_gray_palette(image: Image.Image) -> bool:
    if image.mode not in ("P", "PA"):
        return False
    colours = np.array(image.getpalette("RGB")).reshape(-1, 3)
    return bool((colours == colours[:, :1]).all())


def _to_srgb(image: Image.Image, profile: bytes, gray: bool, name: object) -> Image.Image:
    """Return an RGB or CMYK image of that profile as sRGB; a gray one has equal channels."""
    try:
        space = ImageCms.ImageCmsProfile(BytesIO(profile)).profile.xcolor_space.strip()
        fits = space == image.mode or (gray and space == "GRAY")
        transform = _transform(profile, space) if fits else None
    except (ImageCms.PyCMSError, OSError) as error:
        raise InputError(f"{name}: its colour profile cannot be used ({error})") from None
    if not fits:
        raise InputError(
            f"{name}: has a colour profile of {space}, expected one of {image.mode} as its pixels"
        )
    if transform is None:
        return image
    image = ImageCms.applyTransform(image.convert("L") if space == "GRAY" else image, transform)
    return image.convert("L").convert("RGB") if gray else image


@lru_cache(maxsize=16)  # the files of a data set share a few profiles
def _transform(profile: bytes, space: str) -> ImageCms.ImageCmsTransform | None:
    """Return the transform to sRGB; None where it changes no colour by more than SAME_COLOUR."""
    mode = "L" if space == "GRAY" else space
    source, target = ImageCms.ImageCmsProfile(BytesIO(profile)), ImageCms.createProfile("sRGB")
    exact = ImageCms.Flags.NOOPTIMIZE  # a table of 8 bits would be off by 7 levels in the dark
    transform = ImageCms.buildTransform(source, target, mode, "RGB", flags=exact)
    if mode == "CMYK":
        return transform
    levels = np.arange(0, 256, 15, dtype=np.uint8)  # both ends are among them
    grid = np.stack(np.meshgrid(levels, levels, levels), -1).reshape(len(levels), -1, 3)
    probe = Image.fromarray(grid if mode == "RGB" else np.ascontiguousarray(grid[..., 0]))
    there = np.asarray(ImageCms.applyTransform(probe, transform)).astype(int)
    moved = np.abs(there - np.asarray(probe.convert("RGB"))).max()
    return transform if moved > SAME_COLOUR else None
