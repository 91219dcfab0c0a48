"""How training draws timesteps, which weights the loss over them."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from bigain.errors import SettingError

__all__ = ["LogitNormal", "Timesteps", "Uniform"]


class Timesteps(ABC):
    """A density of timesteps."""

    @abstractmethod
    def draw(self, rows: int, steps: int, generator: torch.Generator) -> Tensor:
        """Draw a timestep for each row.

        Args:
            rows: B.
            steps: Number of training timesteps.
            generator: Its device is that of the result.

        Returns:
            int64, `[B]`, from 0 to `steps` - 1.
        """


class Uniform(Timesteps):
    """Every timestep alike: what the diffusion classifier measures later."""

    def draw(self, rows: int, steps: int, generator: torch.Generator) -> Tensor:
        return torch.randint(steps, (rows,), generator=generator, device=generator.device)


class LogitNormal(Timesteps):
    """Mostly the middle timesteps: the logit of t / steps is normal.

    Args:
        mean: Mean of the logit; below 0 prefers early timesteps.
        std: Its standard deviation.
        uniform_share: Share of rows whose timestep is uniform, so that none is left out.

    Raises:
        SettingError: The deviation is not positive, or the share not between 0 and 1.

    References:
        Scaling Rectified Flow Transformers for High-Resolution Image Synthesis (Esser et al., 2024), section 3.1.
    """

    def __init__(self, mean: float = 0.0, std: float = 1.0, uniform_share: float = 0.2) -> None:
        if std <= 0 or not 0 <= uniform_share <= 1:
            raise SettingError(
                f"LogitNormal takes std above 0 and uniform_share from 0 to 1; got std={std} and "
                f"uniform_share={uniform_share}."
            )
        self.mean, self.std, self.uniform_share = mean, std, uniform_share

    def draw(self, rows: int, steps: int, generator: torch.Generator) -> Tensor:
        device = generator.device
        logit = self.mean + self.std * torch.randn(rows, generator=generator, device=device)
        middle = (logit.sigmoid() * steps).long().clamp(max=steps - 1)
        uniform = torch.randint(steps, (rows,), generator=generator, device=device)
        return torch.where(torch.rand(rows, generator=generator, device=device) < self.uniform_share, uniform, middle)
