"""MNIST from a folder and from a mirror, whole and damaged; the mirror is a file server on this machine."""

import gzip
import hashlib
import http.server
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch

from ctm.tasks import TaskConfig, load_task, mnist
from ctm.tasks.config import MnistConfig
from ctm.tasks.fetch import FetchError, fetch
from ctm.tasks.idx import IdxError, read_idx

ROWS = {"train": 30, "t10k": 12}


def idx_bytes(values: torch.Tensor) -> bytes:
    sizes = b"".join(size.to_bytes(4, "big") for size in values.shape)
    return bytes([0, 0, 8, values.dim()]) + sizes + values.numpy().tobytes()


def small_mnist(folder: Path, seed: int = 0) -> Path:
    """The four files with a few random rows, in the true names and format."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(seed)
    for part, rows in ROWS.items():
        images = torch.randint(0, 256, (rows, 28, 28), dtype=torch.uint8, generator=generator)
        labels = torch.arange(rows, dtype=torch.uint8) % 10
        (folder / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx_bytes(images)))
        (folder / f"{part}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx_bytes(labels)))
    return folder


def config(**options: object) -> TaskConfig:
    return TaskConfig(name="mnist", mnist=MnistConfig(held_out=10, **options))  # type: ignore[arg-type]  # as given


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        del format, args


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Path, str]]:
    """A folder that is served, and its address; the cache is empty and the files' sums are the expected ones."""
    folder = small_mnist(tmp_path / "mirror")
    sums = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}
    monkeypatch.setattr(mnist, "SHA256", sums)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(QuietHandler, directory=str(folder))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield folder, f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


def test_the_last_training_rows_are_held_out(tmp_path: Path) -> None:
    task = load_task(config(), small_mnist(tmp_path))
    assert [len(part) for part in (task.train, task.held_out, task.test)] == [20, 10, 12]
    assert task.held_out.take(torch.arange(10)).targets.tolist() == list(range(10))
    inputs = task.train.take(torch.arange(20)).inputs
    assert inputs.shape == (20, 1, 28, 28)
    assert (inputs.min().item(), inputs.max().item()) == (0.0, 1.0)


def test_the_test_set_is_not_opened_before_it_is_read(tmp_path: Path) -> None:
    small_mnist(tmp_path)
    (tmp_path / "t10k-images-idx3-ubyte.gz").unlink()
    task = load_task(config(), tmp_path)
    with pytest.raises(FileNotFoundError, match="lacks t10k-images"):
        len(task.test)


def test_unpacked_files_are_read_too(tmp_path: Path) -> None:
    for path in list(small_mnist(tmp_path).iterdir()):
        (tmp_path / path.stem).write_bytes(gzip.decompress(path.read_bytes()))
        path.unlink()
    assert len(load_task(config(), tmp_path).train) == 20


def test_a_folder_without_the_files_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"lacks train-images.*; without --data-dir"):
        load_task(config(), tmp_path)


IMAGES = idx_bytes(torch.zeros(3, 28, 28, dtype=torch.uint8))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param(b"", "begins with nothing", id="empty"),
        pytest.param(b"PK\x03\x04 a zip file", "begins with 50 4b 03 04", id="another format"),
        pytest.param(b"\0\0\x0d\x03" + IMAGES[4:], "no idx file of bytes", id="floats"),
        pytest.param(idx_bytes(torch.zeros(3, dtype=torch.uint8)), "holds 1 dimensions, expected 3", id="labels"),
        pytest.param(IMAGES[:9], "ends within its header", id="half a header"),
        pytest.param(IMAGES[:-1], "holds 2351 values, its header says 3 x 28 x 28", id="too short"),
        pytest.param(IMAGES + b"\0", "holds 2353 values, its header says 3 x 28 x 28", id="too long"),
        pytest.param(gzip.compress(IMAGES)[:-9], "is damaged", id="a gzip file cut short"),
        pytest.param(b"\x1f\x8b nonsense", "is damaged", id="a gzip file of nonsense"),
    ],
)
def test_a_damaged_idx_file_is_refused_by_name(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "images"
    path.write_bytes(content)
    with pytest.raises(IdxError, match=message) as caught:
        read_idx(path, dimensions=3)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        pytest.param("images-idx3", torch.zeros(30, 8, 8), "images of 8 x 8 pixels, expected 28 x 28", id="small"),
        pytest.param("labels-idx1", torch.zeros(29), "holds 30 images, .* 29 labels", id="a label missing"),
        pytest.param("labels-idx1", torch.full((30,), 10), "labels from 0 to 9", id="an eleventh digit"),
    ],
)
def test_files_that_are_not_mnist_are_refused(tmp_path: Path, name: str, values: torch.Tensor, message: str) -> None:
    small_mnist(tmp_path)
    (tmp_path / f"train-{name}-ubyte.gz").write_bytes(idx_bytes(values.to(torch.uint8)))
    with pytest.raises(IdxError, match=message):
        load_task(config(), tmp_path)


