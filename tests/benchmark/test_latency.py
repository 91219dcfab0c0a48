"""`bigain latency`: what is timed, what is said of it, and what is refused."""

import csv
import json
import statistics
import time
from dataclasses import replace

import pytest
import torch

from bigain.adapters.placement import Placement
from bigain.benchmark.architectures import build_architecture, build_random
from bigain.benchmark.flops import FlopCounter
from bigain.benchmark.flops_settings import FlopsSettings
from bigain.benchmark.latency import measure_latency
from bigain.benchmark.latency_files import as_json
from bigain.benchmark.latency_settings import LatencySettings
from bigain.benchmark.latency_table import notes_below
from bigain.cli.main import main
from bigain.errors import SettingError
from bigain.reducers.base import Identity, TokenReducer
from bigain.reducers.iekvd import IEKVD
from bigain.reducers.lgtm import LGTM
from bigain.reducers.scheduled import Rule, Scheduled
from bigain.reducers.todo import ToDo

CPU = torch.device("cpu")
QUICK = {"device": "cpu", "repeats": 1, "warmup": 0, "beside": []}
EAGER = {**QUICK, "modes": ["eager"]}


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


def rows_of(content, mode="eager"):
    """Return the rows of the only size."""
    (size,) = content.sizes
    return size.modes[mode]


def test_a_method_takes_as_much_longer_as_it_sleeps(tiny):
    """Fifty milliseconds in each of three blocks."""
    settings = LatencySettings(tiny, reducers={"slow": Watching(lambda _: time.sleep(0.05))}, **{**EAGER, "repeats": 5})
    none, slow = rows_of(measure_latency(settings))
    assert (none.case.name, slow.case.name) == ("none", "slow")
    assert min(slow.times) >= 150
    assert min(slow.times) - min(none.times) > 100  # a loaded machine makes both longer


def test_methods_are_timed_in_turn(tiny):
    order = []
    reducers = {name: Watching(lambda t, name=name: t.is_meta or order.append(name)) for name in "ab"}
    measure_latency(LatencySettings(tiny, reducers=reducers, **{**EAGER, "repeats": 3, "warmup": 2}))
    # Three blocks each; the first passes come before the rounds.
    assert "".join(order) == "aaabbb" * (1 + 2 + 3)


def test_passes_are_of_the_rows_the_shapes_and_the_type_asked_for(tiny):
    seen = []
    settings = LatencySettings(
        tiny, Watching(seen.append), shapes=[[24, 16], [8, 8]], rows=[3, 2], dtype="bf16", **{**EAGER, "repeats": 4}
    )
    kept = []
    content = measure_latency(settings, keep=kept.append)
    assert kept == [replace(content, sizes=content.sizes[:1], settings=kept[0].settings), content]
    assert [one.settings["shapes"] for one in kept] == [[[24, 16]], [[24, 16], [8, 8]]]
    found = values_of(seen)
    assert {(tokens.shape[:2], tokens.dtype) for tokens in found} == {
        ((3, 24 * 16), torch.bfloat16),
        ((2, 8 * 8), torch.bfloat16),
    }
    # The pass in which a compiler would work, and those timed; three blocks at full resolution each, at two sizes.
    assert len(found) == 2 * 3 * (1 + 4)
    assert [(size.shape, size.rows, size.tokens) for size in content.sizes] == [((24, 16), 3, 384), ((8, 8), 2, 64)]
    assert all(len(row.times) == 4 for size in content.sizes for row in size.modes["eager"])


def test_the_placement_is_what_is_timed(tiny):
    seen = []
    encoder = Placement(names="down_blocks.*")
    measure_latency(LatencySettings(tiny, Watching(seen.append), placement=encoder, **{**EAGER, "warmup": 2}))
    assert len(values_of(seen)) == 1 * (1 + 2 + 1)


@pytest.mark.same_digits
def test_weights_and_inputs_follow_the_seed_and_every_method_has_the_same(tiny):
    runs = []
    for seed in (3, 3, 4):
        seen = {"a": [], "b": []}
        reducers = {name: Watching(seen[name].append) for name in "ab"}
        measure_latency(LatencySettings(tiny, reducers=reducers, seed=seed, **EAGER))
        runs.append({name: values_of(found) for name, found in seen.items()})
    assert all(torch.equal(one, other) for one, other in zip(runs[0]["a"], runs[1]["a"], strict=True))
    assert not torch.equal(runs[0]["a"][0], runs[2]["a"][0])
    assert all(torch.equal(one, other) for one, other in zip(runs[0]["a"], runs[0]["b"], strict=True))


