"""`bigain classify` of a folder in which an image is broken."""

import json

import pytest
from PIL import Image

from bigain.cli.main import main

QUICK = ["--timesteps=4", "--device=cpu"]


@pytest.fixture
def folder(tmp_path):
    for name, shade in (("3", 40), ("5", 90), ("6", 140)):
        (tmp_path / "images" / name).mkdir(parents=True)
        Image.new("RGB", (32, 32), (shade, 0, 0)).save(tmp_path / "images" / name / "x.png")
    (tmp_path / "images" / "5" / "x.png").write_text("no image")
    return tmp_path / "images"


def test_a_broken_image_is_refused_before_any_work_or_left_out_and_counted(folder, tiny_weights, tmp_path, capsys):
    output, quick = tmp_path / "out", [f"--model={tiny_weights}", *QUICK]
    with pytest.raises(SystemExit) as stop:
        main(["classify", str(folder), *quick, f"--output={output}"])
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert "1 of 3 images cannot be read: 5/x.png (" in said
    assert "leave them out: skip_corrupt" in said
    assert not output.exists()
    main(["classify", str(folder), *quick, "--skip_corrupt=true", f"--output={output}"])
    said = capsys.readouterr().out
    assert "1 of 3 images cannot be read: 5/x.png" in said
    assert "They are left out." in said
    result = json.loads((output / "result.json").read_text())
    assert (result["skipped"], result["images"]) == (1, 2)
    assert (output / "manifest.txt").read_text() == "3/x.png\n6/x.png\n"
    rows = (output / "predictions.csv").read_text().splitlines()
    assert [row.split(",")[:2] for row in rows[1:]] == [["3/x.png", "3"], ["6/x.png", "6"]]
