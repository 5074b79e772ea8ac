"""Names to tensors, with those that lie in the file in a layout we cannot run kept apart until somebody asks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from ..errors import UnsupportedError
from .types import Layout, TensorRef


class TensorMap(Mapping[str, TensorRef]):
    """A read-only mapping. Asking for (or testing) a name whose layout is unsupported raises UnsupportedError.

    So a file opens, lists and plans although a tensor that no program reads is, say, int64 (`position_ids` of BERT
    files), and a model that does need such a tensor fails with the tensor's and the layout's name.
    """

    def __init__(self, path: Path, tensors: Mapping[str, TensorRef], unsupported: Mapping[str, str]) -> None:
        self._path = path
        self._tensors = dict(tensors)
        self.unsupported = dict(unsupported)  # tensor name -> name of its layout

    def __getitem__(self, name: str) -> TensorRef:
        ref = self._tensors.get(name)
        if ref is not None:
            return ref
        if name in self.unsupported:
            raise UnsupportedError(
                f"{self._path}: tensor {name!r} is stored as {self.unsupported[name]}, which this version cannot run; "
                f"it runs {', '.join(layout.name for layout in Layout)}"
            )
        raise KeyError(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)
