"""`bigain latency`: what is timed, what is said of it, and what is refused."""

import json
import statistics
import time
from dataclasses import replace

import pytest
import torch
from torch import nn

from bigain.adapters.placement import Placement
from bigain.benchmark.architectures import build_architecture, build_random
from bigain.benchmark.flops import FlopCounter
from bigain.benchmark.flops_settings import FlopsSettings
from bigain.benchmark.latency_settings import LatencySettings, measure_methods
from bigain.benchmark.latency_table import as_json, notes_below
from bigain.cli.main import main
from bigain.errors import NumericalError, SettingError
from bigain.profiling.latency import measure_passes
from bigain.reducers.base import Identity, TokenReducer
from bigain.reducers.iekvd import IEKVD
from bigain.reducers.lgtm import LGTM
from bigain.reducers.scheduled import Rule, Scheduled
from bigain.reducers.todo import ToDo

CPU = torch.device("cpu")
QUICK = {"device": "cpu", "repeats": 1, "warmup": 0}
EAGER = {**QUICK, "compile": False}


@pytest.fixture
def tiny(tmp_path, tiny_unet_config):
    """A folder with the configuration of a tiny U-Net, and nothing else."""
    folder = tmp_path / "tiny"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(tiny_unet_config))
    return str(folder)


@pytest.fixture
def narrow(tmp_path):
    """A folder with the configuration of a DiT of one narrow block, which compiles quickly."""
    folder = tmp_path / "narrow"
    folder.mkdir()
    size = {"num_layers": 1, "num_attention_heads": 2, "attention_head_dim": 8, "sample_size": 8, "patch_size": 1}
    kind = {"_class_name": "DiTTransformer2DModel", "norm_type": "ada_norm_zero", "num_embeds_ada_norm": 10}
    (folder / "config.json").write_text(json.dumps({**size, **kind, "in_channels": 4, "out_channels": 4}))
    return str(folder)


class Watching(TokenReducer):
    """No reduction that does something at each plan."""

    def __init__(self, action=lambda tokens: None):
        self.action = action

    def plan(self, tokens, grid, context=None):
        self.action(tokens)
        return Identity().plan(tokens, grid, context)

    def reduced_length(self, grid, context=None):
        return grid.tokens


def values_of(seen):
    """Leave out what was planned on the meta device."""
    return [tokens for tokens in seen if not tokens.is_meta]


def test_a_method_takes_as_much_longer_as_it_sleeps(tiny):
    """Fifty milliseconds in each of three blocks; before and after it the network is bare."""
    settings = LatencySettings(tiny, reducers={"slow": Watching(lambda _: time.sleep(0.05))}, **{**EAGER, "repeats": 5})
    content = measure_methods(settings)
    assert [row.name for row in content.methods] == ["none", "slow", "none, again"]
    first, slow, last = (row.passes for row in content.methods)
    assert min(slow.times) >= 150 > max(min(first.times), min(last.times))
    medians = [passes.quartiles[1] for passes in (first, last)]
    assert content.baseline == pytest.approx(sum(medians) / 2)
    assert content.drift == pytest.approx((medians[1] - medians[0]) / content.baseline)


def test_passes_are_of_the_rows_the_shape_and_the_type_asked_for(tiny):
    seen = []
    settings = LatencySettings(
        tiny, Watching(seen.append), shape=[24, 16], rows=3, dtype="bf16", **{**EAGER, "repeats": 4}
    )
    measure_methods(settings)
    found = values_of(seen)
    assert {(tokens.shape[:2], tokens.dtype) for tokens in found} == {((3, 24 * 16), torch.bfloat16)}
    # The pass in which a compiler would work, and those timed; three blocks at full resolution each.
    assert len(found) == 3 * (1 + 4)


def test_the_placement_is_what_is_timed(tiny):
    seen = []
    encoder = Placement(names="down_blocks.*")
    measure_methods(LatencySettings(tiny, Watching(seen.append), placement=encoder, **{**EAGER, "warmup": 2}))
    assert len(values_of(seen)) == 1 * (1 + 2 + 1)


@pytest.mark.same_digits
def test_weights_and_inputs_follow_the_seed_and_every_method_has_the_same(tiny):
    runs = []
    for seed in (3, 3, 4):
        seen = []
        reducers = {"a": Watching(seen.append), "b": Watching(seen.append)}
        measure_methods(LatencySettings(tiny, reducers=reducers, seed=seed, **EAGER))
        runs.append(values_of(seen))
    assert all(torch.equal(one, other) for one, other in zip(runs[0], runs[1], strict=True))
    assert not torch.equal(runs[0][0], runs[2][0])
    half = len(runs[0]) // 2
    assert all(torch.equal(one, other) for one, other in zip(runs[0][:half], runs[0][half:], strict=True))


