"""Time passes in turn, in one or several modes; a case that does not fit or cannot be captured says so."""

import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch._dynamo.exc import TorchDynamoException

from bigain.errors import SettingError, first_line
from bigain.profiling.latency import interleaved
from bigain.profiling.modes import (
    GRAPHS,
    Backend,
    Compilation,
    Mode,
    captured,
    check_finite,
    compiled_apart,
    first_pass,
    peak_memory,
    replay_clock,
)

__all__ = ["DOES_NOT_FIT", "Case", "Kind", "Measured", "Pass", "Timing", "fresh_compiler", "time_cases"]

Kind = Literal["none", "method", "floor", "peer", "baseline", "part"]
"""What a case is: no reduction, a reducer, a floor for all reducers, another package, the paper's baseline, a piece."""

DOES_NOT_FIT = "does not fit"


@dataclass(frozen=True)
class Pass:
    """One pass of a case.

    Args:
        run: Runs it.
        compiled: Given a backend, returns a function that runs it compiled.
    """

    run: Callable[[], Any]
    compiled: Callable[[Backend], Callable[[], Any]]

    @classmethod
    def whole(cls, run: Callable[[], Any], breaks: bool = False) -> "Pass":
        """Make a pass that is compiled as a whole: to one graph, unless breaks are allowed."""
        return cls(run, lambda backend: compiled_apart(run, backend, whole=not breaks))


@dataclass(frozen=True)
class Case:
    """Something to time: one row of the table.

    Args:
        name: Its name.
        kind: What it is.
        build: Makes its pass, which works within the context.
        settings: The reducer's settings, or what else the case does, in words.
        flops: Operations of one row of the pass; `None` if they are not counted.
        around: A context that every call of the pass needs, compilation included.
    """

    name: str
    kind: Kind
    build: Callable[[], AbstractContextManager[Pass]]
    settings: str = ""
    flops: float | None = None
    around: Callable[[], AbstractContextManager[Any]] = nullcontext


@dataclass(frozen=True)
class Timing:
    """How cases are timed.

    Args:
        device: The device.
        modes: How passes run.
        backend: Backend of `torch.compile`.
        repeats: Timed rounds.
        warmup: Rounds before, not timed.
    """

    device: torch.device
    modes: tuple[Mode, ...]
    backend: Backend
    repeats: int
    warmup: int


@dataclass(frozen=True)
class Measured:
    """What was measured of one case.

    Args:
        case: The case.
        times: Milliseconds of each pass; empty if it failed.
        memory: Most bytes that one pass has in use beside weights and inputs, measured in a pass
            of its own, launched by the host; `None` where the device does not count them.
        compilation: What the compiler did; `None` for a pass that runs as it is.
        failure: Why it has no times.
    """

    case: Case
    times: tuple[float, ...] = ()
    memory: int | None = None
    compilation: Compilation | None = None
    failure: str | None = None


@dataclass
class _Ready:
    """A case that can be timed, or one that failed on the way."""

    measured: Measured
    run: Callable[[], Any] = field(repr=False)


def time_cases(
    cases: Sequence[Case], timing: Timing, announce: Callable[[str], None] = lambda line: None
) -> dict[Mode, list[Measured]]:
    """Time cases in turn: the first, the second, .., the first, the second, ..

    Args:
        cases: What to time; the others are compared with the first.
        timing: How to time.
        announce: Called with a line before each step.

    Returns:
        What was measured of each case, by mode.

    Raises:
        SettingError: A case does not compile.
        NumericalError: A case returned NaN or infinity.
    """
    found: dict[Mode, list[Measured]] = {}
    with ExitStack() as stack, torch.inference_mode():
        stack.enter_context(fresh_compiler())
        passes = {case.name: stack.enter_context(case.build()) for case in cases}
        if "eager" in timing.modes:
            ready = _prepared(cases, passes, None, timing.device, announce)
            found["eager"] = _timed(ready, timing, "eager", announce)
        if {"compiled", "graphs"} & set(timing.modes):
            ready = _prepared(cases, passes, timing.backend, timing.device, announce)
            if "compiled" in timing.modes:
                found["compiled"] = _timed(ready, timing, "compiled", announce)
            if "graphs" in timing.modes:
                found["graphs"] = _timed(_captured(ready, timing.device), timing, "graphs", announce)
    # Results must not keep networks alive: there may be more to measure.
    return {mode: [replace(row, case=replace(row.case, build=_gone)) for row in found[mode]] for mode in timing.modes}


