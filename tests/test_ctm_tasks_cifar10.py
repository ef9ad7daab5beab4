"""CIFAR-10 from files, from the archive and from its address; the files are small ones in the true format."""

import dataclasses
import hashlib
import http.server
import io
import tarfile
import threading
from functools import partial
from pathlib import Path

import pytest
import torch

from ctm.model import CTM
from ctm.tasks import Task, TaskConfig, cifar10, load_task
from ctm.tasks.augment import augment
from ctm.tasks.cifar10 import ARCHIVE, INSIDE, TEST, TRAIN, Cifar10Error
from ctm.tasks.config import AugmentConfig, Cifar10Config
from ctm.tasks.fetch import FetchError
from ctm.training.fit import check_fit
from ctm.training.run import train
from ctm.training.settings import read_toml

CONFIGS = Path(__file__).parent.parent / "configs"
ROWS = 6
"""In each file."""


def row(label: int, red: int, green: int, blue: int) -> bytes:
    """A picture of one colour, but for its first pixel, which is white."""
    planes = (bytes([255]) + bytes([value]) * 1023 for value in (red, green, blue))
    return bytes([label]) + b"".join(planes)


def small_files() -> dict[str, bytes]:
    """All six files, every row of its own colour."""
    return {
        name: b"".join(row((file + index) % 10, 10 * file, 20 * index, 30) for index in range(ROWS))
        for file, name in enumerate((*TRAIN, *TEST))
    }


