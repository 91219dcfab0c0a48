"""The shipped configurations, and others that are built without weights."""

import hashlib
import json
import re

import pytest

from bigain.assets import asset
from bigain.benchmark.architectures import architectures, build_architecture
from bigain.errors import DataError, SettingError, SiteError

# The U-Nets' are the published counts.
PARAMETERS = {
    "sd15": 859_520_964,
    "sd2": 865_910_724,
    "sdxl": 2_567_463_684,
    "dit_xl_2_256": 749_826_464,
    "dit_xl_2_512": 749_826_464,
    "flux1": 11_901_408_320,
    "sd3": 2_028_328_000,
    "wan_1_3b": 1_418_996_800,
    "vit_l_16_384": 304_715_752,
}


def test_the_shipped_ones_are_those_that_are_tested():
    assert architectures() == sorted(PARAMETERS)


@pytest.mark.parametrize("name", PARAMETERS)
def test_a_shipped_one_has_the_published_parameters_and_no_values(name):
    network = build_architecture(name)
    assert sum(weight.numel() for weight in network.parameters()) == PARAMETERS[name]
    assert all(tensor.is_meta for tensor in [*network.parameters(), *network.buffers()])
    assert not network.training


def test_dit_has_its_published_parameters_where_time_and_class_are_embedded_once():
    """Its authors embed them once and count the fixed positions; diffusers does so in each block and does not."""
    network = build_architecture("dit_xl_2_256")
    embedding = sum(weight.numel() for weight in network.transformer_blocks[0].norm1.emb.parameters())
    positions = network.pos_embed.pos_embed.numel()
    assert PARAMETERS["dit_xl_2_256"] - 27 * embedding + positions == 675_129_632


def test_the_card_holds_every_file_with_checksum_and_parameters():
    card = (asset("architectures") / "CARD.md").read_text()
    named = {file: digest for digest, file in re.findall(r"`([0-9a-f]{64})` \(([\w.]+)\)", card)}
    files = sorted(asset("architectures").glob("*.json"))
    assert sorted(named) == [file.name for file in files]
    for file in files:
        assert hashlib.sha256(file.read_bytes()).hexdigest() == named[file.name]
        assert re.search(rf"\| `{file.stem}` \|.*\| {PARAMETERS[file.stem]:,} \|", card)


@pytest.mark.parametrize("inside", ["", "unet"])
def test_a_folder_needs_its_configuration_alone(tmp_path, tiny_unet_config, inside):
    place = tmp_path / inside
    place.mkdir(exist_ok=True)
    (place / "config.json").write_text(json.dumps(tiny_unet_config))
    for source in (tmp_path, str(tmp_path), place / "config.json"):
        network = build_architecture(source)
        assert network.config.block_out_channels == [16, 32]
        assert next(network.parameters()).is_meta


def test_the_configuration_of_an_older_diffusers_is_understood(tmp_path):
    """DiT was published as a Transformer2DModel."""
    config = json.loads((asset("architectures") / "dit_xl_2_256.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "_class_name": "Transformer2DModel", "num_layers": 1}))
    assert type(build_architecture(tmp_path)).__name__ == "DiTTransformer2DModel"


BAD = {
    "text": ("{", DataError, "is no JSON"),
    "a list": ("[]", DataError, "no _class_name"),
    "no class": ('{"sample_size": 8}', DataError, "no _class_name"),
    "an unknown class": ('{"_class_name": "UNet9D"}', DataError, "UNet9D"),
    "a class that is no network": ('{"_class_name": "DDIMScheduler"}', DataError, "DDIMScheduler"),
    "impossible fields": (
        '{"_class_name": "UNet2DConditionModel", "norm_num_groups": 7}',
        DataError,
        "cannot be built",
    ),
    "a class without adapter": ('{"_class_name": "AutoencoderKL"}', SiteError, "Nothing to attach to in AutoencoderKL"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_file_that_is_none_is_refused_in_one_sentence(case, tmp_path):
    content, kind, message = BAD[case]
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(kind, match=message) as refused:
        build_architecture(tmp_path)
    assert "\n" not in str(refused.value)


def test_an_unknown_name_is_refused_with_the_nearest_and_all(tmp_path):
    with pytest.raises(SettingError, match="Did you mean dit_xl_2_512 or dit_xl_2_256") as refused:
        build_architecture("dit_xl_2_51")
    for name in (*PARAMETERS, "config.json"):
        assert name in str(refused.value)
    with pytest.raises(SettingError, match="There is no architecture"):
        build_architecture(tmp_path)  # an empty folder
