"""A plain convolution, which another layer can stand in for without losing anything."""

from typing import Any, TypeVar

from torch import nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize


def check_plain(conv: nn.Module, plain: type[nn.Module] = nn.Conv2d) -> None:
    """Refuse, by name, what is no plain convolution; `plain` is torch's own class of it.

    TypeError: another module, a subclass with a forward pass of its own, a lazy or a parametrized
    one. ValueError: one with hooks, which would stay behind.
    """
    name = type(conv).__name__
    if not isinstance(conv, plain):
        raise TypeError(f"expected an nn.{plain.__name__}, not a {name}")
    if parametrize.is_parametrized(conv):
        names = ", ".join(conv.parametrizations)
        raise TypeError(
            f"the {name} has a parametrized {names}: normalize first, then parametrize the result"
        )
    if method := own_method(type(conv), plain):
        raise TypeError(
            f"{name} computes in a way of its own ({method}), and not as nn.{plain.__name__} does"
        )
    if is_lazy(conv.weight):
        raise TypeError(f"the {name} has no weight yet: run it once before")
    # torch keeps hooks of each kind in a dict of this name; weight_norm and prune use them too.
    hooks = [kind for kind, found in vars(conv).items() if kind.endswith("_hooks") and found]
    if hooks:
        raise ValueError(
            f"the {name} has hooks ({', '.join(hooks)}), which would stay behind: remove them, and "
            "register them on the normalized layer"
        )


def own_method(kind: type[nn.Module], plain: type[nn.Module] = nn.Conv2d) -> str | None:
    """The method by which a subclass of `plain` computes in a way of its own; None without one."""
    methods = ("forward", "_conv_forward")
    own = (m for m in methods if getattr(kind, m, None) is not getattr(plain, m, None))
    return next(own, None)


def geometry_of(conv: nn.Conv2d | nn.ConvTranspose2d) -> dict[str, Any]:
    """The arguments that make a convolution like `conv`, without device and dtype."""
    return {
        "in_channels": conv.in_channels,
        "out_channels": conv.out_channels,
        "kernel_size": conv.kernel_size,
        "stride": conv.stride,
        "padding": conv.padding,
        "dilation": conv.dilation,
        "groups": conv.groups,
        "bias": conv.bias is not None,
        "padding_mode": conv.padding_mode,
    }


Layer = TypeVar("Layer", bound=nn.Module)


def in_place_of(conv: nn.Conv2d | nn.ConvTranspose2d, layer: Layer) -> Layer:
    """Give a layer the very parameters of a convolution and its mode.

    Its affine asks for gradients if the weight does.
    """
    layer.weight, layer.bias = conv.weight, conv.bias
    if layer.affine is not None:
        layer.affine.requires_grad_(conv.weight.requires_grad)
    return layer.train(conv.training)
