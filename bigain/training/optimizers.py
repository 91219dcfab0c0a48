"""Two optimizers that Lightning's automatic optimization sees as one."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.optim import AdamW, Muon, Optimizer

__all__ = ["MuonWithAdamW"]


class MuonWithAdamW(Optimizer):
    """Muon for hidden matrices, AdamW for everything else.

    Both come from torch; this class steps them together, so that a scheduler, a
    checkpoint and gradient clipping see one optimizer.

    Args:
        named_parameters: Pairs of name and parameter.
        lr: Peak learning rate of AdamW; Muon's update is rescaled to the same
            root mean square, so one rate serves both.
        weight_decay: Decoupled weight decay of the matrices.
        adamw_only: Parameters whose name contains one of these stay with AdamW:
            embeddings, and the first and last projection.

    References:
        Muon is Scalable for LLM Training (Liu et al., 2025), section 2.2.
    """

    def __init__(
        self,
        named_parameters: Iterable[tuple[str, nn.Parameter]],
        lr: float,
        weight_decay: float = 0.0,
        adamw_only: tuple[str, ...] = ("embedding_table", "pos_embed", "proj_out"),
    ) -> None:
        matrices: list[nn.Parameter] = []
        others: list[nn.Parameter] = []
        for name, parameter in named_parameters:
            hidden = parameter.ndim == 2 and not any(part in name for part in adamw_only)
            (matrices if hidden else others).append(parameter)
        self._muon = Muon(matrices, lr=lr, weight_decay=weight_decay, momentum=0.95, adjust_lr_fn="match_rms_adamw")
        self._adamw = AdamW(others, lr=lr, weight_decay=0.0, betas=(0.9, 0.95), fused=torch.cuda.is_available())
        super().__init__([{"params": matrices}, {"params": others}], {"lr": lr})
        # The same group objects, so that a scheduler that sets lr here sets it in both optimizers.
        self.param_groups = [*self._muon.param_groups, *self._adamw.param_groups]

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._muon.step()  # type: ignore[no-untyped-call]
        self._adamw.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        return {"muon": self._muon.state_dict(), "adamw": self._adamw.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._muon.load_state_dict(state_dict["muon"])
        self._adamw.load_state_dict(state_dict["adamw"])
        self.param_groups = [*self._muon.param_groups, *self._adamw.param_groups]
