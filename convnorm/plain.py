"""What a plain convolution is: one that another layer can stand in for without losing anything."""

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
    for method in ("forward", "_conv_forward"):
        if getattr(type(conv), method, None) is not getattr(plain, method, None):
            raise TypeError(
                f"{name} computes in a way of its own ({method}), and not as "
                f"nn.{plain.__name__} does"
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
