"""Does it compile to one graph that serves all values?"""

import os
from collections import Counter

import torch
from torch import Tensor
from torch._dynamo.utils import counters

from bigain.testing.cases import Case
from bigain.testing.comparing import Outcome, Subject, expect, outcome, same_outcome

__all__ = ["check_compiles_to_one_graph"]


def check_compiles_to_one_graph(subject: Subject, case: Case) -> None:
    """A graph break or a recompilation inside a denoising loop costs more than the reduction saves.

    The environment variable `BIGAIN_CHECK_BACKEND` names the compiler's backend;
    `aot_eager`, the default, needs no compiler on the machine.
    """

    def run(tokens: Tensor, timestep: Tensor) -> Outcome:
        return outcome(subject, tokens, case.grid, case.context(timestep))

    torch.compiler.reset()
    breaks = Counter(counters["graph_break"])
    backend = os.environ.get("BIGAIN_CHECK_BACKEND") or "aot_eager"
    compiled = torch.compile(run, fullgraph=True, dynamic=False, backend=backend)
    first, other = (case.tokens(), case.timesteps()), (case.tokens(1), case.timesteps(1))
    with torch.no_grad():
        same_outcome(compiled(*first), run(*first), "compiled against eager", rtol=1e-4, atol=1e-4)
        with torch.compiler.set_stance("fail_on_recompile"):
            found = compiled(*other)
        same_outcome(found, run(*other), "compiled against eager, on other values", rtol=1e-4, atol=1e-4)
    fresh = Counter(counters["graph_break"]) - breaks
    expect(not fresh, f"graph breaks: {', '.join(str(reason) for reason in fresh)}")