def test_the_file_holds_every_time_and_the_counted_operations(tiny, tmp_path):
    file = tmp_path / "out.json"
    options = ["--reducer=lgtm", "--reducer.ratio=0.5", "--rows=2", "--compile=false", "--repeats=5", "--device=cpu"]
    main(["latency", f"--network={tiny}", *options, f"--output={file}"])
    content = json.loads(file.read_text())
    none, lgtm, again = content["methods"]
    for row in content["methods"]:
        assert len(row["times_ms"]) == 5
        assert row["ms"] == statistics.median(row["times_ms"])
        assert min(row["times_ms"]) <= row["ms_low"] <= row["ms"] <= row["ms_high"] <= max(row["times_ms"])
        assert row["ratio"] == row["ms"] / content["baseline_ms"]
        assert row["memory"] is row["graphs"] is row["compile_seconds"] is None
    assert none["ratio"] + again["ratio"] == pytest.approx(2)
    count = FlopCounter(build_architecture(tiny)).count(LGTM(0.5))
    assert (none["flops"], lgtm["flops"]) == (count.baseline, count.total)
    assert lgtm["flops_ratio"] == count.total / count.baseline < 1 == again["flops_ratio"]
    assert content["settings"]["dtype"] == "fp32"
    assert content["settings"]["shape"] == [16, 16]
    assert {"device", "finished", "versions", "git_revision"} <= set(content)


def test_every_method_is_compiled_for_itself_though_hooks_alone_differ(narrow):
    """Dynamo has no guards on hooks: code kept from before would run another method."""
    placement = Placement(parts=("mlp",))
    content = measure_methods(LatencySettings(narrow, LGTM(0.5), placement=placement, backend="aot_eager", **QUICK))
    made = [row.passes.compilation for row in content.methods]
    assert [(one.graphs, one.breaks) for one in made] == [(1, 0)] * 3
    assert all(one.seconds > 0 for one in made)
    assert all(row["graphs"] == 1 and row["graph_breaks"] == 0 for row in as_json(content)["methods"])


def test_a_graph_break_names_the_method(narrow):
    broken = Watching(lambda _: torch._dynamo.graph_break())
    with pytest.raises(
        SettingError, match=r"^odd does not compile to one graph with eager: .*--compile=false"
    ) as refused:
        measure_methods(LatencySettings(narrow, reducers={"odd": broken}, backend="eager", **QUICK))
    assert "\n" not in str(refused.value)


def test_a_network_that_overflows_is_no_measure():
    network = nn.Linear(2, 2)
    nn.init.constant_(network.weight, torch.inf)
    with pytest.raises(NumericalError, match=r"x: with random weights in torch\.float32"):
        measure_passes("x", network, {"input": torch.ones(1, 2)}, None, 1, 0)


def test_a_timestep_settles_a_reducer_that_switches(tiny):
    switching = Scheduled([Rule(Identity(), timesteps=(600, 1000)), Rule(LGTM(0.5))])
    early, late = (measure_methods(LatencySettings(tiny, switching, timestep=at, **EAGER)) for at in (900, 100))
    assert early.methods[1].flops == early.methods[0].flops
    assert late.methods[1].flops == FlopCounter(build_architecture(tiny)).count(LGTM(0.5)).total
    assert "timestep 100" in late.title


def test_rows_at_mixed_timesteps_that_need_both_kinds_are_refused_before_anything_is_built(tiny):
    both = Scheduled([Rule(IEKVD(2), timesteps=(500, 1000)), Rule(LGTM(0.5))])
    steps = []
    with pytest.raises(SettingError, match="rows of one batch cannot do both"):
        measure_methods(LatencySettings(tiny, both, **EAGER), steps.append)
    assert steps == []
    assert len(measure_methods(LatencySettings(tiny, both, timestep=700, **EAGER)).methods) == 3


def test_two_methods_that_reduce_nothing_are_refused(tiny):
    """One of them would have no row of its own."""
    both = {"bare": Identity(), "todo": ToDo(2), "empty": Identity()}
    for settings in (LatencySettings, FlopsSettings):
        with pytest.raises(SettingError, match="'bare' and 'empty' are all no reduction"):
            settings(tiny, reducers=both)


def test_the_notes_say_where_little_can_be_gained(narrow):
    """The share of the operations in the parts taken is what any reducer there can save at most."""
    content = measure_methods(LatencySettings(narrow, LGTM(0.5), placement=Placement(parts=("mlp",)), **EAGER))
    assert content.share == FlopCounter(build_architecture(narrow)).count(LGTM(0.5), Placement(parts=("mlp",))).share
    assert "Little to gain" not in notes_below(replace(content, share=0.2))
    assert "the parts taken hold 10.0% of the operations" in notes_below(replace(content, share=0.1))


