"""`ctm-think --input FILES --output FILE`: every kind of file in, every kind out, and what happens to bad rows."""

import csv
import io
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from fake_thinker import FakeThinker, served
from PIL import Image
from pyarrow import parquet

from serving import errors
from serving.think import main

DIGITS = np.random.default_rng(1).integers(0, 255, (3, 28, 28)).astype(np.uint8)
DIGITS[:, 0], DIGITS[:, -1], DIGITS[:, :, 0], DIGITS[:, :, -1] = 0, 0, 0, 0  # dark borders: nothing is inverted
VALUES = DIGITS.astype(np.float32) / 255
NAMES = ["nought", "one", "two"]


@pytest.fixture
def thinker() -> Iterator[FakeThinker]:
    with served(FakeThinker()) as running:
        yield running


def think(thinker: FakeThinker, *arguments: object) -> int:
    return main(["--address", thinker.address, "--model", "digits", *map(str, arguments)])


def png(pixels: Any) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def pictures(folder: Path) -> Path:
    for index, pixels in enumerate(DIGITS):
        (folder / f"{index}.png").write_bytes(png(pixels))
    (folder / ".hidden").write_text("no picture")
    return folder


def array(folder: Path) -> Path:
    np.save(folder / "a.npy", VALUES[:, None])
    return folder / "a.npy"


def archive(folder: Path) -> Path:
    np.savez(folder / "a.npz", image=VALUES, name=np.array(NAMES))
    return folder / "a.npz"


def json_lines(folder: Path) -> Path:
    lines = [{"image": one.tolist(), "name": name} for one, name in zip(VALUES, NAMES, strict=True)]
    (folder / "a.jsonl").write_text("\n\n".join(json.dumps(line) for line in lines))
    return folder / "a.jsonl"


def paths_in_json_lines(folder: Path) -> Path:
    pictures(folder)
    lines = [{"image": f"{index}.png", "name": name} for index, name in enumerate(NAMES)]
    (folder / "a.ndjson").write_text("\n".join(json.dumps(line) for line in lines))
    return folder / "a.ndjson"


def flat_parquet(folder: Path) -> Path:
    flat = pa.FixedSizeListArray.from_arrays(pa.array(VALUES.reshape(-1)), 784)
    parquet.write_table(pa.table({"image": flat, "name": NAMES}), folder / "a.parquet")
    return folder / "a.parquet"


def pictures_in_parquet(folder: Path) -> Path:
    encoded = [{"bytes": png(pixels), "path": "gone.png"} for pixels in DIGITS]
    parquet.write_table(pa.table({"image": encoded, "name": NAMES}), folder / "b.parquet")
    return folder / "b.parquet"


@pytest.mark.parametrize(
    ("made", "has_names"),
    [
        pytest.param(pictures, False, id="a folder of pictures"),
        pytest.param(array, False, id="npy"),
        pytest.param(archive, True, id="npz"),
        pytest.param(json_lines, True, id="JSON lines"),
        pytest.param(paths_in_json_lines, True, id="JSON lines with paths"),
        pytest.param(flat_parquet, True, id="Parquet of numbers"),
        pytest.param(pictures_in_parquet, True, id="Parquet of encoded pictures"),
    ],
)
def test_every_kind_of_data_set_says_the_same(thinker: FakeThinker, tmp_path: Path, made: Any, has_names: bool):
    folder, output = tmp_path / "data", tmp_path / "scores.jsonl"
    folder.mkdir()
    keep = ["--keep", "name"] if has_names else []
    assert think(thinker, "--input", made(folder), "--output", output, *keep) == 0
    lines = [json.loads(line) for line in output.read_text().splitlines()]
    assert [line["prediction"] for line in lines] == ["1", "2", "3"]
    assert [line["ticks_used"] for line in lines] == [3, 5, 7]
    assert [line["stop_reason"] for line in lines] == ["CERTAIN"] * 3
    assert [line.get("name") for line in lines] == (NAMES if has_names else [None] * 3)
    assert {line["error"] for line in lines} == {None}
    (asked,) = thinker.asked
    sent = np.frombuffer(asked.inputs[0].data, np.float32).reshape(3, 28, 28)
    np.testing.assert_allclose(sent, VALUES, atol=1e-7)
    assert [path.name for path in tmp_path.iterdir() if path != folder] == ["scores.jsonl"], "nothing is left aside"