def test_the_files_hold_every_time_and_the_counted_operations(tiny, tmp_path):
    folder = tmp_path / "out"
    options = ["--reducer=lgtm", "--reducer.ratio=0.5", "--rows=2", "--modes=[eager]", "--repeats=7", "--device=cpu"]
    main(["latency", f"--network={tiny}", *options, "--beside=[]", f"--output={folder}"])
    content = json.loads((folder / "latency.json").read_text())
    (size,) = content["sizes"]
    none, lgtm = size["modes"]["eager"]
    for row in (none, lgtm):
        assert len(row["times_ms"]) == row["pairs"] == 7
        assert row["ms"] == statistics.median(row["times_ms"])
        pairs = zip(row["times_ms"], none["times_ms"], strict=True)
        assert row["ratio"] == statistics.median(one / other for one, other in pairs)
        assert row["ratio_low"] <= row["ratio"] <= row["ratio_high"]
        assert row["memory"] is row["graphs"] is row["compile_seconds"] is row["failure"] is None
    assert none["ratio"] == none["ratio_low"] == 1
    count = FlopCounter(build_architecture(tiny)).count(LGTM(0.5))
    assert (none["flops"], lgtm["flops"]) == (count.baseline, count.total)
    assert lgtm["flops_ratio"] == count.total / count.baseline < 1
    assert content["settings"]["dtype"] == "fp32"
    assert (size["shape"], size["rows"], size["tokens"]) == ([16, 16], 2, 256)
    assert {"format", "device", "finished", "versions", "git_revision"} <= set(content)
    with (folder / "latency.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [(row["name"], row["mode"], row["shape"]) for row in table] == [
        ("none", "eager", "16x16"),
        ("lgtm", "eager", "16x16"),
    ]
    assert float(table[1]["ratio"]) == lgtm["ratio"]
    assert not list(tmp_path.glob(".*"))


def test_every_method_is_compiled_for_itself_though_hooks_alone_differ(narrow):
    """Dynamo has no guards on hooks: code kept from before would run another method."""
    placement = Placement(parts=("mlp",))
    settings = LatencySettings(narrow, LGTM(0.5), placement=placement, backend="aot_eager", regional=False, **QUICK)
    content = measure_latency(settings)
    made = [row.compilation for row in rows_of(content, "compiled")]
    assert [(one.graphs, one.breaks) for one in made] == [(1, 0)] * 2
    assert all(one.seconds > 0 for one in made)
    (size,) = as_json(content)["sizes"]
    assert all(row["graphs"] == 1 and row["graph_breaks"] == 0 for row in size["modes"]["compiled"])


def test_modes_are_timed_one_after_the_other_and_eager_ones_compile_nothing(narrow):
    settings = LatencySettings(narrow, LGTM(0.5), modes=["compiled", "eager"], backend="eager", **QUICK)
    content = measure_latency(settings)
    assert list(content.sizes[0].modes) == ["compiled", "eager"]
    assert [row.compilation is None for row in rows_of(content)] == [True, True]
    assert [row.compilation is None for row in rows_of(content, "compiled")] == [False, False]


def test_a_graph_break_names_the_method(narrow):
    broken = Watching(lambda _: torch._dynamo.graph_break())
    with pytest.raises(
        SettingError, match=r"^odd does not compile without a break with eager: .*--modes=\[eager\]"
    ) as refused:
        measure_latency(LatencySettings(narrow, reducers={"odd": broken}, backend="eager", **QUICK))
    assert "\n" not in str(refused.value)


def test_what_does_not_fit_is_a_row_that_says_so(tiny, capsys, tmp_path):
    def full(tokens):
        if not tokens.is_meta:
            raise torch.OutOfMemoryError

    content = measure_latency(LatencySettings(tiny, reducers={"huge": Watching(full), "todo": ToDo(2)}, **EAGER))
    none, huge, todo = rows_of(content)
    assert (huge.times, huge.failure) == ((), "does not fit")
    assert len(none.times) == len(todo.times) == 1
    (size,) = as_json(content)["sizes"]
    assert [(row["ratio"] is None, row["failure"]) for row in size["modes"]["eager"]] == [
        (False, None),
        (True, "does not fit"),
        (False, None),
    ]


