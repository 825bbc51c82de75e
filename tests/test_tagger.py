"""The tagger's parts: pixels as cv2 makes them, the two files and what is refused of them, tags from probabilities."""

from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from PIL import Image

from lorac.captions import KAOMOJI
from lorac.errors import InputError
from lorac.kinds.image import decode
from lorac.tagger.model import Tagger
from lorac.tagger.pixels import prepared, squared
from lorac.tagger.protobuf import NotProtobuf, external_tensors
from lorac.tagger.vocabulary import Tag, Thresholds, as_bytes, chosen, from_bytes, read_tags
from tests.onnx_files import RATINGS, model, table, weights
from tests.test_area import pattern

# -- pixels ----------------------------------------------------------------------------------------------------------


def test_a_picture_is_squared_with_white_around_its_middle() -> None:
    x = np.zeros((2, 5, 3), np.uint8)
    square = squared(x, 4)
    assert square.shape == (5, 5, 3)
    assert square[:, 0, 0].tolist() == [255, 0, 0, 255, 255]
    small = squared(x, 8)
    assert small.shape == (8, 8, 3)
    assert (small[:3] == 255).all()
    assert (small[3:5, 1:6] == 0).all()
    assert (small[3:5, [0, 6, 7]] == 255).all()


def test_transparency_is_white_and_the_channels_are_blue_green_red() -> None:
    image = Image.new("RGBA", (4, 4), (255, 0, 0, 255))
    image.putpixel((1, 0), (7, 7, 7, 0))
    data = io.BytesIO()
    image.save(data, "PNG")
    x = prepared(decode(data.getvalue(), "white"), 4)
    assert x.shape == (1, 4, 4, 3)
    assert x.dtype == np.float32
    assert x[0, 0, 0].tolist() == [0, 0, 255]
    assert x[0, 0, 1].tolist() == [255, 255, 255]


# -- selected_tags.csv and the tags ----------------------------------------------------------------------------------

NAMES = ["long_hair", "^_^", "blue_skirt", "looking_at_viewer"]
TAGS = read_tags(table(NAMES, ["izumi_riho"]).encode(), "tags.csv")


def test_the_table_s_rows_are_the_outputs() -> None:
    assert [tag.name for tag in TAGS] == [*RATINGS, *NAMES, "izumi_riho"]
    assert [tag.category for tag in TAGS] == [9] * 4 + [0] * 4 + [4]


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("", "is no table of tags"),
        ("name,category\nx,0\n", "begins with name,category and not with tag_id,name,category,count"),
        ("tag_id,name,category,count\n1,x\n", "a row has a name and the number of a category"),
        ("tag_id,name,category,count\n1,x,general,3\n", "a row has a name and the number of a category"),
    ],
)
def test_a_wrong_table_is_refused(text: str, cause: str) -> None:
    with pytest.raises(InputError) as caught:
        read_tags(text.encode(), "t/selected_tags.csv")
    problem = caught.value.problems[0]
    assert problem.cause == cause
    assert problem.where.startswith("t/selected_tags.csv")
    assert problem.remedy


def test_tags_come_by_confidence_without_ratings_and_underscores() -> None:
    seen = [0.9, 0.8, 0.7, 0.6, 0.5, 0.9, 0.2, 0.5, 0.4]
    assert chosen(TAGS, seen, Thresholds(0.35, 0.35)) == ["^_^", "long hair", "looking at viewer", "izumi riho"]
    assert chosen(TAGS, seen, Thresholds(0.5, 0.9)) == ["^_^", "long hair", "looking at viewer"]
    assert chosen(TAGS, seen, Thresholds(0.95, 0.1)) == ["izumi riho"]


def test_a_threshold_takes_what_reaches_it() -> None:
    stored = from_bytes(as_bytes([0.5, 0.25]))
    assert chosen([Tag("a", 0), Tag("b", 0)], stored, Thresholds(0.25, 1.0)) == ["a", "b"]
    assert chosen([Tag("a", 0), Tag("b", 0)], stored, Thresholds(0.25000003, 1.0)) == ["a"]


@pytest.mark.parametrize("face", sorted(KAOMOJI))
def test_faces_keep_their_underscores(face: str) -> None:
    assert chosen([Tag(face, 0)], [1.0], Thresholds(0.35, 0.35)) == [face]


def test_the_faces_are_those_of_the_extension() -> None:
    listed = (
        "0_0, (o)_(o), +_+, +_-, ._., <o>_<o>, <|>_<|>, =_=, >_<, 3_3, 6_9, >_o, @_@, ^_^, o_o, u_u, x_x, |_|, ||_||"
    )
    assert KAOMOJI == set(listed.split(", "))


def test_stored_probabilities_are_little_endian_floats() -> None:
    assert as_bytes([1.0, 0.0]) == bytes([0, 0, 0x80, 0x3F, 0, 0, 0, 0])