def test_every_kind_of_output_says_the_same(thinker: FakeThinker, tmp_path: Path):
    source = archive(tmp_path)
    for ending in ("jsonl", "csv", "parquet"):
        assert think(thinker, "--input", source, "--output", tmp_path / f"o.{ending}", "--keep", "name") == 0
    lines = [json.loads(line) for line in (tmp_path / "o.jsonl").read_text().splitlines()]
    with (tmp_path / "o.csv").open(newline="") as file:
        fields = list(csv.DictReader(file))
    table = parquet.read_table(tmp_path / "o.parquet").to_pylist()
    assert list(lines[0]) == list(fields[0]) == list(table[0])
    assert [{name: "" if value is None else str(value) for name, value in line.items()} for line in lines] == fields
    assert [line | {"score": None, "certainty": None} for line in table] == [
        line | {"score": None, "certainty": None} for line in lines
    ]
    assert [line["certainty"] for line in table] == pytest.approx([line["certainty"] for line in lines])


def test_a_bad_row_is_named_and_stops_no_other(thinker: FakeThinker, tmp_path: Path, capsys: Any):
    values = VALUES.copy()
    values[1, 3, 4] = np.nan
    np.save(tmp_path / "a.npy", values)
    (tmp_path / "no.png").write_text("no picture")
    strange = tmp_path / os.fsdecode(b"caf\xe9.png")
    strange.write_text("no picture either")
    (tmp_path / "b.jsonl").write_text('{"image": [[1]]}\nnonsense\n{"pixels": 1, "other": 2}\n{"image": null}\n')
    bright = tmp_path / "bright.npy"
    np.save(bright, VALUES[0] * 255)
    sources = [tmp_path / "a.npy", tmp_path / "no.png", tmp_path / "b.jsonl", bright]
    for ending in ("csv", "parquet", "jsonl"):
        output = tmp_path / f"scores.{ending}"
        assert think(thinker, "--input", *sources, strange, "--output", output) == 1
    lines = [json.loads(line) for line in output.read_text().splitlines()]
    assert [(line["source"], line["row"]) for line in lines] == [
        *((str(sources[0]), index) for index in range(3)),
        (str(sources[1]), 0),
        *((str(sources[2]), index) for index in range(4)),
        *((str(bright), index) for index in range(28)),
        (f"{tmp_path}/caf\\udce9.png", 0),
    ]
    assert [line["prediction"] for line in lines[:4]] == ["1", None, "2", None]
    printed = capsys.readouterr()
    for said in (
        "row 1, at [0, 3, 4]: got nan, expected finite numbers",
        "no.png: not a picture that can be read",
        "b.jsonl: row 0, shape: got [1, 1], expected",
        "row 1: not JSON",
        "got no 'image'; there is pixels, other: --column says which it is",
        "row 3: got nothing, expected a value",
    ):
        assert said in printed.err
    assert "37 rows: 2 answered" in printed.out
    assert "35 failed" in printed.out
    assert "35 rows failed; column error of" in printed.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        pytest.param(["--input", "gone", "--output", "o.csv"], "gone: No such file", id="no such file"),
        pytest.param(["--input", "a.npy", "--output", "no/o.csv"], "there is no folder no", id="no such folder"),
        pytest.param(["--input", "a.npy", "--output", "o.csv", "--logits"], "logits do not fit a .csv", id="logits"),
        pytest.param(["--input", "a.npy", "--output", "o.csv", "--keep", "row"], "kept columns: got 'row'", id="keep"),
        pytest.param(["--input", "s.jsonl", "--output", "s.jsonl"], "is read as an input", id="written over"),
        pytest.param(
            ["--store", "empty", "--input", "a.npy", "--output", "o.csv"], "model 'digits': not in store", id="store"
        ),
    ],
)
def test_what_cannot_be_done_is_told_before_anything_is_written(
    thinker: FakeThinker, tmp_path: Path, capsys: Any, monkeypatch: Any, arguments: list[str], said: str
):
    monkeypatch.chdir(tmp_path)
    array(tmp_path)
    (tmp_path / "s.jsonl").write_text("{}")
    (tmp_path / "empty").mkdir()
    before = {path.name for path in tmp_path.iterdir()}
    assert think(thinker, *arguments) == 1
    assert said in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == before
    assert (tmp_path / "s.jsonl").read_text() == "{}"


