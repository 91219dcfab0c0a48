"""The command line as its users meet it: what bad input says, what Ctrl-C leaves."""

import logging
import os
import signal
import subprocess
import sys
import time
from importlib.metadata import version

import pytest
import torch

from bigain.cli import main as cli
from bigain.cli.arguments import with_class_paths
from bigain.cli.commands import COMMANDS, load
from bigain.cli.main import main
from bigain.results.predictions import Predictions

CLASSIFY = "recipes/classify/cifar10_lgtm.yaml"


@pytest.fixture
def small(root, tiny_weights, tmp_path, monkeypatch):
    """Arguments of a tiny classification."""
    monkeypatch.chdir(root)
    # Lightning's log handler holds on to the stream of an earlier test.
    monkeypatch.setattr(logging, "raiseExceptions", False)
    return [
        "test",
        f"--config={CLASSIFY}",
        "--trainer.accelerator=cpu",
        "--trainer.precision=32-true",
        f"--model.backbone.init_args.weights={tiny_weights}",
        "--model.rows=8",
        "--data.image_size=8",
        "--data.limit=6",
        "--data.chunk=1",
        f"--output={tmp_path / 'out'}",
    ]


def failure(arguments, capsys):
    """Run what must fail; return its one line of error."""
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    return capsys.readouterr().err


