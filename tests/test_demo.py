"""The demo's split: people stay on their side of it, whatever is run in its folder."""

import json

import pytest

from compat.demo import DemoOptions, lay_out_faces, main


def photographs(folder, part):
    return {f"{path.parent.name}/{path.name}" for path in (folder / "images" / part).glob("*/*")}


def test_people_and_photographs_are_disjoint_and_written_down(tmp_path):
    people = lay_out_faces(DemoOptions(out=tmp_path))
    assert (len(people["train"]), len(people["gallery"])) == (24, 16)
    assert people["gallery"] == people["queries"]
    assert not set(people["train"]) & set(people["gallery"])
    parts = {part: photographs(tmp_path, part) for part in ("train", "gallery", "queries")}
    assert [len(files) for files in parts.values()] == [240, 80, 80]
    assert not parts["gallery"] & parts["queries"]
    assert json.loads((tmp_path / "split.json").read_text()) == {part: sorted(files) for part, files in parts.items()}


def test_another_split_in_the_same_folder_is_refused_before_a_file_is_copied(tmp_path, capsys):
    lay_out_faces(DemoOptions(out=tmp_path))
    before = photographs(tmp_path, "train")
    assert main(["--out", str(tmp_path), "--seed", "1"]) == 2
    assert "holds a demo of another split" in capsys.readouterr().err
    assert photographs(tmp_path, "train") == before


@pytest.mark.parametrize("wrong", [["--people", "39"], ["--gallery_images", "10"], ["--seed", "-1"]])
def test_impossible_sizes_are_refused_in_one_line(tmp_path, capsys, wrong):
    assert main(["--out", str(tmp_path / "demo"), *wrong]) == 2
    assert "Traceback" not in capsys.readouterr().err
    assert not (tmp_path / "demo").exists()
