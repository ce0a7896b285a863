import dataclasses

import numpy as np
import pytest

from service.answers import Answer
from service.highlight import by_word, show
from service.types import Token


def tokens(*spans: tuple[int, int]) -> list[Token]:
    return [Token("", start, end) for start, end in spans]


@pytest.mark.parametrize(
    ("text", "spans", "words"),
    [
        ("loved it", [(0, 4), (4, 5), (6, 8)], ["loved", "it"]),
        ("it's bad!", [(0, 2), (2, 3), (3, 4), (5, 8), (8, 9)], ["it's", "bad", "!"]),
        ("na\u0303o", [(0, 1), (1, 3), (3, 4)], ["na\u0303o"]),
        ("bem-vindo 👩‍👩‍👧", [(0, 3), (3, 4), (4, 9), (10, 15)], ["bem-vindo", "👩‍👩‍👧"]),
    ],
)
def test_the_tokens_of_a_word_add_up(text, spans, words):
    found = by_word(text, tokens(*spans), [1.0] * len(spans))
    assert [text[start:end] for start, end, _ in found] == words
    assert sum(share for _, _, share in found) == len(spans)


def test_a_token_in_no_word_is_kept():
    assert by_word("a  b", tokens((0, 1), (1, 3), (3, 4)), [1.0, 2.0, 3.0]) == [
        (0, 1, 1.0),
        (1, 3, 2.0),
        (3, 4, 3.0),
    ]


def answer(text: str) -> Answer:
    views = {"contributions": np.zeros((1, 2), np.float32)}
    probabilities = {"negative": 0.25, "positive": 0.75}
    return Answer("positive", 0.75, probabilities, {}, False, [Token(text, 0, len(text))], views)


def test_words_toward_are_green_and_against_red(monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLORTERM", "truecolor")
    monkeypatch.setenv("TERM", "xterm-256color")
    show(["good"], [answer("good")], [[2.0]])
    show(["bad"], [answer("bad")], [[-2.0]])
    green, red = "\x1b[37;48;2;0;200;0mgood", "\x1b[37;48;2;200;0;0mbad"
    output = capsys.readouterr().out
    assert green in output
    assert red in output


def test_an_unsure_answer_says_so(capsys):
    show(["x"], [dataclasses.replace(answer("x"), abstained=True)], None)
    assert capsys.readouterr().out == "positive 75.0% (unsure)  x\n"


def test_brackets_in_a_text_are_no_markup(capsys):
    show(["[bold]x[/bold] [/]"], [answer("x")], None)
    assert capsys.readouterr().out == "positive 75.0%  [bold]x[/bold] [/]\n"


def test_a_text_that_was_cut_says_so(capsys):
    show(["x"], [dataclasses.replace(answer("x"), truncated=True)], None)
    assert capsys.readouterr().out == "positive 75.0% (cut short)  x\n"


def test_a_text_says_nothing_to_the_terminal(capsys):
    text = "\x1b[31mred\x1b]0;title\x07\tend\x9b2J"
    show([text], [answer(text)], [[2.0]])
    output = capsys.readouterr().out
    assert not {"\x1b", "\x07", "\x9b", "\t"} & set(output)
    assert "positive 75.0%  \ufffd[31mred\ufffd]0;title\ufffd end\ufffd2J\n" in output
