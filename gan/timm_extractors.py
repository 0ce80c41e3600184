"""Networks of timm whose features are compared: DINOv2 as in FD-DINOv2, and any other by its name.

timm is an extra of the installation. Its own preprocessing is not used, as it crops: images are
resized whole, as Stein et al. do (2023, arXiv 2306.04675). Nobody publishes hashes of these
weights, so records hold that of the tensors that the network ends up with: whatever file they came
from, it is the same.
"""

import hashlib
import io
import math
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor, nn
from torch.nn import functional

from convnorm.experiment.errors import InputError
from gan import weight_files
from gan.keys import Keys
from gan.pillow import rgb_of_size
from gan.weight_files import Loaded

PREFIX = "timm:"
DINOV2_MODEL = "vit_large_patch14_dinov2.lvd142m"
DINOV2_URL = "https://dl.fbaipublicfiles.com/dinov2/dinov2_vitl14/dinov2_vitl14_pretrain.pth"
DINOV2_SIZE = 224  # the network was trained at 518 pixels, Stein et al. take this
DINOV2_OFFSET = 0.1  # of dinov2 itself, see `dinov2_positions`


@dataclass(frozen=True)
class Recipe:
    """What a network of timm is and what it sees.

    Args:
        model: Its name in timm, with the tag of the weights.
        size: Height and width in pixels to which images are resized.
        interpolation: By which they are resized: bicubic or bilinear.
        mean, std: Of each channel, in [0, 1]; images are shifted and scaled by them.
        num_classes: That the published weights have; its features are what comes before.
    """

    model: str
    size: int
    interpolation: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    num_classes: int

    def __call__(self, images: Tensor) -> Tensor:
        """Turn (N, C, H, W) uint8 into what the network sees, on the CPU."""
        mean, std = (torch.tensor(each).view(3, 1, 1) for each in (self.mean, self.std))
        return (rgb_of_size(images, self.size, self.interpolation).float() / 255 - mean) / std


def timm_recipe(name: str) -> Recipe:
    """Return the recipe of a network of timm, as timm's own configuration of its weights has it.

    Raises:
        InputError: timm is missing, has no such network, or its images are not square, not RGB or
            resized in another way than bicubic or bilinear.
    """
    timm = _timm()
    try:
        config = timm.get_pretrained_cfg(name)
    except RuntimeError as error:  # a tag that there is not
        raise InputError(f"extractor: got {PREFIX}{name}: {error}") from error
    if config is None:
        raise InputError(
            f"extractor: got {PREFIX}{name}, expected a network of timm {timm.__version__}; "
            "timm.list_models(pretrained=True) lists them"
        )
    channels, height, width = config.input_size
    if (channels, width) != (3, height) or config.interpolation not in ("bicubic", "bilinear"):
        raise InputError(
            f"extractor: {PREFIX}{name} takes {config.input_size} by {config.interpolation}, "
            "expected square RGB by bicubic or bilinear"
        )
    model = f"{config.architecture}.{config.tag}" if config.tag else config.architecture
    return Recipe(model, height, config.interpolation, config.mean, config.std, config.num_classes)


def untrained(name: str) -> nn.Module:
    """Build a network of timm, a classifier of RGB images, with random weights.

    Raises:
        InputError: timm is missing, or has no such network.
    """
    timm = _timm(PREFIX + name)
    if name not in timm.list_models():  # other names may be those of a hub
        raise InputError(
            f"{PREFIX}{name}: no such network; expected one of timm {timm.__version__}; "
            "timm.list_models() lists them"
        )
    return timm.create_model(name, pretrained=False)


def load_timm(
    recipe: Recipe, weights: Path | None, device: torch.device, allow_unverified: bool, keys: Keys
) -> Loaded:
    """Load a network of timm.

    Args:
        weights: A file of its weights; None for the one that timm downloads.
        allow_unverified: Is not asked for, as there is no other way.
        keys: What errors call these settings.

    Raises:
        InputError: timm or the weights are missing, or the weights are of another network.
    """
    if weights is None:
        return _loaded(recipe, "timm's download", None, {}, device, keys)
    file = weight_files.given(weights, keys)
    return _loaded(recipe, file, *_state(file), device, keys)


def load_dinov2(
    weights: Path | None, device: torch.device, allow_unverified: bool, keys: Keys
) -> Loaded:
    """Load DINOv2 ViT-L/14 as in FD-DINOv2: 1024 features, the class token after LayerNorm.

    Args:
        weights: Meta's or timm's file of its weights; None for Meta's in PyTorch's hub folder,
            which is downloaded if it is not there.
        allow_unverified: Is not asked for, as there is no other way.
        keys: What errors call these settings.

    Raises:
        InputError: timm or the weights are missing, or the weights are of another network.
    """
    native = timm_recipe(DINOV2_MODEL)
    recipe = Recipe(DINOV2_MODEL, DINOV2_SIZE, "bicubic", native.mean, native.std, 0)
    if weights is None:
        file = weight_files.hub_file(DINOV2_URL, None, keys)
    else:
        file = weight_files.given(weights, keys)
    state, said = _state(file)
    positions = state.get("pos_embed")
    if positions is None or positions.ndim != 3 or not _is_square(positions.shape[1] - 1):
        got = "nothing" if positions is None else tuple(positions.shape)
        raise InputError(
            f"{file}: pos_embed: got {got}, expected the (1, 1370, 1024) of DINOv2 ViT-L/14"
        )
    side = DINOV2_SIZE // 14
    state["pos_embed"] = dinov2_positions(positions, side)
    return _loaded(recipe, file, state, said, device, keys, img_size=DINOV2_SIZE)


