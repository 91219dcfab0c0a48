"""How a pass is compiled apart, and what is seen of it."""

import pytest
import torch
from torch import nn

from bigain.errors import NumericalError
from bigain.profiling.modes import captured, check_finite, compiled_apart, first_pass, peak_memory, replay_clock

CPU = torch.device("cpu")


def test_code_compiled_apart_does_not_run_as_another_though_hooks_alone_differ():
    """Dynamo has no guards on hooks."""
    torch.compiler.reset()
    plain, hooked = nn.Linear(2, 2), nn.Linear(2, 2)
    hooked.load_state_dict(plain.state_dict())
    hooked.register_forward_hook(lambda module, args, output: output + 1)
    given = torch.ones(1, 2)
    runs = [compiled_apart(lambda one=one: one(given), "eager") for one in (plain, hooked)]
    torch.testing.assert_close(runs[1](), runs[0]() + 1)
    torch.compiler.reset()


def test_the_first_pass_tells_what_the_compiler_did():
    torch.compiler.reset()
    run = compiled_apart(lambda: torch.ones(2) * 2, "eager")
    output, compilation = first_pass(run, CPU)
    assert output.tolist() == [2, 2]
    assert (compilation.graphs, compilation.breaks) == (1, 0)
    assert compilation.seconds > 0

    def broken():
        half = torch.ones(2) * 2
        torch._dynamo.graph_break()
        return half + 1

    _, compilation = first_pass(compiled_apart(broken, "eager", whole=False), CPU)
    assert compilation.graphs == 2
    assert compilation.breaks >= 1  # inlined, it may be met twice
    torch.compiler.reset()


@pytest.mark.parametrize("output", [torch.tensor([1.0, torch.nan]), (torch.tensor([torch.inf]),)])
def test_nan_and_infinity_are_no_measure(output):
    with pytest.raises(NumericalError, match=r"x: with random weights in torch\.float32"):
        check_finite("x", output)


def test_memory_is_not_counted_on_a_cpu():
    assert peak_memory(lambda: torch.ones(2), CPU) is None


@pytest.mark.gpu
def test_replays_are_timed_by_the_device_and_share_a_pool():
    device, pool = torch.device("cuda"), torch.cuda.graph_pool_handle()
    given = torch.randn(2048, 2048, device=device)
    replays = []
    for times in (1, 32):

        def run(times=times):
            out = given
            for _ in range(times):
                out = out @ given
            return out

        run()
        replays.append(captured(run, device, pool))
    clock = replay_clock(device)
    # The fastest of each: other processes on the same GPU make a replay longer, and never shorter.
    one, many = (min(clock(replay) for _ in range(50)) for replay in replays)
    assert 24 < many / one < 40


@pytest.mark.gpu
def test_peak_memory_is_what_a_pass_needs_beside_what_was_there():
    device = torch.device("cuda")
    given = torch.zeros(2**20, device=device)
    assert peak_memory(lambda: given + 1, device) == 4 * 2**20
    assert peak_memory(lambda: (given + 1) + 1, device) == 8 * 2**20
