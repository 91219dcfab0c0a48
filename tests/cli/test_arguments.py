"""Names on the command line."""

import json

import pytest

from bigain.cli.arguments import with_class_paths

TOME = {"class_path": "bigain.reducers.tome.ToMe", "init_args": {"ratio": 0.5}}


@pytest.mark.parametrize(
    "given",
    [
        "{half: {name: tome, ratio: 0.5}}",
        "{half: {class_path: tome, init_args: {ratio: 0.5}}}",
        '{"half": {"class_path": "bigain.reducers.tome.ToMe", "init_args": {"ratio": 0.5}}}',
    ],
)
@pytest.mark.parametrize("option", ["--reducers", "--comparison.reducers"])
def test_several_reducers_go_by_their_names(option, given):
    (found,) = with_class_paths([f"{option}={given}"])
    assert found.startswith(f"{option}=")
    assert json.loads(found.partition("=")[2]) == {"half": TOME}


def test_a_reducer_without_settings_is_its_name():
    (found,) = with_class_paths(["--reducers={none: identity}"])
    assert json.loads(found.partition("=")[2])["none"]["class_path"] == "bigain.reducers.base.Identity"


def test_a_mistyped_name_or_placement_names_what_there_is(refused):
    refused(["generate", "cat", "--reducers={half: {name: tomm, ratio: 0.5}}"], "no reducer named 'tomm'.*Did you mean")
    refused(["generate", "cat", "--placement=sdd"], "no placement 'sdd'; there are sd, sd_encoder")


def test_yaml_that_cannot_be_read_is_the_parsers_error(refused):
    refused(["generate", "cat", "--reducers={half: {name: tome"], "reducers")