def _gone() -> AbstractContextManager[Pass]:
    raise RuntimeError("What was timed is gone.")


@contextmanager
def fresh_compiler() -> Iterator[None]:
    """Clear compiled code before and after, and allow up to `GRAPHS` graphs for a function."""
    torch.compiler.reset()
    try:
        with torch._dynamo.config.patch(recompile_limit=GRAPHS):  # noqa: SLF001 as torch's documentation names it
            yield
    finally:
        torch.compiler.reset()


def _prepared(
    cases: Sequence[Case],
    passes: Mapping[str, Pass],
    backend: Backend | None,
    device: torch.device,
    announce: Callable[[str], None],
) -> list[_Ready]:
    ready = []
    for number, case in enumerate(cases, start=1):
        if backend is not None:
            announce(f"{number}/{len(cases)} {case.name}: compiling")
        one = passes[case.name]
        ready.append(_first(case, one.run if backend is None else one.compiled(backend), backend, device))
        _empty_cache(device)
    return ready


def _first(case: Case, run: Callable[[], Any], backend: Backend | None, device: torch.device) -> _Ready:
    """Run the pass in which the compiler works, and another to measure memory."""

    def surrounded() -> Any:
        with case.around():
            return run()

    try:
        output, compilation = first_pass(surrounded, device)
        check_finite(case.name, output)
        del output
        memory = peak_memory(surrounded, device)
    except torch.OutOfMemoryError:
        return _Ready(Measured(case, failure=DOES_NOT_FIT), surrounded)
    except TorchDynamoException as error:
        if case.kind == "peer":
            return _Ready(Measured(case, failure=f"does not compile: {_reason(error)}"), surrounded)
        raise SettingError(
            f"{case.name} does not compile without a break with {backend}: {_reason(error)} It can be timed "
            "uncompiled, with --modes=[eager]."
        ) from error
    except Exception as error:
        if case.kind != "peer":
            raise
        # Another package's error must not stop the rest.
        return _Ready(Measured(case, failure=f"fails: {type(error).__name__}: {_reason(error)}"), surrounded)
    return _Ready(Measured(case, memory=memory, compilation=compilation if backend else None), surrounded)


def _captured(ready: Sequence[_Ready], device: torch.device) -> list[_Ready]:
    """Capture each case; all graphs share one pool of memory, since they run one after another."""
    pool = torch.cuda.graph_pool_handle()
    graphs = []
    for one in ready:
        if one.measured.failure is None:
            try:
                one = _Ready(one.measured, captured(one.run, device, pool))
            except RuntimeError as error:
                one = _Ready(replace(one.measured, failure=_why_not_captured(error)), one.run)
            _empty_cache(device)
        graphs.append(one)
    return graphs


def _why_not_captured(error: RuntimeError) -> str:
    # Out of memory ends the capture, which then raises an error of its own.
    if any(isinstance(one, torch.OutOfMemoryError) for one in (error, error.__context__)):
        return DOES_NOT_FIT
    return f"cannot be captured: {first_line(error)}"


def _timed(ready: Sequence[_Ready], timing: Timing, mode: Mode, announce: Callable[[str], None]) -> list[Measured]:
    runs = {one.measured.case.name: one.run for one in ready if one.measured.failure is None}
    announce(f"timing {mode}: {timing.warmup} + {timing.repeats} rounds of {len(runs)} passes in turn")
    clock = replay_clock(timing.device) if mode == "graphs" else None
    seconds = interleaved(runs, timing.repeats, timing.warmup, timing.device, clock)
    return [
        replace(one.measured, times=tuple(1000 * value for value in seconds.get(one.measured.case.name, ())))
        for one in ready
    ]


def _empty_cache(device: torch.device) -> None:
    """Free the memory of a pass: the next one may need all of it."""
    if device.type == "cuda":
        gc.collect()
        torch.cuda.empty_cache()


def _reason(error: Exception) -> str:
    """Say in one line what the compiler could not do, and where in the user's code."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    place = [line for line in lines if line.startswith('File "')][-1:]
    return f"{lines[0].rstrip('.')}{''.join(f' ({line})' for line in place)}."