def test_a_timestep_settles_a_reducer_that_switches(tiny):
    switching = Scheduled([Rule(Identity(), timesteps=(600, 1000)), Rule(LGTM(0.5))])
    early, late = (measure_latency(LatencySettings(tiny, switching, timestep=at, **EAGER)) for at in (900, 100))
    none, method = rows_of(early)
    assert method.case.flops == none.case.flops
    assert rows_of(late)[1].case.flops == FlopCounter(build_architecture(tiny)).count(LGTM(0.5)).total
    assert "timestep 100" in late.title


def test_rows_at_mixed_timesteps_that_need_both_kinds_are_refused_before_anything_is_built(tiny):
    both = Scheduled([Rule(IEKVD(2), timesteps=(500, 1000)), Rule(LGTM(0.5))])
    steps = []
    with pytest.raises(SettingError, match="rows of one batch cannot do both"):
        measure_latency(LatencySettings(tiny, both, **EAGER), steps.append)
    assert steps == []
    assert len(rows_of(measure_latency(LatencySettings(tiny, both, timestep=700, **EAGER)))) == 2


def test_two_methods_that_reduce_nothing_are_refused(tiny):
    """One of them would have no row of its own."""
    both = {"bare": Identity(), "todo": ToDo(2), "empty": Identity()}
    for settings in (LatencySettings, FlopsSettings):
        with pytest.raises(SettingError, match="'bare' and 'empty' are all no reduction"):
            settings(tiny, reducers=both)


def test_the_notes_say_where_little_can_be_gained(narrow):
    """The share of the operations in the parts taken is what any reducer there can save at most."""
    placement = Placement(parts=("mlp",))
    content = measure_latency(LatencySettings(narrow, LGTM(0.5), placement=placement, **EAGER))
    (size,) = content.sizes
    assert size.share == FlopCounter(build_architecture(narrow)).count(LGTM(0.5), placement).share
    object.__setattr__(size, "share", 0.2)
    assert "Little to gain" not in " ".join(notes_below(content))
    object.__setattr__(size, "share", 0.1)
    assert "the parts taken hold 10.0% of the operations" in " ".join(notes_below(content))


def test_no_reduction_keeps_the_name_it_is_given(tiny):
    settings = LatencySettings(tiny, reducers={"todo": ToDo(2), "bare": Identity()}, **EAGER)
    assert [row.case.name for row in rows_of(measure_latency(settings))] == ["bare", "todo"]


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


