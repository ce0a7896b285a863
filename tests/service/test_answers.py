import grpc
import numpy as np
import pytest

from protos.realce.v1 import classifier_pb2 as pb
from service.answers import array, failure_of, request_message
from service.types import View


def test_a_message_holds_what_was_asked_for():
    message = request_message(["a"], ["Evidence", View.ATTENTIONS], [1], [0, 2], np.float16)
    assert list(message.views) == [pb.VIEW_EVIDENCE, pb.VIEW_ATTENTIONS]
    assert list(message.attention_selection.layers) == [1]
    assert list(message.attention_selection.heads) == [0, 2]
    assert message.data_type == pb.DATA_TYPE_FLOAT16
    assert not request_message(["a"]).HasField("attention_selection")


@pytest.mark.parametrize(
    ("arguments", "kind", "reason"),
    [
        ({"texts": "one string"}, ValueError, "texts: a string, must be a sequence of strings"),
        ({"texts": ["a", 1]}, TypeError, r"texts\[1\]: int, must be a string"),
        ({"texts": iter(["a", None])}, TypeError, r"texts\[1\]: NoneType, must be a string"),
        ({"texts": ["a", "n\udce3o"]}, ValueError, r"texts\[1\]: .* '\\udce3' in position 1: "),
        ({"views": "evidence"}, ValueError, "views: a string, must be a sequence of views"),
        ({"views": ["evidence", "red"]}, ValueError, r"views\[1\]: 'red' is .* are evidence, "),
        ({"views": ["unspecified"]}, ValueError, r"views\[0\]: 'unspecified' is no view"),
        ({"views": [3]}, ValueError, r"views\[0\]: 3 is no view"),
        ({"layers": [-1]}, ValueError, "layers: .*-1"),
        ({"heads": ["a"]}, TypeError, "heads: 'str' "),
        ({"dtype": np.float64}, ValueError, "dtype: float64, must be float32 or float16"),
    ],
)
def test_what_cannot_be_asked_is_refused_before_it_is_sent_by_name(arguments, kind, reason):
    with pytest.raises(kind, match=f"^{reason}"):
        request_message(**{"texts": ["a"]} | arguments)


def test_tensors_are_little_endian_and_row_major():
    tensor = pb.Tensor(shape=[1, 2], data_type=pb.DATA_TYPE_FLOAT16, data=b"\x00\x3c\x00\xc0")
    assert array(tensor).tolist() == [[1.0, -2.0]]


@pytest.mark.parametrize(
    ("details", "told"),
    [
        ("CANCELLED", "cut off by the server, for which too many calls wait"),
        ("Channel closed!", "Channel closed!"),
    ],
)
def test_a_call_that_was_cut_off_is_told_why_in_words(details, told):
    metadata = grpc.aio.Metadata()
    failed = failure_of(
        grpc.aio.AioRpcError(grpc.StatusCode.CANCELLED, metadata, metadata, details)
    )
    assert (failed.code, failed.message) == ("CANCELLED", told)