def test_holding_out_everything_is_refused(tmp_path: Path) -> None:
    few = TaskConfig(name="mnist", mnist=MnistConfig(held_out=30))
    with pytest.raises(ValueError, match="must be below the 30 rows there are, got 30"):
        load_task(few, small_mnist(tmp_path))


def test_files_are_fetched_once_from_the_mirror(mirror: tuple[Path, str], tmp_path: Path) -> None:
    folder, address = mirror
    task = load_task(config(mirror=address))
    assert torch.equal(
        task.train.take(torch.arange(20)).inputs, load_task(config(), folder).train.take(torch.arange(20)).inputs
    )
    # The test set has not been asked for yet.
    cache = tmp_path / "cache" / "ctm-serving" / "mnist"
    assert sorted(path.name for path in cache.iterdir()) == ["train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"]
    assert len(task.test) == 12
    for path in folder.iterdir():
        path.unlink()
    assert len(load_task(config(mirror=address)).train) == 20, "the second time, the cache serves"


def test_a_cached_file_that_was_damaged_is_fetched_again(mirror: tuple[Path, str], tmp_path: Path) -> None:
    load_task(config(mirror=mirror[1]))
    cached = tmp_path / "cache" / "ctm-serving" / "mnist" / "train-labels-idx1-ubyte.gz"
    cached.write_bytes(cached.read_bytes()[:-4])
    assert len(load_task(config(mirror=mirror[1])).train) == 20


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda content: content[:-5], id="truncated"),
        pytest.param(lambda content: content[:-1] + b"?", id="changed"),
        pytest.param(lambda content: content + b"?", id="too long"),
        pytest.param(lambda _: b"", id="empty"),
    ],
)
def test_a_fetched_file_of_the_wrong_sha256_is_refused_and_not_kept(
    mirror: tuple[Path, str],
    tmp_path: Path,
    damage: partial[bytes],
) -> None:
    folder, address = mirror
    labels = folder / "train-labels-idx1-ubyte.gz"
    labels.write_bytes(damage(labels.read_bytes()))
    with pytest.raises(FetchError, match=r"train-labels-idx1-ubyte.gz gave \d+ bytes with sha256 .* expected sha256"):
        load_task(config(mirror=address))
    cache = tmp_path / "cache" / "ctm-serving" / "mnist"
    assert [path.name for path in cache.iterdir()] == ["train-images-idx3-ubyte.gz"]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        pytest.param("nothing-here", "404", id="no such file"),
        pytest.param(None, "could not be fetched", id="nobody answers"),
    ],
)
def test_a_mirror_that_does_not_serve_is_named(
    mirror: tuple[Path, str], tmp_path: Path, path: str | None, message: str
) -> None:
    # Port 9 discards; nothing listens on it here.
    address = "http://127.0.0.1:9/file" if path is None else mirror[1] + path
    with pytest.raises(FetchError, match=message) as caught:
        fetch(address, tmp_path / "fetched" / "file", sha256="0" * 64)
    assert address in str(caught.value)
    assert list((tmp_path / "fetched").iterdir()) == []


def test_a_mirror_must_be_on_the_web() -> None:
    with pytest.raises(ValueError, match="must be an http or https address, got 'file:///etc'"):
        MnistConfig(mirror="file:///etc")
