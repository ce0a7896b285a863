"""An answer in the terminal: words shaded by what they brought to it."""

import io
import sys
from collections.abc import Sequence

import regex
from rich.console import Console
from rich.text import Text

from service.answers import Answer
from service.types import Token

# A word as a reader sees it, accents that are code points of their own included; or a run of marks
# and emoji, whose joiners the library would count among letters.
_INNER = r"[\p{L}\p{N}\p{M}_]"
_WORD = regex.compile(rf"[\p{{L}}\p{{N}}_]{_INNER}*(?:['’-]{_INNER}+)*|[^\s\p{{L}}\p{{N}}_]+")
LEGEND = (
    "green and +: toward the answer, red and -: against it; all of a text, with the bias, add up "
    "to its logit less the mean of the others'"
)
FAINTEST = 1 / 8  # of the strongest word: what brought less stays unshaded
NAMED = 8  # words listed with their numbers
# A text may be anyone's: what it says to the terminal is not passed on. One for one, so that
# offsets hold.
_CONTROLS = dict.fromkeys((*range(32), *range(127, 160)), "\N{REPLACEMENT CHARACTER}")
_CONTROLS |= dict.fromkeys(map(ord, "\t\n\r"), " ")


def show(
    texts: Sequence[str], answers: Sequence[Answer], shares: Sequence[Sequence[float]] | None
) -> None:
    """Print one line a text; with the `shares` of its tokens, shade its words and name some, and
    say at the end what the shades mean."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # of what this terminal has no character for
    console = Console(soft_wrap=True, highlight=False)
    for i, (given, answer) in enumerate(zip(texts, answers, strict=True)):
        text = given.translate(_CONTROLS)
        unsure = " (unsure)" if answer.abstained else ""
        cut = " (cut short)" if answer.truncated else ""
        head = Text(f"{answer.label} {answer.probability:.1%}{unsure}{cut}  ")
        body = Text(text)
        if shares is None:
            console.print(head + body)
            continue
        words = by_word(text, answer.tokens, shares[i])
        largest = max((abs(share) for _, _, share in words), default=0.0) or 1.0
        for start, end, share in words:
            if abs(share) >= FAINTEST * largest:
                strength = round(40 + 160 * abs(share) / largest)
                colour = f"rgb(0,{strength},0)" if share > 0 else f"rgb({strength},0,0)"
                body.stylize(f"white on {colour}", start, end)
        console.print(head + body)
        words.sort(key=lambda word: -abs(word[2]))
        named = "  ".join(f"{text[a:b]} {share:+.2f}" for a, b, share in words[:NAMED])
        console.print(Text("  " + named))
    if shares is not None:
        console.print(Text(LEGEND, style="dim"))


def by_word(
    text: str, tokens: Sequence[Token], shares: Sequence[float]
) -> list[tuple[int, int, float]]:
    """Start, end and share of each word: the sum over the tokens that begin in it.

    What begins in no word (white space) is a word of its own, so that nothing is lost.
    """
    spans = [match.span() for match in _WORD.finditer(text)]
    totals: dict[tuple[int, int], float] = {}
    for token, share in zip(tokens, shares, strict=True):
        whole = next((s for s in spans if s[0] <= token.start < s[1]), (token.start, token.end))
        totals[whole] = totals.get(whole, 0.0) + share
    return [(start, end, share) for (start, end), share in sorted(totals.items())]
