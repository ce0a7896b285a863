"""The texts that are sent."""

import gzip

import numpy as np
import pytest

from protos.realce.v1 import classifier_pb2 as pb
from tests.benchmarks.requests import in_stream, messages, mixture
from tests.benchmarks.texts import from_file, made


def test_made_texts_are_the_same_again_and_of_all_lengths():
    texts = made(1000)
    assert texts == made(1000)
    assert texts != made(1000, seed=1)
    words = [len(text.split()) for text in texts]
    assert min(words) == 3
    assert 100 < max(words) <= 120
    assert 15 < np.mean(words) < 25
    wide = [len(text.split()) for text in made(1000, lengths="wide")]
    assert min(wide) == 1
    assert max(wide) > 400


@pytest.mark.parametrize("name", ["texts.csv", "texts.csv.gz", "texts.txt", "texts.txt.gz"])
def test_texts_of_a_file(tmp_path, name):
    content = "Um, dois\n\nThree\n" if ".txt" in name else 'label,text\n1,"Um, dois"\n0,\n0,Three\n'
    opened = gzip.open if name.endswith(".gz") else open
    with opened(tmp_path / name, "wt", encoding="utf-8") as file:
        file.write(content)
    assert sorted(from_file(tmp_path / name, 10)) == ["Three", "Um, dois"]
    assert len(from_file(tmp_path / name, 1)) == 1


def test_a_file_without_texts_is_refused(tmp_path):
    (tmp_path / "a.csv").write_text("review\ngood\n")
    with pytest.raises(ValueError, match="no column text"):
        from_file(tmp_path / "a.csv", 1)
    (tmp_path / "a.txt").write_text("\n \n")
    with pytest.raises(ValueError, match="holds no text"):
        from_file(tmp_path / "a.txt", 1)


def test_messages_hold_all_texts_in_turn():
    requests = messages(["a", "b", "c"], 2, views=["contributions"], half=True)
    sent = [pb.ClassifyRequest.FromString(one.content) for one in requests]
    assert [list(one.texts) for one in sent] == [["a", "b"], ["c", "a"]]
    assert [one.texts for one in requests] == [2, 2]
    assert list(sent[0].views) == [pb.VIEW_CONTRIBUTIONS]
    assert sent[0].data_type == pb.DATA_TYPE_FLOAT16
    streamed = pb.ClassifyStreamRequest.FromString(in_stream(requests)[1].content)
    assert (streamed.id, streamed.request) == ("1", sent[1])


def test_a_mixture_has_calls_of_all_kinds():
    requests = mixture(made(1000), seed=0)
    assert {one.texts for one in requests} == {0, 1, 4, 8}
    assert requests == mixture(made(1000), seed=0)
