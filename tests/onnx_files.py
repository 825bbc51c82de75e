"""Small taggers of WD14's form for tests: what they say of a picture can be worked out by hand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

RATINGS = ("general", "sensitive", "questionable", "explicit")


def weights(tags: int) -> npt.NDArray[np.float32]:
    """(tags, 3): how blue, green and red speak for each tag."""
    return np.random.default_rng(4).normal(0, 6, (tags, 3)).astype(np.float32)


def model(tags: int, side: int = 16, domain: str = "", shape: Sequence[object] | None = None) -> onnx.ModelProto:
    """sigmoid(weights @ (mean colour / 255 - 0.5)); the colour in the order blue, green, red."""
    nodes = [
        helper.make_node("ReduceMean", ["pixels:0"], ["mean"], axes=[1, 2], keepdims=0),
        helper.make_node("Div", ["mean", "full"], ["unit"]),
        helper.make_node("Sub", ["unit", "half"], ["centred"]),
        helper.make_node("MatMul", ["centred", "weights"], ["logits"]),
        helper.make_node("Sigmoid", ["logits"], ["found:0"], domain=domain),
    ]
    constants = [
        numpy_helper.from_array(np.float32(255), "full"),
        numpy_helper.from_array(np.float32(0.5), "half"),
        numpy_helper.from_array(weights(tags).T.copy(), "weights"),
    ]
    pixels = helper.make_tensor_value_info("pixels:0", TensorProto.FLOAT, shape or ["N", side, side, 3])
    found = helper.make_tensor_value_info("found:0", TensorProto.FLOAT, ["N", tags])
    graph = helper.make_graph(nodes, "test", [pixels], [found], constants)
    opsets = [helper.make_opsetid("", 13), *([helper.make_opsetid(domain, 1)] if domain else [])]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def table(names: Sequence[str], characters: Sequence[str] = ()) -> str:
    """A selected_tags.csv: the ratings, then these tags, then these characters."""
    rows = [(9999999 - i, name, 9) for i, name in enumerate(RATINGS)]
    rows += [(i, name, 0) for i, name in enumerate(names)]
    rows += [(100 + i, name, 4) for i, name in enumerate(characters)]
    return "tag_id,name,category,count\n" + "".join(f"{number},{name},{kind},1\n" for number, name, kind in rows)


def write_tagger(folder: Path, names: Sequence[str], characters: Sequence[str] = (), side: int = 16) -> Path:
    """Both files of a tagger in a new folder."""
    folder.mkdir(parents=True, exist_ok=True)
    count = len(RATINGS) + len(names) + len(characters)
    (folder / "model.onnx").write_bytes(model(count, side).SerializeToString())
    (folder / "selected_tags.csv").write_text(table(names, characters), encoding="utf-8")
    return folder
