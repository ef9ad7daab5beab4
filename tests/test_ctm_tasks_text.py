"""Windows of a corpus as rows of a task."""

from pathlib import Path

import numpy as np
import pytest
import torch
from small_corpus import small_corpus
from torch import Tensor

from ctm.language.corpus import Tokens, open_corpus
from ctm.language.errors import CorpusError
from ctm.tasks import Task, TaskConfig, load_task
from ctm.tasks.config import AugmentConfig, TextConfig
from ctm.tasks.text import WindowRows


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_corpus(tmp_path_factory.mktemp("corpora") / "text", shard_tokens=100)


def load(folder: Path, length: int = 24, stride: int = 10, held_out_rows: int | None = None) -> Task:
    text = TextConfig(length=length, stride=stride, held_out_rows=held_out_rows)
    return load_task(TaskConfig(name="text", text=text), folder)


def sequence(folder: Path, split: str) -> Tensor:
    tokens: Tokens = getattr(open_corpus(folder), split)
    return torch.from_numpy(tokens.take(np.arange(len(tokens))))


def test_a_task_of_text_takes_tokens_and_predicts_one(folder: Path) -> None:
    task = load(folder)
    assert (task.input_name, task.input_shape, task.prediction_shape, task.labels) == ("tokens", (24,), (300,), ())
    assert task.loss == "language"
    inputs, targets = task.train.take(torch.tensor([3, 0, 3]))
    assert inputs.dtype == targets.dtype == torch.int64
    assert inputs.shape == targets.shape == (3, 24)
    assert torch.equal(inputs[0], inputs[2])


def test_a_target_is_the_token_after_its_input(folder: Path) -> None:
    whole = sequence(folder, "train")
    rows = load(folder).train
    inputs, targets = rows.take(torch.arange(len(rows)))
    for number, (window, following) in enumerate(zip(inputs, targets, strict=True)):
        assert torch.equal(window, whole[number * 10 : number * 10 + 24])
        assert torch.equal(following, whole[number * 10 + 1 : number * 10 + 25])
    assert len(whole) - (len(rows) * 10 + 25) < 0, "one window more would go beyond the end"


@pytest.mark.parametrize("split", ["held_out", "test"])
def test_held_out_and_test_tokens_are_predicted_once(folder: Path, split: str) -> None:
    whole, rows = sequence(folder, split), getattr(load(folder), split)
    predicted = rows.take(torch.arange(len(rows))).targets.flatten()
    assert torch.equal(predicted, whole[1 : len(predicted) + 1])
    # What is left is less than a window.
    assert 0 <= len(whole) - 1 - len(predicted) < 24


@pytest.mark.parametrize(
    ("tokens", "length", "stride", "windows"),
    [
        pytest.param(5, 4, 1, 1, id="exactly one window"),
        pytest.param(6, 4, 4, 1, id="a token left over"),
        pytest.param(9, 4, 4, 2, id="exactly two"),
        pytest.param(9, 4, 3, 2, id="overlapping"),
        pytest.param(9, 4, 2, 3, id="overlapping more"),
        pytest.param(9, 4, 1, 5, id="one at every token"),
        pytest.param(2, 1, 1, 1, id="the shortest"),
    ],
)
def test_how_many_windows_there_are(tokens: int, length: int, stride: int, windows: int) -> None:
    rows = WindowRows(Tokens([np.arange(tokens, dtype=np.uint16)]), length, stride, vocabulary=tokens)
    assert len(rows) == windows
    assert rows.take(torch.arange(windows)).inputs[:, 0].tolist() == [stride * number for number in range(windows)]


def test_a_limit_spreads_windows_evenly() -> None:
    tokens = Tokens([np.arange(1001, dtype=np.uint16)])
    few = WindowRows(tokens, 10, 10, vocabulary=1001, limit=4)
    assert len(few) == 4
    assert few.take(torch.arange(4)).inputs[:, 0].tolist() == [0, 250, 500, 750]
    assert len(WindowRows(tokens, 10, 10, vocabulary=1001, limit=1000)) == 100


def test_only_held_out_rows_are_limited(folder: Path) -> None:
    every, few = load(folder), load(folder, held_out_rows=3)
    assert len(few.held_out) == 3 < len(every.held_out)
    assert (len(few.train), len(few.test)) == (len(every.train), len(every.test))


def test_no_data_folder_is_said_so() -> None:
    with pytest.raises(CorpusError, match="task text needs --data-dir, a corpus that ctm-ingest made"):
        load_task(TaskConfig(name="text"))


def test_a_split_shorter_than_a_window_is_named(folder: Path) -> None:
    with pytest.raises(CorpusError, match=r"task.text.length = 100000 needs 100001 tokens, train has \d+") as caught:
        load(folder, length=100_000)
    assert str(caught.value).startswith(str(folder))


def test_a_token_beyond_the_vocabulary_is_told() -> None:
    rows = WindowRows(Tokens([np.array([1, 2, 300, 4], dtype=np.uint16)]), 3, 3, vocabulary=300)
    with pytest.raises(CorpusError, match="holds token 300, its vocabulary is 300"):
        rows.take(torch.tensor([0]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        pytest.param({"length": 0}, r"task.text.length must lie in \[1, inf\), got 0", id="no tokens"),
        pytest.param({"stride": 0}, r"task.text.stride must lie in \[1, 128\], got 0", id="never moving"),
        pytest.param({"length": 8, "stride": 9}, r"task.text.stride must lie in \[1, 8\], got 9", id="leaving out"),
        pytest.param({"held_out_rows": 0}, r"task.text.held_out_rows must lie in \[1, inf\), got 0", id="no rows"),
    ],
)
def test_impossible_windows_are_refused(options: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TextConfig(**options)


def test_text_has_no_variants() -> None:
    with pytest.raises(ValueError, match=r"task.augment .* the task text allows none"):
        TaskConfig(name="text", augment=AugmentConfig(shift=1.0))
