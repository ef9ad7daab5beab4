"""MNIST: 70,000 handwritten digits of 28 x 28 pixels, read from a folder or fetched once from a mirror."""

from pathlib import Path

from torch import Tensor

from ctm.tasks.augment import augmentation
from ctm.tasks.config import MnistConfig, TaskConfig
from ctm.tasks.fetch import cache_folder, fetch
from ctm.tasks.idx import IdxError, read_idx
from ctm.tasks.task import LazyRows, Task, TensorRows

SHA256 = {
    "train-images-idx3-ubyte.gz": "0b367032e93c5d0cea0925647cfdb18614af8ee15f83e6f2fc2ad904a6835971",
    "train-labels-idx1-ubyte.gz": "1787548bbe0bff1ec2ecdc0ef292b02df999e2d1a6002d27500982c652b17203",
    "t10k-images-idx3-ubyte.gz": "1a1a05eab793c14bb050b398624a11b0ffd1a2953baed553b1b9bd079e2a20be",
    "t10k-labels-idx1-ubyte.gz": "b91679a0acfe4ba0e50a2437a903084cba1f5f92592b016a25a7dfd00455798b",
}


def mnist_task(config: TaskConfig, data_dir: Path | None) -> Task:
    """The last rows of the training set are held out; the test set is not opened before someone reads it.

    Args:
        data_dir: a folder with the four idx files, packed or not; None fetches them into the cache.

    Raises:
        FileNotFoundError: the folder lacks a file. FetchError, IdxError: a file is not what it should be.
    """
    images, targets = _read("train", config.mnist, data_dir)
    held_out = config.mnist.held_out
    if held_out >= len(targets):
        raise ValueError(f"task.mnist.held_out must be below the {len(targets)} rows there are, got {held_out}")
    return Task(
        name="mnist",
        loss="image",
        input_name="image",
        input_shape=(1, 28, 28),
        prediction_shape=(10,),
        labels=tuple("0123456789"),
        train=TensorRows(images[:-held_out], targets[:-held_out], scale=1 / 255),
        held_out=TensorRows(images[-held_out:], targets[-held_out:], scale=1 / 255),
        test=LazyRows(lambda: TensorRows(*_read("t10k", config.mnist, data_dir), scale=1 / 255)),
        augment=augmentation(config.augment),
    )


def _read(part: str, config: MnistConfig, data_dir: Path | None) -> tuple[Tensor, Tensor]:
    """Images, uint8 [rows, 1, 28, 28], and labels, uint8 [rows], of `train` or `t10k`."""
    images_path = _find(f"{part}-images-idx3-ubyte.gz", config, data_dir)
    labels_path = _find(f"{part}-labels-idx1-ubyte.gz", config, data_dir)
    images, labels = read_idx(images_path, dimensions=3), read_idx(labels_path, dimensions=1)
    if images.shape[1:] != (28, 28):
        raise IdxError(f"{images_path} holds images of {images.shape[1]} x {images.shape[2]} pixels, expected 28 x 28")
    if len(images) != len(labels):
        raise IdxError(f"{images_path} holds {len(images)} images, {labels_path} {len(labels)} labels")
    if not len(labels) or labels.max() > 9:
        raise IdxError(f"{labels_path} must hold labels from 0 to 9, at least one")
    return images[:, None], labels


def _find(name: str, config: MnistConfig, data_dir: Path | None) -> Path:
    if data_dir is None:
        return fetch(config.mirror.rstrip("/") + "/" + name, cache_folder("mnist") / name, SHA256[name])
    for path in (data_dir / name, data_dir / name.removesuffix(".gz")):
        if path.is_file():
            return path
    raise FileNotFoundError(f"{data_dir} lacks {name}; without --data-dir the four files of MNIST are fetched")
