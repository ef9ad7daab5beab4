"""CIFAR-10: 60,000 colour photographs of 32 x 32 pixels in ten classes, from a folder or fetched once.

Six files of the binary version, packed in one archive or not: five of training rows and one of test rows. A row is
a byte for the class and 3,072 for the pixels: all red ones, then green, then blue, each line by line.
"""

import tarfile
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ctm.tasks.augment import augmentation
from ctm.tasks.config import TaskConfig
from ctm.tasks.fetch import FetchError, cache_folder, fetch
from ctm.tasks.task import LazyRows, Task, TensorRows

ARCHIVE = "cifar-10-binary.tar.gz"
SHA256 = "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"
INSIDE = "cifar-10-batches-bin"
TRAIN = tuple(f"data_batch_{number}.bin" for number in range(1, 6))
TEST = ("test_batch.bin",)
LABELS = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
SHAPE = (3, 32, 32)


class Cifar10Error(FetchError):
    """A file is not the one of CIFAR-10 that it should be."""


def cifar10_task(config: TaskConfig, data_dir: Path | None) -> Task:
    """The last rows of the training set are held out; the test set is not opened before someone reads it.

    Args:
        data_dir: a folder with the archive or with the files, or with a folder of them; None fetches the archive.

    Raises:
        FileNotFoundError: the folder lacks a file. FetchError: a file is not what it should be.
    """
    images, targets = _read(TRAIN, config, data_dir)
    held_out = config.cifar10.held_out
    if held_out >= len(targets):
        raise ValueError(f"task.cifar10.held_out must be below the {len(targets)} rows there are, got {held_out}")
    return Task(
        name="cifar10",
        loss="image",
        input_name="image",
        input_shape=SHAPE,
        prediction_shape=(len(LABELS),),
        labels=LABELS,
        train=TensorRows(images[:-held_out], targets[:-held_out], scale=1 / 255),
        held_out=TensorRows(images[-held_out:], targets[-held_out:], scale=1 / 255),
        test=LazyRows(lambda: TensorRows(*_read(TEST, config, data_dir), scale=1 / 255)),
        augment=augmentation(config.augment),
    )


def _read(names: tuple[str, ...], config: TaskConfig, data_dir: Path | None) -> tuple[Tensor, Tensor]:
    """Images, uint8 [rows, 3, 32, 32], and labels, uint8 [rows], of all these files in order."""
    contents = _contents(names, config, data_dir)
    parts = {name: _rows(name, content) for name, content in contents.items()}
    shortest, longest = (choose(parts, key=lambda name: len(parts[name])) for choose in (min, max))
    if len(parts[shortest]) < len(parts[longest]):
        raise Cifar10Error(
            f"{shortest} holds {len(parts[shortest])} rows, {longest} {len(parts[longest])}; all files of training "
            "rows hold equally many"
        )
    rows = torch.cat(list(parts.values()))
    return rows[:, 1:].reshape(-1, *SHAPE), rows[:, 0]


def _contents(names: tuple[str, ...], config: TaskConfig, data_dir: Path | None) -> dict[str, bytes]:
    """What the files hold, by what errors call them."""
    if data_dir is None:
        return _unpack(fetch(config.cifar10.address, cache_folder("cifar10") / ARCHIVE, SHA256), names)
    for folder in (data_dir, data_dir / INSIDE):
        if (folder / names[0]).is_file():
            return {str(folder / name): (folder / name).read_bytes() for name in names}
    if (data_dir / ARCHIVE).is_file():
        return _unpack(data_dir / ARCHIVE, names)
    raise FileNotFoundError(
        f"{data_dir} has neither {names[0]} nor {ARCHIVE}; without --data-dir the archive of CIFAR-10 is fetched"
    )


def _unpack(archive: Path, names: tuple[str, ...]) -> dict[str, bytes]:
    """Some files of the archive, read without writing any."""
    found = {}
    try:
        # As a stream: the archive is read once, whatever the order of its files.
        with tarfile.open(archive, "r|gz") as members:
            for member in members:
                folder, _, name = member.name.rpartition("/")
                if name in names and folder.removeprefix("./") == INSIDE and (content := members.extractfile(member)):
                    found[name] = content.read()
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise Cifar10Error(f"{archive} is damaged: {error}") from error
    if missing := [name for name in names if name not in found]:
        raise Cifar10Error(f"{archive} lacks {', '.join(f'{INSIDE}/{name}' for name in missing)}")
    return {f"{archive}: {name}": found[name] for name in names}


def _rows(name: str, content: bytes) -> Tensor:
    """uint8 [rows, 1 + 3072], the class first."""
    size = 1 + int(np.prod(SHAPE))
    if not content or len(content) % size:
        raise Cifar10Error(f"{name} must hold rows of {size} bytes, at least one, got {len(content)} bytes")
    # A copy, because torch wants memory that it may write to.
    rows = torch.from_numpy(np.frombuffer(content, dtype=np.uint8).copy()).reshape(-1, size)
    if (largest := int(rows[:, 0].max())) >= len(LABELS):
        raise Cifar10Error(f"{name} must hold classes from 0 to {len(LABELS) - 1}, got {largest}")
    return rows