def dinov2_positions(positions: Tensor, side: int) -> Tensor:
    """Interpolate (1, 1 + M * M, D) position embeddings to (1, 1 + side * side, D), as dinov2 does.

    Its own `interpolate_pos_encoding`, with its `interpolate_offset`: bicubic without antialiasing,
    by a factor of (side + 0.1) / M. timm's is antialiased and by sizes, which moves the features by
    0.3 %. Embeddings of that many positions stay as they are.
    """
    token, patches = positions[:, :1], positions[:, 1:]
    native = math.isqrt(patches.shape[1])
    if native == side:
        return positions
    grid = patches.reshape(1, native, native, -1).permute(0, 3, 1, 2)
    factor = (side + DINOV2_OFFSET) / native
    grid = functional.interpolate(grid.float(), scale_factor=(factor, factor), mode="bicubic")
    return torch.cat((token, grid.permute(0, 2, 3, 1).flatten(1, 2).to(token.dtype)), dim=1)


def _is_square(num: int) -> bool:
    return num > 0 and math.isqrt(num) ** 2 == num


def _timm(key: str = "extractor") -> ModuleType:
    try:
        import timm
    except ImportError as error:
        raise InputError(
            f"{key}: it needs timm, which is not installed ({error}); pip install 'timm>=1.0'"
        ) from error
    return timm


def _state(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors that a file holds, and what a record says of the file."""
    data = weight_files.read(file)
    try:
        if file.suffix == ".safetensors":
            from safetensors.torch import load

            state = load(data)
        else:
            state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # foreign bytes fail in many ways
        raise InputError(f"{file}: not a file of weights ({_line(error)})") from error
    if not isinstance(state, dict) or not all(isinstance(t, Tensor) for t in state.values()):
        raise InputError(f"{file}: not a file of weights, expected names and tensors alone")
    return state, {"file_sha256": hashlib.sha256(data).hexdigest()}


def _loaded(
    recipe: Recipe,
    where: Path | str,
    state: dict[str, Tensor] | None,
    said: dict[str, str],
    device: torch.device,
    keys: Keys,
    **options: int,
) -> Loaded:
    """Build the network, with tensors, or with those that timm downloads where `state` is None.

    where: they come from. said: of it, in the details.
    """
    timm = _timm()
    overlay = None if state is None else {"state_dict": state}
    try:
        with torch.random.fork_rng(devices=[]):  # layers draw weights before they are overwritten
            # With its classifier, as timm is strict about missing weights only then.
            network = timm.create_model(
                recipe.model, pretrained=True, pretrained_cfg_overlay=overlay, **options
            )
            network.reset_classifier(0)
    except Exception as error:  # a hub that is offline and foreign weights fail in many ways
        raise InputError(
            f"{where}: cannot be loaded as the weights of timm's {recipe.model} ({_line(error)}); "
            f"expected the file of them with {keys.weights} FILE"
        ) from error
    network.pretrained_cfg.pop("state_dict", None)  # it would be kept a second time
    network.eval().requires_grad_(False)
    sha256 = _sha256(network)
    network.to(device)

    def forward(images: Tensor) -> tuple[Tensor, None]:
        return network(recipe(images).to(device)), None

    with torch.no_grad():
        features, _ = forward(torch.zeros(1, 3, recipe.size, recipe.size, dtype=torch.uint8))
    if features.ndim != 2:
        raise InputError(
            f"extractor: {PREFIX}{recipe.model} gives {tuple(features.shape)} of an image, "
            "expected a vector of features"
        )
    details = {
        "timm": timm.__version__,
        "model": recipe.model,
        "size": recipe.size,
        "resize": f"{recipe.interpolation}, antialiased, on bytes as Pillow, without a crop",
        "mean": " ".join(map(str, recipe.mean)),
        "std": " ".join(map(str, recipe.std)),
        "output": "what the classifier sees",
        "features": features.shape[1],
        **said,
    }
    return Loaded(forward, sha256, False, details)


def _sha256(network: nn.Module) -> str:
    """Return a hash of all tensors of a network: their names, kinds, shapes and bytes."""
    found = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        found.update(tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def _line(error: Exception) -> str:
    lines = [" ".join(line.split()) for line in str(error).splitlines() if line.strip()]
    return ": ".join(lines[:2]) or type(error).__name__