def write_files(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def write_archive(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(folder / ARCHIVE, "w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f"{INSIDE}/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return folder


def task(data_dir: Path | None, **options: object) -> Task:
    config = TaskConfig(name="cifar10", cifar10=Cifar10Config(held_out=4, **options))  # type: ignore[arg-type]  # as given
    return load_task(config, data_dir)


@pytest.mark.parametrize(
    "write",
    [
        pytest.param(lambda folder: write_files(folder, small_files()), id="files"),
        pytest.param(lambda folder: write_files(folder / INSIDE, small_files()).parent, id="a folder of files"),
        pytest.param(lambda folder: write_archive(folder, small_files()), id="the archive"),
    ],
)
def test_rows_come_in_three_parts_with_colours_in_place(tmp_path, write):
    loaded = task(write(tmp_path / "data"))
    assert [len(part) for part in (loaded.train, loaded.held_out, loaded.test)] == [26, 4, 6]
    inputs, targets = loaded.train.take(torch.tensor([0, 8]))
    assert targets.tolist() == [0, 3], "the third row of the second file"
    assert inputs.shape == (2, 3, 32, 32)
    assert inputs[1, :, 0, 0].tolist() == [1, 1, 1]
    torch.testing.assert_close(inputs[1, :, 0, 1], torch.tensor([10, 40, 30]) / 255)
    assert loaded.held_out.take(torch.arange(4)).targets.tolist() == [6, 7, 8, 9]
    assert loaded.test.take(torch.arange(1)).targets.tolist() == [5]
    assert loaded.labels[0] == "airplane"


def test_the_test_set_is_not_opened_before_it_is_read(tmp_path):
    folder = write_files(tmp_path, small_files())
    (folder / TEST[0]).unlink()
    loaded = task(folder)
    with pytest.raises(FileNotFoundError, match=r"has neither test_batch\.bin nor cifar-10-binary"):
        len(loaded.test)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param(b"", "rows of 3073 bytes, at least one, got 0 bytes", id="empty"),
        pytest.param(row(0, 1, 2, 3)[:-1], "rows of 3073 bytes, .* got 3072 bytes", id="half a row"),
        pytest.param(row(0, 1, 2, 3), None, id="fewer rows than the others"),
        pytest.param(row(10, 1, 2, 3), "classes from 0 to 9, got 10", id="an eleventh class"),
    ],
)
@pytest.mark.parametrize("write", [write_files, write_archive], ids=["file", "archive"])
def test_a_damaged_file_is_refused_by_name(tmp_path, write, content, message):
    folder = write(tmp_path, {**small_files(), TRAIN[3]: content})
    said = r" holds 1 rows, .*data_batch_1\.bin 6; all files" if message is None else f" must hold {message}"
    with pytest.raises(Cifar10Error, match=rf"data_batch_4\.bin{said}") as caught:
        task(folder)
    assert str(tmp_path) in str(caught.value)


def test_a_damaged_archive_is_refused_by_name(tmp_path):
    folder = write_archive(tmp_path, small_files())
    content = (folder / ARCHIVE).read_bytes()
    for damaged in (content[: len(content) // 2], b"nonsense"):
        (folder / ARCHIVE).write_bytes(damaged)
        with pytest.raises(Cifar10Error, match=r"cifar-10-binary\.tar\.gz is damaged"):
            task(folder)


def test_an_archive_without_a_file_is_refused(tmp_path):
    files = {name: content for name, content in small_files().items() if name != TRAIN[1]}
    with pytest.raises(Cifar10Error, match=r"lacks cifar-10-batches-bin/data_batch_2\.bin"):
        task(write_archive(tmp_path, files))


def test_a_folder_without_the_files_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"has neither data_batch_1\.bin nor .*; without --data-dir"):
        task(tmp_path)


def test_holding_out_everything_is_refused(tmp_path):
    config = TaskConfig(name="cifar10", cifar10=Cifar10Config(held_out=30))
    with pytest.raises(ValueError, match="must be below the 30 rows there are, got 30"):
        load_task(config, write_files(tmp_path, small_files()))


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        del format, args


def test_the_archive_is_fetched_and_its_sum_checked(tmp_path, monkeypatch):
    folder = write_archive(tmp_path / "server", small_files())
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(QuietHandler, directory=str(folder))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            address = f"http://127.0.0.1:{server.server_port}/{ARCHIVE}"
            with pytest.raises(FetchError, match=r"gave .* expected sha256 c4a38c50a1bc"):
                task(None, address=address)
            content = (folder / ARCHIVE).read_bytes()
            monkeypatch.setattr(cifar10, "SHA256", hashlib.sha256(content).hexdigest())
            assert len(task(None, address=address).train) == 26
        finally:
            server.shutdown()
            thread.join()
    assert (tmp_path / "cache" / "ctm-serving" / "cifar10" / ARCHIVE).read_bytes() == content


def test_an_address_must_be_on_the_web():
    with pytest.raises(ValueError, match=r"task\.cifar10\.address must be an http or https address, got '/data'"):
        Cifar10Config(address="/data")


def test_mirrored_images_are_swapped_left_and_right():
    images = torch.rand(200, 3, 8, 8)
    mirrored = augment(AugmentConfig(mirror=True), images, torch.Generator().manual_seed(0))
    swapped = (mirrored == images.flip(-1)).flatten(1).all(1)
    assert ((mirrored == images).flatten(1).all(1) ^ swapped).all()
    assert 70 < swapped.sum() < 130


def test_colours_stay_in_range_and_differ_by_at_most_their_limit():
    images = torch.rand(100, 3, 8, 8)
    coloured = augment(AugmentConfig(colour=0.3), images, torch.Generator().manual_seed(0))
    assert (coloured.min() >= 0) & (coloured.max() <= 1)
    ratio = coloured.mean(dim=(1, 2, 3)) / images.mean(dim=(1, 2, 3))
    assert 0.68 < ratio.min() < 0.8
    assert 1.1 < ratio.max() < 1.32
    grey = torch.full((10, 3, 4, 4), 0.5)
    turned = augment(AugmentConfig(colour=0.3), grey, torch.Generator().manual_seed(0))
    torch.testing.assert_close(turned, turned.mean(dim=(1, 2, 3), keepdim=True).expand_as(turned))


@pytest.mark.parametrize(
    ("name", "weights"),
    [
        pytest.param("cifar10-plain", 1_032_648, id="plain"),
        pytest.param("cifar10-hyper", 1_436_040, id="hyper"),
        pytest.param("cifar10-hyper-full", 1_570_192, id="hyper-full"),
    ],
)
def test_the_studys_configurations_make_their_models(tmp_path, name, weights):
    config = read_toml(CONFIGS / f"{name}.toml")
    check_fit(config.model, task(write_files(tmp_path, small_files())))
    assert sum(weight.numel() for weight in CTM(config.model).parameters()) == weights


def test_an_update_of_the_study_can_be_trained(tmp_path):
    """As configured, but for fewer rows and ticks."""
    config = read_toml(CONFIGS / "cifar10-hyper-full.toml")
    config = dataclasses.replace(
        config,
        output_dir=tmp_path / "runs",
        data_dir=write_files(tmp_path / "data", small_files()),
        updates=1,
        batch_size=4,
        device="cpu",
        task=dataclasses.replace(config.task, cifar10=Cifar10Config(held_out=4)),
        model=dataclasses.replace(config.model, ticks=2),
        optimiser=dataclasses.replace(config.optimiser, warmup_updates=0),
    )
    assert train(config)
    assert (tmp_path / "runs" / "cifar10-hyper-full" / "best" / "weights.safetensors").is_file()