def test_a_run_that_breaks_off_leaves_what_was_there(thinker: FakeThinker, tmp_path: Path, capsys: Any):
    output = tmp_path / "scores.jsonl"
    output.write_text("of yesterday")
    thinker.failures = [errors.Unavailable("the server is shutting down")]
    assert think(thinker, "--input", array(tmp_path), "--output", output) == 1
    assert "the server is shutting down" in capsys.readouterr().err
    assert output.read_text() == "of yesterday"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.npy", "scores.jsonl"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        pytest.param(["--input", "a.npy"], "--input: needs --output FILE", id="no output"),
        pytest.param(["--input", "a.npy", "--output", "a.png"], "ending in one of .jsonl", id="a picture as output"),
        pytest.param(["--input", "a.npy", "--output", "a.xls"], "ends in none of .png, .gif, .jsonl", id="no format"),
        pytest.param(["--output", "a.csv", "a.png"], "a table goes with --input", id="a table of one picture"),
        pytest.param(["--store", "s", "a.png"], "argument --store: goes with --input", id="a store to watch"),
        pytest.param(["a.png", "--input", "b", "--output", "o.csv"], "beside --input", id="both"),
        pytest.param(["--input", "b", "--output", "o.csv", "--seed", "1"], "--seed: means nothing", id="a seed"),
        pytest.param(["--input", "b", "--output", "o.csv", "--json"], "--json: means nothing", id="to be watched"),
        pytest.param(["--input", "b", "--output", "o.csv", "--in-flight", "0"], "whole number from 1", id="none"),
    ],
)
def test_bad_usage_is_status_2(arguments: list[str], said: str, capsys: Any):
    with pytest.raises(SystemExit) as raised:
        main(arguments)
    assert raised.value.code == 2
    assert said in capsys.readouterr().err


def test_a_store_scores_without_a_server(model_store: Path, tmp_path: Path, capsys: Any):
    digits = model_store.parent / "examples/digits"
    output = tmp_path / "scores.parquet"
    arguments = ["--store", model_store, "--input", digits, "--output", output, "--logits", "--in-flight", "5"]
    assert main(list(map(str, arguments))) == 0
    lines = parquet.read_table(output).to_pylist()
    easy = [line for line in lines if "easy" in line["source"]]
    assert [line["prediction"] for line in easy] == [str(digit) for digit in range(10)]
    assert [int(np.argmax(line["logits"])) for line in easy] == list(range(10))
    assert "20 rows: 20 answered" in capsys.readouterr().out


def test_mazes_have_a_label_at_each_position(model_store: Path, tmp_path: Path):
    mazes = sorted((model_store.parent / "examples/mazes").glob("*.png"))[:2]
    digit = model_store.parent / "examples/digits/1-easy.png"
    output = tmp_path / "scores.csv"
    arguments = ["--model", "maze", "--store", model_store, "--input", *mazes, digit, "--output", output]
    assert main(list(map(str, arguments))) == 1
    with output.open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert [len(line["prediction"].split()) for line in lines] == [32, 32, 0]
    assert "expected" in lines[2]["error"]
