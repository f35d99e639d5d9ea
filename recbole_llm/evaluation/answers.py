"""From the text of an answer to the candidate that it names: two written rules.

Only the first line of an answer that is not empty counts. It and the titles are compared in lower case, with each run
of white space as one space, and without quotation marks, list marks and full stops around them.

* ``strict``: the line is the title of exactly one candidate.
* ``substring``: the title of exactly one candidate stands in the line (the rule of LLaRA's code). An answer ``Aliens``
  is not valid where both ``Alien`` and ``Aliens`` are candidates.

Any other answer is not valid, and counts as a wrong one.
"""

from collections.abc import Callable, Sequence

_AROUND = " \t\"'`*.,;:-–—“”‘’«»()[]"  # noqa: RUF001 (as answers have them)
NONE = -1


def first_line(answer: str) -> str:
    """Return the first line of an answer that is not empty, as it is compared."""
    lines = (normal(line) for line in answer.splitlines())
    return next(filter(None, lines), "")


def normal(text: str) -> str:
    """Return a title or a line as it is compared; a title of nothing but marks keeps them."""
    spaced = " ".join(text.casefold().split())
    return spaced.strip(_AROUND) or spaced


def strict(answer: str, titles: Sequence[str]) -> int:
    """Return the place in `titles` of the one title that the answer is, or `NONE`.

    Args:
        answer: the whole answer.
        titles: of the candidates.
    """
    line = first_line(answer)
    return _only([place for place, title in enumerate(titles) if line and normal(title) == line])


def substring(answer: str, titles: Sequence[str]) -> int:
    """Return the place in `titles` of the one title that stands in the answer, or `NONE`. See `strict`."""
    line = first_line(answer)
    return _only([place for place, title in enumerate(titles) if normal(title) in line and normal(title)])


def _only(places: list[int]) -> int:
    return places[0] if len(places) == 1 else NONE


RULES: dict[str, Callable[[str, Sequence[str]], int]] = {"strict": strict, "substring": substring}
