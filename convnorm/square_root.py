"""The square root of a symmetric matrix, with derivatives of all orders that stay bounded.

Those of an eigendecomposition are divided by the differences of eigenvalues; these are divided by
sums of their roots. Forward mode is left out: torch.compile refuses functions that have it.
"""

import torch

# Eigenvalues below this are rounding errors, in float32, of a matrix of norm 1.
SMALLEST = 1e-6


class SquareRoot(torch.autograd.Function):
    """R = S^(1/2) of symmetric matrices, whose eigenvalues are taken as SMALLEST or more.

    From R dR + dR R = dS, with eigenvalues r_i of R: dR_ij = dS_ij / (r_i + r_j) in their basis.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(S: torch.Tensor) -> torch.Tensor:
        eigenvalues, Q = torch.linalg.eigh(S)
        return Q * eigenvalues.clamp(min=SMALLEST).sqrt()[..., None, :] @ Q.mT

    @staticmethod
    def setup_context(ctx, inputs: tuple[torch.Tensor], R: torch.Tensor) -> None:
        ctx.save_for_backward(R)

    @staticmethod
    def backward(ctx, grad: torch.Tensor) -> torch.Tensor:
        (R,) = ctx.saved_tensors
        return Lyapunov.apply(R, grad)


class Lyapunov(torch.autograd.Function):
    """X with R X + X R = C, for symmetric positive definite R; a self-adjoint map of C."""

    generate_vmap_rule = True

    @staticmethod
    def forward(R: torch.Tensor, C: torch.Tensor) -> torch.Tensor:
        r, Q = torch.linalg.eigh(R)
        return Q @ (Q.mT @ C @ Q / (r[..., :, None] + r[..., None, :])) @ Q.mT

    @staticmethod
    def setup_context(ctx, inputs: tuple[torch.Tensor, torch.Tensor], X: torch.Tensor) -> None:
        ctx.save_for_backward(inputs[0], X)

    @staticmethod
    def backward(ctx, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        R, X = ctx.saved_tensors
        grad_C = Lyapunov.apply(R, grad)
        return -(grad_C @ X.mT + X.mT @ grad_C), grad_C
