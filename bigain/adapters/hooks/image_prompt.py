"""FLUX's IP-Adapter beside attention whose queries are rotated by hooks."""

from typing import Any

import torch
from torch import Tensor, nn

from bigain.adapters.base import Undo

__all__ = ["ImagePrompt", "attend_image_prompts"]


class ImagePrompt:
    """Attends to image prompts with queries that are not rotated.

    diffusers' `FluxIPAdapterAttnProcessor` rotates the queries for its joint attention, and
    attends to the prompts with the unrotated ones. Where hooks behind the norm rotate,
    those are lost. So the prompts are taken out of the call, and their contribution is
    computed here, from the norm's output.
    """

    def __init__(self) -> None:
        self._prompts: list[Tensor] | None = None
        self._queries: Tensor | None = None

    def around(self, attention: Any) -> Undo:
        """Register the hooks, before those that reduce and rotate."""
        return [
            attention.register_forward_pre_hook(self.take, with_kwargs=True).remove,
            attention.norm_q.register_forward_hook(self.note).remove,
            attention.register_forward_hook(self.add).remove,
        ]

    def take(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Take the prompts out of a call, if the processor is an IP-Adapter's."""
        prompts = kwargs.get("ip_hidden_states") if hasattr(_processor(module), "to_k_ip") else None
        self._prompts = None if prompts is None else list(prompts)
        return None if prompts is None else (args, kwargs | {"ip_hidden_states": []})

    def note(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        """Keep the queries, `[B, N, H, D]`."""
        if self._prompts is not None:
            self._queries = output

    def add(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        """Add the prompts' contribution to the third of the outputs, which is diffusers' place for it."""
        prompts, queries = self._prompts, self._queries
        self._prompts, self._queries = None, None
        if prompts is None or queries is None:
            return None
        image, text, zeros = output
        return image, text, zeros + attend_image_prompts(_processor(module), queries, prompts)


def attend_image_prompts(processor: Any, queries: Tensor, prompts: list[Tensor]) -> Tensor:
    """Attend to image prompts, each with the processor's projections and weight for it.

    Args:
        processor: diffusers' `FluxIPAdapterAttnProcessor`.
        queries: Normed and not rotated, `[B, N, H, D]`.
        prompts: Embeddings of each adapter's images, `[B, .., C]`.

    Returns:
        `[B, N, H * D]`.
    """
    from diffusers.models.attention_dispatch import dispatch_attention_fn

    rows, _, heads, width = queries.shape
    total = torch.zeros_like(queries).flatten(2)
    weights = zip(prompts, processor.scale, processor.to_k_ip, processor.to_v_ip, strict=False)
    for states, scale, to_key, to_value in weights:
        keys, values = (project(states).reshape(rows, -1, heads, width) for project in (to_key, to_value))
        backend = {"backend": processor._attention_backend, "parallel_config": processor._parallel_config}  # noqa: SLF001
        total = total + scale * dispatch_attention_fn(queries, keys, values, **backend).flatten(2).to(queries.dtype)
    return total


def _processor(module: nn.Module) -> Any:
    return getattr(module, "processor", None)
