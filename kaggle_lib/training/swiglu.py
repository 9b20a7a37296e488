"""An MLP that keeps two tensors for its backward pass instead of three.

    forward   h = silu(g) · u                    g = gate(x), u = up(x), silu(g) = g · σ(g)
    backward  ∂u = ∂h · silu(g)                  ∂g = (∂h · u) · σ(g) · (1 + g · (1 − σ(g)))

Autograd keeps g, u and silu(g), each as wide as the MLP: 28 KiB a token and layer in half precision at the 8B shape.
Here silu(g) is computed again in the backward pass, by the same operators in the same order, so no bit changes. The
projections are called as modules: frozen, quantised or with an adapter, as they are.
"""

from __future__ import annotations

import types
from typing import Any

import torch
from torch.nn.functional import silu
from transformers.activations import ACT2FN


class SwiGLU(torch.autograd.Function):
    """`silu(gate) * up`, elementwise; any shape and floating type."""

    @staticmethod
    def forward(ctx: Any, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(gate, up)
        return silu(gate) * up

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        (grad,), (gate, up) = grads, ctx.saved_tensors
        of_gate = torch.ops.aten.silu_backward(grad * up, gate) if ctx.needs_input_grad[0] else None
        return of_gate, grad * silu(gate) if ctx.needs_input_grad[1] else None


def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
    """In the place of an MLP's own `forward`: `x` is `(batch, tokens, hidden)`, and so is what it returns."""
    out: torch.Tensor = self.down_proj(SwiGLU.apply(self.gate_proj(x), self.up_proj(x)))  # type: ignore[no-untyped-call]
    return out


def install(model: Any) -> Any:
    """The same model, its gated SiLU MLPs computed as above. Left alone are other activations, and modules whose
    `forward` somebody has replaced: Unsloth's, where all of an MLP's projections have an adapter, keeps two, too."""
    for module in model.modules():
        gated = all(hasattr(module, name) for name in ("gate_proj", "up_proj", "down_proj", "act_fn"))
        if gated and isinstance(module.act_fn, (torch.nn.SiLU, type(ACT2FN["silu"]))) and "forward" not in vars(module):
            module.forward = types.MethodType(forward, module)
    return model
