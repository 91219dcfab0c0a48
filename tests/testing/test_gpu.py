"""The same contract on a GPU, with the compiler's own backend, and in CUDA graphs: `pytest -m gpu tests/testing`."""

import pytest
import torch

from bigain.errors import SettingError
from bigain.reducers.base import TokenReducer
from bigain.testing import CASES, parametrize_with_checks
from bigain.testing.collecting import cases_of, label
from bigain.testing.comparing import outcome, same_outcome

pytestmark = pytest.mark.gpu

REDUCERS = {id(subject): subject for subject, *_ in cases_of() if isinstance(subject, TokenReducer)}.values()


@pytest.fixture(autouse=True)
def on_cuda(monkeypatch):
    monkeypatch.setenv("BIGAIN_CHECK_DEVICE", "cuda")
    monkeypatch.setenv("BIGAIN_CHECK_BACKEND", "inductor")


@parametrize_with_checks()
def test_conformance_on_a_gpu(subject, check):
    check(subject)


def fitting_case(reducer):
    """The first default case that a reducer accepts, preferably one with prefix and suffix."""
    for case in sorted(CASES, key=lambda case: not case.grid.suffix):
        try:
            reducer.reduced_length(case.grid, case.context())
        except SettingError:
            continue
        return case
    raise AssertionError("every case is refused")


@pytest.mark.parametrize("reducer", REDUCERS, ids=label)
def test_a_cuda_graph_replays_on_new_data(reducer):
    """A replay launches the recorded kernels: whatever the host decided while recording would be stale."""
    case = fitting_case(reducer)
    tokens, timestep = case.tokens(), case.timesteps()

    def run():
        return outcome(reducer, tokens, case.grid, case.context(timestep))

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        recorded = run()

    for variant in (1, 2):
        tokens.copy_(case.tokens(variant))
        timestep.copy_(case.timesteps(variant))
        graph.replay()
        torch.cuda.synchronize()
        same_outcome(recorded, run(), f"replayed on variant {variant} against run")


def test_a_wait_for_the_gpu_is_caught():
    """Guards the checks above: what only a GPU shows is seen there."""
    from bigain.scorers.base import TokenScorer
    from bigain.testing import ContractError, checks_of

    class CopiesBack(TokenScorer):
        def raw(self, tokens, grid):
            host = torch.arange(tokens.shape[1])  # on the CPU, no copy; on a GPU, one that waits
            return tokens.float().abs().sum(dim=-1) + host.to(tokens.device)

    (check,) = [check for check in checks_of("scorers") if check.name == "check_no_host_synchronisation"]
    with pytest.raises(ContractError, match="synchroniz"):
        check(CopiesBack())
    assert torch.cuda.get_sync_debug_mode() == 0
