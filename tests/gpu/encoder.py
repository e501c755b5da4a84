"""A model's matrices in four bits, to be carried: 32 weights of a row share a scale in float16.

The weight of the largest magnitude of a block is kept as -8 scales, as GGML's Q4_0 does it: weights that were
quantised in this way already lose nothing.
"""

import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

BLOCK = 32
WEIGHTS = "model.safetensors"
NIBBLES, SCALES = ".nibbles", ".scales"


def pack(source: Path, archive: Path) -> None:
    """Write a model with its matrices in four bits to a zip archive.

    Args:
        source: A Hugging Face folder whose weights are one file.
        archive: Where to.
    """
    packed: dict[str, NDArray[np.generic]] = {}
    for name, weights in load_file(source / WEIGHTS).items():
        if weights.ndim == 2 and weights.shape[1] % BLOCK == 0:
            packed[name + NIBBLES], packed[name + SCALES] = quantised(weights)
        else:
            packed[name] = weights
    with TemporaryDirectory() as folder:
        shutil.copytree(source, folder, ignore=shutil.ignore_patterns(WEIGHTS), dirs_exist_ok=True)
        save_file(packed, Path(folder) / WEIGHTS)
        shutil.make_archive(str(archive.with_suffix("")), "zip", folder)


def unpack(archive: Path, target: Path) -> None:
    """Write a packed model as transformers reads it, in float32."""
    shutil.unpack_archive(archive, target)
    packed = load_file(target / WEIGHTS)
    weights = {
        name.removesuffix(NIBBLES): dequantised(values, packed[name.removesuffix(NIBBLES) + SCALES])
        if name.endswith(NIBBLES)
        else values
        for name, values in packed.items()
        if not name.endswith(SCALES)
    }
    save_file(weights, target / WEIGHTS, metadata={"format": "pt"})


def quantised(weights: NDArray[np.float32]) -> tuple[NDArray[np.uint8], NDArray[np.float16]]:
    """Give nibbles, two to a byte, ``(rows, columns / 2)``, and scales, ``(rows, columns / 32)``."""
    blocks = weights.astype(np.float32).reshape(len(weights), -1, BLOCK)
    largest = np.take_along_axis(blocks, np.abs(blocks).argmax(axis=2, keepdims=True), axis=2)
    scales = (largest / -8).astype(np.float16)
    steps = np.divide(blocks, scales.astype(np.float32), out=np.zeros_like(blocks), where=scales != 0)
    nibbles = (np.rint(steps).clip(-8, 7) + 8).astype(np.uint8).reshape(len(weights), -1)
    return nibbles[:, ::2] | nibbles[:, 1::2] << np.uint8(4), scales[:, :, 0]


def dequantised(nibbles: NDArray[np.uint8], scales: NDArray[np.float16]) -> NDArray[np.float32]:
    """Give weights, ``(rows, columns)``."""
    steps = (
        np.stack([nibbles & 15, nibbles >> 4], axis=2).reshape(len(nibbles), -1, BLOCK).astype(np.float32) - 8
    )
    weights: NDArray[np.float32] = steps * scales.astype(np.float32)[:, :, np.newaxis]
    return weights.reshape(len(nibbles), -1)