# -- model.onnx ------------------------------------------------------------------------------------------------------


def loaded(made: onnx.ModelProto, tags: int = 9) -> Tagger:
    return Tagger(Path("t/model.onnx"), made.SerializeToString(), tags)


def refusal(made: onnx.ModelProto, tags: int = 9) -> str:
    with pytest.raises(InputError) as caught:
        loaded(made, tags)
    (problem,) = caught.value.problems
    assert problem.where == "t/model.onnx"
    assert problem.remedy
    return problem.cause


def test_probabilities_are_the_model_s_of_the_prepared_picture() -> None:
    image = Image.fromarray(pattern(40, 40)[:23])
    found = from_bytes(loaded(model(9)).probabilities(image))
    square = np.full((40, 40, 3), 255.0)
    square[8:31] = pattern(40, 40)[:23, :, ::-1]
    mean = square.mean(axis=(0, 1))
    wanted = 1 / (1 + np.exp(-(weights(9).astype(np.float64) @ (mean / 255 - 0.5))))
    assert np.abs(np.array(found) - wanted).max() < 5e-3  # each pixel was rounded once


def test_many_workers_give_the_bits_of_one() -> None:
    """onnxruntime splits sums among its threads; it has one, and each worker has its own picture."""
    tagger = loaded(model(9))
    images = [Image.fromarray(pattern(side, side)) for side in range(30, 60)]
    alone = [tagger.probabilities(image) for image in images]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(tagger.probabilities, images)) == alone
    options = tagger._session.get_session_options()
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (1, 1)


def test_external_data_is_refused(tmp_path: Path) -> None:
    made = model(9)
    (tmp_path / "weights.bin").write_bytes(weights(9).T.tobytes())
    tensor = made.graph.initializer[2]
    onnx.external_data_helper.set_external_data(tensor, location="../../etc/passwd")
    tensor.ClearField("raw_data")
    assert external_tensors(made.SerializeToString()) == ["weights"]
    assert refusal(made) == 'keeps weights ("weights") in another file, which lorac does not open'


FAR = numpy_helper.from_array(np.zeros(3, np.float32), "far")
FAR.data_location = onnx.TensorProto.EXTERNAL
SPARSE = helper.make_sparse_tensor(FAR, FAR, [9])
INNER = helper.make_graph([helper.make_node("Constant", [], ["y"], value=FAR)], "inner", [], [])


@pytest.mark.parametrize(
    "value", [FAR, SPARSE, INNER, [FAR], [SPARSE], [INNER]], ids=lambda value: type(value).__name__
)
def test_external_data_is_found_in_attributes(value: object) -> None:
    made = model(9)
    made.graph.node.append(helper.make_node("If", ["x"], ["y"], value=value))
    assert set(external_tensors(made.SerializeToString())) == {"far"}


def test_external_data_is_found_wherever_a_tensor_may_be() -> None:
    assert external_tensors(model(9).SerializeToString()) == []
    sparse = model(9)
    sparse.graph.sparse_initializer.append(SPARSE)
    assert external_tensors(sparse.SerializeToString()) == ["far", "far"]
    function = model(9)
    opsets = [helper.make_opsetid("", 13)]
    function.functions.append(helper.make_function("d", "f", [], ["y"], list(INNER.node), opsets))
    assert external_tensors(function.SerializeToString()) == ["far"]
    training = model(9)
    training.training_info.append(helper.make_training_info(INNER, [], INNER, []))
    assert external_tensors(training.SerializeToString()) == ["far", "far"]


@pytest.mark.parametrize("data", [b"\x3a\xff\xff\xff\xff\x0f", b"\x80" * 20, b"\x07", b"\x3a\x05ab"])
def test_what_is_no_protobuf_is_refused(data: bytes) -> None:
    with pytest.raises(NotProtobuf):
        external_tensors(data)
    with pytest.raises(InputError, match="is no ONNX model"):
        Tagger(Path("t/model.onnx"), data, 9)


def test_foreign_operations_are_refused() -> None:
    assert refusal(model(9, domain="evil.ops")).startswith("is refused by onnxruntime: ")


def test_a_model_of_another_form_is_refused() -> None:
    assert refusal(model(9, shape=["N", 16, 12, 3])) == (
        "takes (N, 16, 12, 3) and not a square BGR picture, (batch, side, side, 3)"
    )
    assert refusal(model(9, shape=["N", "height", "width", 3])).startswith("takes (N, height, width, 3)")
    assert refusal(model(9), tags=12) == "has 9 outputs, and selected_tags.csv has 12 tags"


def test_what_is_no_probability_is_refused() -> None:
    made = model(9)
    made.graph.node[-1].op_type = "Exp"
    with pytest.raises(InputError, match="gives numbers that are no probabilities"):
        loaded(made).probabilities(Image.new("RGB", (16, 16), "white"))
