import grpc
import numpy as np
import pytest

from protos.realce.v1 import classifier_pb2 as pb
from service.answers import array, failure_of, request_message
from service.types import View


def test_a_message_holds_what_was_asked_for():
    message = request_message(["a"], ["evidence", View.ATTENTIONS], [1], [0, 2], np.float16)
    assert list(message.views) == [pb.VIEW_EVIDENCE, pb.VIEW_ATTENTIONS]
    assert list(message.attention_selection.layers) == [1]
    assert list(message.attention_selection.heads) == [0, 2]
    assert message.data_type == pb.DATA_TYPE_FLOAT16
    assert not request_message(["a"]).HasField("attention_selection")


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"texts": "one string"}, "must be a sequence of strings"),
        ({"texts": ["a"], "views": ["colour"]}, "VIEW_COLOUR is no view; there are evidence, "),
        ({"texts": ["a"], "views": ["unspecified_"]}, "is no view"),
        ({"texts": ["a"], "dtype": np.float64}, "float64, must be float32 or float16"),
    ],
)
def test_what_cannot_be_asked_is_refused_before_it_is_sent(arguments, reason):
    with pytest.raises(ValueError, match=reason):
        request_message(**arguments)


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