def test_no_reduction_keeps_the_name_it_is_given(tiny):
    settings = LatencySettings(tiny, reducers={"todo": ToDo(2), "bare": Identity()}, **EAGER)
    assert [row.name for row in measure_methods(settings).methods] == ["bare", "todo", "bare, again"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_random_weights_are_drawn_in_the_type_asked_for_and_nothing_else_changes(tiny, dtype):
    state = torch.random.get_rng_state()
    network, same, other = (build_random(tiny, CPU, dtype, seed) for seed in (0, 0, 1))
    tensors = [*network.parameters(), *network.buffers()]
    assert {value.dtype for value in tensors if value.is_floating_point()} == {dtype}
    assert all(torch.equal(one, two) for one, two in zip(network.parameters(), same.parameters(), strict=True))
    assert not torch.equal(next(network.parameters()), next(other.parameters()))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.get_default_dtype() == torch.float32
    assert not network.training
    shapes = {name: value.shape for name, value in build_architecture(tiny).state_dict().items()}
    assert {name: value.shape for name, value in network.state_dict().items()} == shapes


def test_the_table_says_what_was_timed_and_fits_eighty_columns(narrow, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    options = ["--reducer=todo", "--reducer.factor=2", "--backend=eager", "--repeats=2", "--device=cpu", "--rows=2"]
    main(["latency", f"--network={narrow}", *options])
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= 80
    joined = " ".join(printed.split())
    for said in (
        "1/3 none: compiling and timing",
        "8 x 8 tokens at its input, 2 rows a pass, fp32",
        "one pass of 2 rows, the median of 2",
        "Compiled with eager, each to 1 graph.",
        "FLOPs counted as torch.utils.flop_counter does",
    ):
        assert said in joined


def test_a_config_is_overridden_by_options(tiny, tmp_path):
    recipe, file = tmp_path / "recipe.json", tmp_path / "out.json"
    lgtm = {"class_path": "bigain.reducers.lgtm.LGTM", "init_args": {"ratio": 0.5}}
    recipe.write_text(json.dumps({"network": "sd2", "rows": 9, "reducers": {"x": lgtm}, "compile": False}))
    short = ["--rows=1", "--repeats=1", "--device=cpu", f"--output={file}"]
    main(["latency", f"--config={recipe}", f"--network={tiny}", *short])
    content = json.loads(file.read_text())
    assert [row["name"] for row in content["methods"]] == ["none", "x", "none, again"]
    assert content["settings"]["rows"] == 1


LGTM_HALF = '{"class_path": "bigain.reducers.lgtm.LGTM", "init_args": {"ratio": 0.5}}'
BAD = {
    "no network": ([], "network"),
    "unknown network": (["--network=sd3"], "no architecture 'sd3'. Did you mean sd2"),
    "unknown reducer": (["--network=TINY", "--reducer=lgmt"], "no reducer named 'lgmt'. Did you mean lgtm"),
    "impossible ratio": (["--network=TINY", "--reducer=lgtm", "--reducer.ratio=0.8"], "at most 192"),
    "another family's placement": (["--network=TINY", "--reducer=todo", "--reducer.factor=2",
                                    "--placement.preset=dit_xl_2"], "for models of the adapter 'dit'"),
    "one axis": (["--network=TINY", "--shape=[16]"], "each of 2 axes"),
    "no rows": (["--network=TINY", "--rows=0"], "rows is 1 or more; got 0"),
    "no repeats": (["--network=TINY", "--repeats=0"], "repeats is 1 or more"),
    "less than no warm-up": (["--network=TINY", "--warmup=-1"], "warmup is 0 or more"),
    "unknown type": (["--network=TINY", "--dtype=fp8"], "fp8"),
    "unknown backend": (["--network=TINY", "--backend=tensorrt"], "tensorrt"),
    "unknown device": (["--network=TINY", "--device=gpu"], "auto, cpu, cuda or cuda:N; got 'gpu'"),
    "a device not waited for": (["--network=TINY", "--device=meta"], "auto, cpu, cuda or cuda:N; got 'meta'"),
    "a device that is not there": (["--network=TINY", "--device=cuda:99"], "device=cuda:99 was asked for"),
    "one and several": (["--network=TINY", "--reducer=todo", "--reducer.factor=2", f'--reducers={{"a": {LGTM_HALF}}}'],
                        "reducer or reducers, not both"),
    "a reducer called none": (["--network=TINY", f'--reducers={{"none": {LGTM_HALF}}}'], "is the name of no reduction"),
    "a result that exists": (["--network=TINY", "--output=README.md"], "README.md exists already"),
    "no folder for the result": (["--network=TINY", "--output=nowhere/a.json"], "no folder nowhere"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_clear_line_and_nothing_is_built(case, tiny, root, monkeypatch, capsys):
    monkeypatch.chdir(root)
    options, message = BAD[case]
    with pytest.raises(SystemExit) as stopped:
        main(["latency", *(option.replace("TINY", tiny) for option in options)])
    assert stopped.value.code == 2
    printed = capsys.readouterr()
    assert message in printed.err
    assert "Traceback" not in printed.err
    assert printed.out == ""


@pytest.mark.gpu
def test_peak_memory_holds_the_weights_and_what_a_pass_needs_beside_them(tiny):
    settings = LatencySettings(tiny, LGTM(0.5), rows=4, dtype="fp16", device="cuda", repeats=2)
    small, large = (measure_methods(LatencySettings(**{**vars(settings), "rows": rows})) for rows in (4, 64))
    weights = 2 * sum(value.numel() for value in build_architecture(tiny).parameters())
    for few, many in zip(small.methods, large.methods, strict=True):
        assert weights < few.passes.memory < many.passes.memory
        assert few.passes.compilation.graphs == 1
