"""What `bigain describe` tells, against the classes themselves."""

import inspect
import re

import pytest

import bigain
from bigain import registry
from bigain.cli.describe import describe
from bigain.cli.list_ import KINDS, rows_of
from bigain.cli.main import main
from bigain.errors import SettingError

BUILT_IN = [(row.kind, row.name) for row in rows_of() if row.package.startswith("bigain ")]


def shown(capsys, *arguments):
    main(["describe", *arguments])
    return capsys.readouterr().out


@pytest.mark.parametrize(("kind", "name"), BUILT_IN)
def test_everything_has_one_sentence_and_a_meaning_for_each_setting(kind, name):
    told = describe(f"{kind}/{name}")
    assert re.fullmatch(r"[A-Z`].*[.]|(timm|transformers).*[.]", told.words.summary), told.words.summary
    assert len(told.words.summary) < 120
    for item in told.parameters:
        assert item.meaning, f"{kind}/{name} does not say what {item.name} is"
    module, _, attribute = told.target.rpartition(".")
    assert attribute in vars(__import__(module, fromlist=[attribute]))


def test_settings_are_those_of_the_class_with_types_and_defaults(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    told = describe("lgtm")
    signature = inspect.signature(registry.get("reducers", "lgtm"))
    assert [item.name for item in told.parameters] == list(signature.parameters)
    assert [item.default_text for item in told.parameters] == ["required", "'laplacian_l1'", "(2, 2)", "'mean'", "None"]
    text = " ".join(shown(capsys, "lgtm").split())
    for part in (
        "reducers/lgtm bigain",
        "Share of the tokens removed.",
        "'mean' | 'prune' | 'mlerp'",
        "queries, keys and values (merge)",
        "self by default; any of self, cross, mlp",
        "BiGain, section 3.2.1.",
        "bigain.attach(model, 'lgtm', ratio=...)",
    ):
        assert part in text


def test_an_inherited_constructor_has_the_meanings_of_the_base():
    assert describe("lgtm_released").parameters[0].meaning == "Share of the tokens removed."


def test_reducers_of_keys_and_values_and_composites_say_what_they_shrink():
    facts = {name: dict(describe(name).facts) for name in ("todo", "cached", "scheduled", "lgtm")}
    assert facts["todo"]["parts"] == "self"
    assert "kv" in facts["todo"]["shrinks"]
    assert "progressive" in facts["lgtm"]
    assert "progressive" not in facts["todo"]
    assert "made of" in facts["scheduled"]["shrinks"]
    assert all(name in facts["lgtm"]["models"] for name in bigain.available("adapters"))


def test_a_scorer_names_the_reducers_that_take_one():
    """Found by trying: those that can be built with it."""
    facts = dict(describe("dft_amplitude").facts)
    taking = facts["taken by"].partition(":")[0].split(", ")
    for name in ("lgtm", "abm", "select", "tome", "todo", "cached"):
        settings = {"lgtm": {"ratio": 0.5}, "abm": {"ratio": 0.5}, "select": {"keep": 0.5}, "tome": {"ratio": 0.5}}
        try:
            bigain.build_reducer(name, scorer="dft_amplitude", **settings.get(name, {"factor": 2}))
        except SettingError:
            assert name not in taking
        else:
            assert name in taking


def test_an_adapter_names_its_classes_library_and_source_of_plans(capsys):
    text = " ".join(shown(capsys, "adapters/flux").split())
    kind = registry.get("adapters", "flux")
    for part in (*kind.classes, kind.tested, "diffusers", "plan_from='part'", "By default all single blocks", "ToMA"):
        assert part in text
    assert "before the norm" in shown(capsys, "adapters/unet")


def test_tasks_and_class_paths_are_described_too(capsys):
    assert {row.name for row in rows_of(["tasks"])} >= {"ClassificationTask", "GenerationTask", "DiffusionTraining"}
    by_name, by_path = describe("ClassificationTask"), describe("bigain.tasks.classification.ClassificationTask")
    assert by_name.parameters == by_path.parameters
    assert "share_plans" in shown(capsys, "ClassificationTask")
    assert "chunk" in shown(capsys, "bigain.data.module.ImageData")
    assert dict(describe("bigain.reducers.tome:ToMe").facts) == dict(describe("bigain.reducers.tome.ToMe").facts)


@pytest.mark.parametrize("name", ["flux", "dit", "pixart", "sd3"])
def test_a_family_is_shown_as_adapter_and_as_backbone(capsys, name):
    text = shown(capsys, name)
    for kind in ("adapters", "backbones"):
        found = registry.get(kind, name)
        assert f"{kind}/{name}" in text
        assert f"{found.__module__}.{found.__qualname__}" in text


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("lgmt", "Nothing is named 'lgmt'. Did you mean lgtm"),
        ("reducers/laplacian_l1", "Nothing is named 'reducers/laplacian_l1' among reducers. There are abm"),
        ("reducer/lgtm", "before the slash stands one of scorers, reducers"),
        ("no_such.Thing", "cannot be imported: ModuleNotFoundError"),
        ("bigain.registry.KINDS", "is no class"),
        ("", "Nothing is named ''"),
    ],
)
def test_what_is_not_there_is_refused_in_words(name, message, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["describe", name])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


def test_a_name_of_several_kinds_shows_all_of_them(monkeypatch, capsys):
    from importlib.metadata import EntryPoint

    twin = EntryPoint("lgtm", "bigain.scorers.laplacian:LaplacianL1", "bigain.scorers")
    before = registry.entry_points
    monkeypatch.setattr(
        registry, "entry_points", lambda group: [*before(group=group), *([twin] if group == twin.group else [])]
    )
    registry.refresh()
    try:
        with pytest.raises(SettingError, match="say scorers/lgtm or reducers/lgtm"):
            describe("lgtm")
        main(["describe", "lgtm"])
        said = capsys.readouterr().out
        assert said.index("scorers/lgtm") < said.index("reducers/lgtm")
        assert describe("scorers/lgtm").target == "bigain.scorers.laplacian.LaplacianL1"
    finally:
        monkeypatch.undo()
        registry.refresh()


def test_nothing_is_wider_than_the_terminal(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    for kind in ("reducers/abm", "adapters/transformers_vit", "scorers/laplacian_l1", "ClassificationTask"):
        lines = shown(capsys, kind).splitlines()
        assert max(map(len, lines)) <= 80
        assert "…" not in "".join(lines)


def test_every_kind_is_listed():
    assert {row.kind for row in rows_of()} == set(KINDS)
    assert rows_of(["tasks"]) == [row for row in rows_of() if row.kind == "tasks"]
