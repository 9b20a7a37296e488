"""Kernels that give the same bits again, on a GPU (`deterministic`).

What differs by default is the backward pass of fused attention: PyTorch's memory-efficient one splits long rows of keys
over multiprocessors, which add to the same gradient in the order in which they happen to finish, and flash attention
adds with atomics. In PyTorch's deterministic mode the first does not split (`num_splits_key = 1`), the second takes its
deterministic path, and cuDNN's attention is not chosen (`aten/src/ATen/native/transformers/cuda/attention_backward.cu`,
`sdp_utils.cpp`). xformers' kernel for a T4 is PyTorch's own operator, so the mode reaches it; Unsloth then calls SDPA
once a segment instead of torch's varlen kernel. An operator that has no deterministic form raises an error, which names
it.
"""

from __future__ import annotations

import os


def prepare() -> None:
    """What must be set before anything makes a CUDA context, so before a strategy is imported: cuBLAS looks then."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


def settle() -> None:
    import torch

    torch.use_deterministic_algorithms(True)
    # Else every new tensor would be filled with a number first, at the price of a pass over memory.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = False
