"""Whether a response holds the answer."""

from __future__ import annotations

import re
from collections.abc import Sequence

_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")
_MARKERS = ("the answer is", "answer:", "####")


def found(response: str, answer: str) -> bool:
    """Whether the answer stands in the response as a word or number of its own, whatever the case."""
    pattern = rf"(?<![\w.]){re.escape(answer.strip())}(?!\w)(?!\.\d)"
    return re.search(pattern, response, flags=re.IGNORECASE) is not None


def share_found(response: str, answers: Sequence[str]) -> float:
    """The share of answers found."""
    return sum(found(response, a) for a in answers) / len(answers)


def final_part(response: str) -> str:
    """What follows the last "the answer is", "answer:" or "####"; the whole response where there is none."""
    lowered = response.lower()
    ends = [lowered.rfind(marker) + len(marker) for marker in _MARKERS if marker in lowered]
    return response[max(ends) :] if ends else response


def number_matches(response: str, answer: str, *, first: bool) -> bool:
    """Whether the first (or the last) number of a response equals the answer as a number."""
    part = final_part(response)
    numbers = _NUMBER.findall(part)
    if not numbers:
        return False
    pick = numbers[0] if first or part is not response else numbers[-1]
    try:
        return float(pick.replace(",", "")) == float(answer.replace(",", ""))
    except ValueError:
        return False