BAD = {
    "ratio out of range": (["--model.reducer.init_args.ratio=1.5"], "in [0, 1); got 1.5"),
    "ratio beyond the method": (["--model.reducer.init_args.ratio=0.8"], "at most 48"),
    "unknown scorer": (["--model.reducer.init_args.scorer=laplacian_12"], "Did you mean laplacian_l2 or laplacian_l1"),
    "missing weights": (["--model.backbone.init_args.weights=nowhere"], "No model at nowhere"),
    "missing images": (["--data.test=nowhere"], "No images at nowhere"),
    "missing checkpoint": (["--ckpt_path=nowhere.ckpt"], "No checkpoint at nowhere.ckpt"),
    "impossible stages": (["--model.stages.trials=[5,2]"], "trials rising"),
    "unknown reducer": (["--model.reducer=lgmt"], "no reducer named 'lgmt'. Did you mean lgtm"),
    "no images wanted": (["--data.limit=0"], "limit is the number of images"),
    "too many layers": (["--model.placement.layers=9"], "blocks 0 to 3"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_clear_line_and_leaves_nothing(case, small, capsys, tmp_path):
    options, told = BAD[case]
    message = failure([*small, *options], capsys)
    assert told in message
    assert "Traceback" not in message
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_class_path_is_refused(small, capsys):
    assert "bigain.reducers.lgtm.LGMT" in failure([*small, "--model.reducer=bigain.reducers.lgtm.LGMT"], capsys)


def test_a_mistyped_option_is_refused(small, capsys):
    message = failure([*small, "--model.reducer.init_args.rtio=0.5"], capsys)
    assert "rtio" in message


def test_an_option_on_the_command_line_wins(small, tmp_path):
    main([*small, "--model.reducer.init_args.ratio=0.3", "--data.limit=1"])
    assert "ratio=0.3" in (tmp_path / "out" / "result.json").read_text()


def test_a_reducer_goes_by_its_registered_name(small, tmp_path):
    main([*small, "--data.limit=1", "--model.reducer=tome", "--model.reducer.ratio=0.25"])
    assert "ToMe(ratio=0.25" in (tmp_path / "out" / "result.json").read_text()
    recipe = (tmp_path / "out" / "recipe.yaml").read_text()
    assert "class_path: bigain.reducers.tome.ToMe" in recipe


def test_an_existing_result_is_not_overwritten(small, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    assert "exists already" in failure(small, capsys)


@pytest.mark.parametrize("output", [".", "..", "/"])
@pytest.mark.parametrize("command", ["test", "compare"])
def test_a_folder_that_is_there_already_is_no_output(command, output, small, root, tmp_path, capsys, monkeypatch):
    """`--output .` was an error of pathlib's, after the work."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    weights = next(option for option in small if "weights" in option)
    compared = [
        "compare",
        "--config=recipes/benchmark/cifar10_demo.yaml",
        weights.replace("--model", "--comparison"),
        "--comparison.data.image_size=8",
        "--comparison.data.limit=2",
    ]
    message = failure([*(small if command == "test" else compared), f"--output={output}"], capsys)
    assert "--output is a new folder, which appears when the result is whole; got" in message
    assert list((tmp_path / "here").iterdir()) == []


def test_output_belongs_to_evaluations(root, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(root)
    message = failure(["fit", "--config=recipes/train/cifar10_dit.yaml", "--output=x"], capsys)
    assert "--output belongs to evaluation tasks" in message


def test_the_list_shows_names_and_packages(capsys):
    main(["list"])
    told = capsys.readouterr().out
    for name in ("laplacian_l1", "lgtm", "tome", "identity", "dit", "pixel_dit", "bigain"):
        assert name in told


def test_names_become_class_paths_for_every_command(root, tmp_path, capsys, monkeypatch):
    """Written with or without an equals sign; what comes after another option stays as it is."""
    lgtm, dit = "bigain.reducers.lgtm.LGTM", "bigain.backbones.pixel_dit.PixelDiT"
    given = ["--config", "x.yaml", "--model.reducer", "lgtm", "--model.reducer.ratio", "0.5", "--a.backbone=pixel_dit"]
    assert with_class_paths(given) == [*given[:2], f"--model.reducer={lgtm}", *given[4:6], f"--a.backbone={dit}"]
    for kept in (["list", "reducers"], ["--reducer", "--csv=x"], ["--reducer=null"], ["--reducer", "a.b.C"], ["--x=1"]):
        assert "=".join(with_class_paths(kept)) == "=".join(kept)
    monkeypatch.chdir(root)
    demo = ["compare", "--config=recipes/benchmark/cifar10_demo.yaml", f"--output={tmp_path / 'out'}"]
    message = failure([*demo, "--comparison.backbone=pixel_dti"], capsys)
    assert "no backbone named 'pixel_dti'. Did you mean pixel_dit" in message


def test_an_unknown_kind_is_refused(capsys):
    assert "scorers, reducers" in failure(["list", "reducer"], capsys)


@pytest.mark.slow
@pytest.mark.parametrize(("numbers", "status"), [([signal.SIGINT] * 2, 130), ([signal.SIGTERM], 143)])
def test_a_signal_leaves_what_resume_finishes(small, root, tmp_path, capsys, numbers, status):
    """Real signals to a real process that shows its progress; the figures are those of an undisturbed run.

    A second process that would resume what the first is at work on is refused, and leaves nothing.
    """
    command = [sys.executable, "-m", "bigain", *small, "--data.limit=20"]
    main([*small[:-1], f"--output={tmp_path / 'whole'}", "--data.limit=20"])
    process = subprocess.Popen(
        command,
        cwd=root,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        # A shell's background job ignores SIGINT, and its children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    chunks = tmp_path / "out.partial" / "chunks"
    deadline = time.monotonic() + 120
    while len(list(chunks.glob("[0-9]*"))) < 3 and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGSTOP)
    before = sorted((tmp_path / "out.partial").rglob("*"))
    assert "nother process" in failure([*small, "--data.limit=20", "--resume"], capsys)
    assert sorted((tmp_path / "out.partial").rglob("*")) == before
    os.kill(process.pid, signal.SIGCONT)
    start = time.monotonic()
    for number in numbers:
        os.kill(process.pid, number)
    try:
        shown, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    assert time.monotonic() - start < 20
    assert shown.endswith("\nbigain: interrupted; the same command with --resume goes on.\n")
    assert all(word not in shown for word in ("Traceback", "KeyboardInterrupt", "Received", "finished chunks"))
    assert process.returncode == status
    assert not (tmp_path / "out").exists()
    assert 3 <= len(list(chunks.glob("[0-9]*"))) < 20
    main([*small, "--data.limit=20", "--resume"])
    assert {path.name for path in tmp_path.iterdir()} == {"whole", "out"}
    whole, found = (Predictions.load(tmp_path / name) for name in ("whole", "out"))
    assert len(found) == 20
    assert torch.equal(found.predicted, whole.predicted)
    torch.testing.assert_close(found.errors.dense(20, 10), whole.errors.dense(20, 10), equal_nan=True)


@pytest.mark.parametrize(
    ("typed", "becomes"),
    [
        ("--model.placement=dit_xl_2", "--model.placement.preset=dit_xl_2"),
        ("--model.placement.parts=mlp", "--model.placement.parts=[mlp]"),
        ("--model.placement.parts=[self,mlp]", "--model.placement.parts=[self,mlp]"),
        ("--model.reducer.scorer=l2_norm", "--model.reducer.scorer=bigain.scorers.magnitude.L2Norm"),
        ("--model.reducer.otherwise=todo", "--model.reducer.otherwise=bigain.reducers.todo.ToDo"),
        ("--model.reducer.reducer=lgtm", "--model.reducer.reducer=bigain.reducers.lgtm.LGTM"),
    ],
)
def test_names_stand_for_what_they_name(typed, becomes):
    assert with_class_paths([typed]) == [becomes]


LGTM = "bigain.reducers.lgtm.LGTM"
TASK = "bigain.tasks.classification.ClassificationTask"
RECIPE_ERRORS = {
    "mistyped": ("ratio: 0.5", "rtio: 0.5", "Option 'rtio' is not accepted.", LGTM),
    "missing": ("ratio: 0.5", "mode: mean", "the following arguments are required: ratio.", LGTM),
    "another type": ("ratio: 0.5", "ratio: half", "ratio: Expected a float. Got value: half.", LGTM),
    "in a group": ("trials: [5, 20]", "trial: [5, 20]", "Group 'stages' does not accept option 'trial'.", TASK),
    "of several types": ("precision: bf16-true", "precision: bf17", "'bf16']; got bf17.", "bigain test --help"),
}


@pytest.mark.parametrize(("right", "wrong", "told", "help_of"), RECIPE_ERRORS.values(), ids=RECIPE_ERRORS)
def test_what_is_wrong_deep_in_a_recipe_is_one_line(right, wrong, told, help_of, root, tmp_path, capsys):
    text = (root / CLASSIFY).read_text()
    assert right in text
    (tmp_path / "recipe.yaml").write_text(text.replace(right, wrong))
    message = failure(["test", f"--config={tmp_path / 'recipe.yaml'}"], capsys)
    assert told in message
    assert message.count("\n") == 1
    assert len(message) < 400
    assert help_of in message.rpartition(" See ")[2]


def test_an_error_of_an_own_command_is_one_line_too(capsys, root, tmp_path):
    text = (root / "recipes/benchmark/cifar10_demo.yaml").read_text().replace("init_args: {ratio: 0.5}}", "}", 1)
    (tmp_path / "recipe.yaml").write_text(text)
    message = failure(["compare", f"--config={tmp_path / 'recipe.yaml'}"], capsys)
    assert "comparison.reducers: bigain.reducers.tome.ToMe: the following arguments are required: ratio." in message
    assert message.count("\n") == 1


@pytest.mark.parametrize(
    ("typed", "told"),
    [("lsit", "Did you mean list"), ("comapre", "Did you mean compare"), ("zzz", "There are fit, test, compare")],
)
def test_an_unknown_command_suggests_the_nearest(typed, told, capsys):
    message = failure([typed], capsys)
    assert f"There is no command {typed!r}." in message
    assert told in message


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_the_help_names_every_command(arguments, capsys):
    main(arguments)
    lines = capsys.readouterr().out.splitlines()
    for name in COMMANDS:
        assert any(line.split()[:1] == [name] for line in lines)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_a_file_with_a_parser_and_something_to_do(name):
    command = load(name)
    assert command.make_parser().prog.replace(" [options]", "") == f"bigain {name}"
    assert callable(command.run)


def test_a_printed_configuration_is_a_recipe(small, tmp_path, capsys):
    """What `--print_config` shows, run again, prints the same."""
    shown = []
    given = [small[0], *small[1:-1]]
    for _ in range(2):
        with pytest.raises(SystemExit) as stop:
            main([*given, "--print_config"])
        assert stop.value.code == 0
        shown.append(capsys.readouterr().out)
        (tmp_path / "recipe.yaml").write_text(shown[-1])
        given = ["test", f"--config={tmp_path / 'recipe.yaml'}"]
    assert shown[0] == shown[1]
    assert "share_plans: false" in shown[0]


@pytest.mark.parametrize("command", ["schema flops", "list", "recipes"])
def test_who_reads_no_further_is_no_error(root, command):
    """`bigain list | true`: no traceback, and the status that shells give."""
    command = f"set -o pipefail; {sys.executable} -m bigain {command} | true"
    done = subprocess.run(["bash", "-c", command], cwd=root, capture_output=True, text=True)
    assert done.stderr == ""
    assert done.returncode == 141


def test_a_pipe_that_broke_elsewhere_is_an_error(monkeypatch, capsys):
    def broken(given):
        raise BrokenPipeError("of a worker")

    monkeypatch.setattr(cli, "_run", broken)
    with pytest.raises(BrokenPipeError, match="of a worker"):
        main(["list"])


def test_the_version_is_told(capsys):
    main(["--version"])
    assert capsys.readouterr().out == f"bigain {version('bigain')}\n"


def test_the_list_fits_eighty_columns_and_cuts_nothing(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    main(["list"])
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 80
    assert "…" not in shown
    for name in ("FeatureTraining", "DiffusionTraining", "ClassificationTask", "GenerationTask"):
        assert name in shown


def test_casting_a_network_of_which_nothing_stays_in_float32_is_silent():
    """diffusers warns of it all the same; a network of which something should stay is another matter."""
    from diffusers import DiTTransformer2DModel

    main(["--version"])
    records, logger = [], logging.getLogger("diffusers.models.modeling_utils")
    listener = logging.Handler()
    listener.emit = records.append
    logger.addHandler(listener)
    try:
        network = DiTTransformer2DModel(num_attention_heads=1, attention_head_dim=8, num_layers=1, sample_size=4)
        network._keep_in_fp32_modules = []
        network.to(torch.float16)
        assert not records
        network._keep_in_fp32_modules = ["norm1"]
        network.to(torch.float16)
        assert len(records) == 1
    finally:
        logger.removeHandler(listener)


def test_what_lightning_says_of_other_hardware_is_dropped():
    main(["--version"])
    logger = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    made = [
        logger.makeRecord(logger.name, logging.INFO, "", 0, text, (), None) for text in ("TPU available: False", "a")
    ]
    assert [bool(logger.filter(record)) for record in made] == [False, True]
