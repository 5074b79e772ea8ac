"""The numbers of a small unquantised vector: the only tensors whose values Python ever reads."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..errors import CorruptFileError, UnsupportedError
from .plain_file import open_regular
from .types import Layout, TensorRef


def read_vector(ref: TensorRef) -> np.ndarray[Any, np.dtype[np.float64]]:
    """The values of `ref`. Raises UnsupportedError for what is no vector of floats, CorruptFileError for the file."""
    if not ref.layout.is_float or len(ref.shape) != 1 or ref.blocks is not None:
        raise UnsupportedError(
            f"{ref.file}: tensor {ref.name!r} is {ref.layout.name} of {ref.shape}, no vector of floats"
        )
    try:
        with open_regular(ref.file) as file:
            file.seek(ref.offset)
            raw = file.read(ref.nbytes)
    except OSError as error:
        raise CorruptFileError(f"{ref.file}: cannot be read: {error.strerror or error}") from error
    if len(raw) != ref.nbytes:
        raise CorruptFileError(f"{ref.file}: ends inside tensor {ref.name!r}")
    if ref.layout is Layout.BF16:
        widened = np.frombuffer(raw, dtype="<u2").astype(np.uint32) << 16
        return widened.view(np.float32).astype(np.float64)
    return np.frombuffer(raw, dtype="<f4" if ref.layout is Layout.F32 else "<f2").astype(np.float64)