def test_the_tables_say_what_was_timed_and_fit_eighty_columns(narrow, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    options = ["--reducer=todo", "--reducer.factor=2", "--backend=eager", "--repeats=2", "--device=cpu", "--rows=2"]
    main(["latency", f"--network={narrow}", *options, "--beside=[]"])
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= 80
    joined = " ".join(printed.split())
    for said in (
        "1/2 none: compiling",
        "timing compiled: 3 + 2 rounds of 2 passes in turn",
        "with random weights, fp32",
        "8 x 8 tokens, 2 rows, compiled, launched by the host",
        "one pass, the median of 2",
        "FLOPs counted as torch.utils.flop_counter does",
    ):
        assert said in joined


def test_a_config_is_overridden_by_options(tiny, tmp_path):
    recipe, file = tmp_path / "recipe.json", tmp_path / "out.json"
    lgtm = {"class_path": "bigain.reducers.lgtm.LGTM", "init_args": {"ratio": 0.5}}
    recipe.write_text(json.dumps({"network": "sd2", "rows": 9, "reducers": {"x": lgtm}, "modes": ["eager"]}))
    short = ["--rows=1", "--repeats=1", "--device=cpu", "--beside=[]", f"--output={file}"]
    main(["latency", f"--config={recipe}", f"--network={tiny}", *short])
    content = json.loads(file.read_text())
    (size,) = content["sizes"]
    assert [row["name"] for row in size["modes"]["eager"]] == ["none", "x"]
    assert size["rows"] == 1


LGTM_HALF = '{"class_path": "bigain.reducers.lgtm.LGTM", "init_args": {"ratio": 0.5}}'
BAD = {
    "no network": ([], "Give network"),
    "unknown network": (["--network=sd4"], "no architecture 'sd4'. Did you mean sd"),
    "unknown reducer": (["--network=TINY", "--reducer=lgmt"], "no reducer named 'lgmt'. Did you mean lgtm"),
    "impossible ratio": (["--network=TINY", "--reducer=lgtm", "--reducer.ratio=0.8"], "at most 192"),
    "another family's placement": (["--network=TINY", "--reducer=todo", "--reducer.factor=2",
                                    "--placement.preset=dit_xl_2"], "for models of the adapter 'dit'"),
    "one axis": (["--network=TINY", "--shape=[16]"], "each of 2 axes"),
    "one and several shapes": (["--network=TINY", "--shape=[8,8]", "--shapes=[[8,8]]"], "shape or shapes, not both"),
    "no rows": (["--network=TINY", "--rows=0"], "rows is 1 or more; got 0"),
    "more rows than shapes": (["--network=TINY", "--shapes=[[8,8],[4,4]]", "--rows=[1,2,3]"],
                              "rows is one number, or one for each of 2 shapes; got 3"),
    "no repeats": (["--network=TINY", "--repeats=0"], "repeats is 1 or more"),
    "less than no warm-up": (["--network=TINY", "--warmup=-1"], "warmup is 0 or more"),
    "unknown type": (["--network=TINY", "--dtype=fp8"], "fp8"),
    "unknown backend": (["--network=TINY", "--backend=tensorrt"], "tensorrt"),
    "unknown mode": (["--network=TINY", "--modes=[fast]"], "fast"),
    "a mode twice": (["--network=TINY", "--modes=[eager,eager]"], "modes are of eager, compiled, graphs, each once"),
    "no mode": (["--network=TINY", "--modes=[]"], "modes are of eager"),
    "graphs on a CPU": (["--network=TINY", "--modes=[graphs]", "--device=cpu"], "the device is a CPU: take modes="),
    "heads of a network": (["--network=TINY", "--heads=4"], "give self_attention, too"),
    "a self-attention of no width": (["--self-attention", "--shape=[8,8]"], "channels and heads will do instead"),
    "a self-attention of no size": (["--self-attention", "--channels=8", "--heads=2"], "Give shape"),
    "a head too many": (["--self-attention", "--shape=[8,8]", "--channels=8", "--heads=3"], "multiple of heads"),
    "unknown device": (["--network=TINY", "--device=gpu"], "auto, cpu, cuda or cuda:N; got 'gpu'"),
    "a device not waited for": (["--network=TINY", "--device=meta"], "auto, cpu, cuda or cuda:N; got 'meta'"),
    "a device that is not there": (["--network=TINY", "--device=cuda:99"], "device=cuda:99 was asked for"),
    "one and several": (["--network=TINY", "--reducer=todo", "--reducer.factor=2", f'--reducers={{"a": {LGTM_HALF}}}'],
                        "reducer or reducers, not both"),
    "a reducer called none": (["--network=TINY", f'--reducers={{"none": {LGTM_HALF}}}'], "is the name of no reduction"),
    "a result that exists": (["--network=TINY", "--output=README.md"], "README.md exists already"),
    "a folder that exists": (["--network=TINY", "--output=recipes"], "recipes exists already"),
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
def test_every_mode_gives_times_and_memory_on_a_gpu(tiny):
    settings = LatencySettings(
        tiny,
        LGTM(0.5),
        rows=4,
        dtype="fp16",
        device="cuda",
        modes=["eager", "compiled", "graphs"],
        beside=["floors", "peers", "written_out"],
        repeats=6,
    )
    small = measure_latency(settings)
    large = measure_latency(replace(settings, rows=64, beside=[]))
    for mode in ("eager", "compiled", "graphs"):
        for few in rows_of(small, mode):
            assert few.failure is None
            assert len(few.times) == 6
            assert min(few.times) > 0
        for few, many in zip(rows_of(small, mode)[:2], rows_of(large, mode), strict=True):
            assert 0 < few.memory < many.memory
    assert all(row.compilation.breaks == 0 for row in rows_of(small, "graphs"))


@pytest.mark.gpu
def test_a_self_attention_is_timed_as_graphs_by_default():
    settings = LatencySettings(
        reducer=LGTM(0.7), self_attention=True, shape=[64, 64], channels=320, heads=5, rows=2, repeats=6
    )
    rows = {row.case.name: row for row in rows_of(measure_latency(settings), "graphs")}
    assert all(row.failure is None for row in rows.values())
    assert statistics.median(rows["floor: sliced 70%"].times) < statistics.median(rows["lgtm"].times)
