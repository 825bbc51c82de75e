"""The tagger's network, run by onnxruntime: one picture at a time on one thread, so that the number of cores and the
pictures beside it change no bit of the result."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lorac.errors import InputError, Problem
from lorac.listing import shown_path
from lorac.tagger.pixels import prepared
from lorac.tagger.protobuf import NotProtobuf, external_tensors
from lorac.tagger.vocabulary import as_bytes

if TYPE_CHECKING:
    from PIL.Image import Image

_OTHER = "use a tagger of SmilingWolf's, or one of that form"


class Tagger:
    """A loaded model.onnx whose outputs are the rows of a table of tags. Its methods may be called from many threads.

    Raises InputError for a file that refers to other files, that onnxruntime refuses, or that is not of WD14's form.
    """

    def __init__(self, path: Path, data: bytes, tags: int) -> None:
        self._path, self._tags = path, tags
        try:
            outside = external_tensors(data)
        except NotProtobuf:
            raise self._refused("is no ONNX model", _OTHER) from None
        if outside:
            cause = f'keeps weights ("{outside[0]}") in another file, which lorac does not open'
            raise self._refused(cause, "save the model as one file")
        self._session = self._started(data)
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        shape = inputs[0].shape if inputs else []
        if len(inputs) != 1 or len(shape) != 4 or shape[3] != 3 or shape[1] != shape[2] or not _fixed(shape[1]):
            shown = ", ".join(map(str, shape))
            raise self._refused(f"takes ({shown}) and not a square BGR picture, (batch, side, side, 3)", _OTHER)
        if inputs[0].type != "tensor(float)":
            raise self._refused(f"takes {inputs[0].type} and not tensor(float)", _OTHER)
        self._input, self.side, self._output = inputs[0].name, int(shape[1]), outputs[0].name
        if _fixed(outputs[0].shape[-1]):
            self._check_count(outputs[0].shape[-1])

    def probabilities(self, image: Image) -> bytes:
        """What the model makes of an RGB picture, as `vocabulary` stores it."""
        found = self._session.run([self._output], {self._input: prepared(image, self.side)})[0]
        values = np.asarray(found, np.float32).reshape(-1)
        self._check_count(len(values))
        if not (np.isfinite(values).all() and values.min() >= 0 and values.max() <= 1):
            raise self._refused("gives numbers that are no probabilities", _OTHER)
        return as_bytes(values.tolist())

    def _started(self, data: bytes) -> Any:
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
        options.log_severity_level = 4
        try:
            return ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # each of onnxruntime's own is a class without a common base
            cause = str(error).strip().splitlines()[0]
            raise self._refused(f"is refused by onnxruntime: {cause}", _OTHER) from error

    def _check_count(self, found: int) -> None:
        if found != self._tags:
            cause = f"has {found} outputs, and selected_tags.csv has {self._tags} tags"
            raise self._refused(cause, "take both files of the tagger from the same place")

    def _refused(self, cause: str, remedy: str) -> InputError:
        return InputError([Problem(shown_path(self._path), cause, remedy)])


def _fixed(size: object) -> bool:
    return isinstance(size, int) and size > 0
