"""Dates as people write them, in seven languages, and as ISO 8601 has them: the data of the date translation."""

import dataclasses
import datetime
import random
import string
from collections.abc import Callable, Sequence

from babel.dates import format_date

# In the letters of babel.dates; # stands for the ordinal's ending. What is only digits is written as nobody but the
# Germans (dots) and the Dutch (dashes) do it, day first: 03/04/1998 could be either.
PATTERNS = {
    "en": [
        "MMMM d, y",
        "MMM d, y",
        "d MMMM y",
        "d MMM y",
        "EEEE, MMMM d, y",
        "EEE, d MMM y",
        "MMMM d#, y",
        "'the' d# 'of' MMMM y",
        "EEEE, d# MMMM y",
        "y, MMMM d",
    ],
    "de": ["d. MMMM y", "'den' d. MMMM y", "EEEE, d. MMMM y", "EEEE, 'den' d. MMM y", "dd.MM.y", "d.M.y", "d. MMM y"],
    "fr": ["d# MMMM y", "'le' d# MMMM y", "EEEE d# MMMM y", "'le' EEEE d# MMMM y", "d MMM y", "EEE d MMM y"],
    "es": ["d 'de' MMMM 'de' y", "'el' d 'de' MMMM 'de' y", "EEEE d MMM y", "d 'de' MMMM 'del' y", "d MMM y"],
    "it": ["d# MMMM y", "EEEE d# MMMM y", "'il giorno' d MMMM y", "d MMM y", "EEE d MMM y"],
    "pt": ["d# 'de' MMMM 'de' y", "'em' d 'de' MMMM 'de' y", "EEEE, d MMM y", "d 'de' MMM 'de' y", "d MMM y"],
    "nl": ["d MMMM y", "EEEE d MMMM y", "'op' d MMMM y", "d MMM y", "EEE d MMM y", "dd-MM-y", "d-M-y"],
}
CASES: list[Callable[[str], str]] = [str, str, str.lower, str.upper, string.capwords]
FIRST_DAY, LAST_DAY = datetime.date(1900, 1, 1), datetime.date(2099, 12, 31)


@dataclasses.dataclass(frozen=True)
class Written:
    """A date in a human hand."""

    text: str
    iso: str
    language: str


def written_dates(n: int, seed: int) -> list[Written]:
    """As many different days, each in some language and form, tidy or not."""
    chance = random.Random(seed)
    days = chance.sample(range(FIRST_DAY.toordinal(), LAST_DAY.toordinal() + 1), n)
    return [write(datetime.date.fromordinal(day), chance.choice(list(PATTERNS)), chance) for day in days]


def write(date: datetime.date, language: str, chance: random.Random) -> Written:
    """One date, in a random form of the language."""
    text = format_date(date, chance.choice(PATTERNS[language]), locale=language)
    text = text.replace("#", ordinal_ending(date.day, language))
    text = chance.choice(CASES)(text)
    if chance.random() < 0.25:
        text = mistyped(text, chance)
    if chance.random() < 0.25:
        text = spaced(text, chance)
    return Written(text, date.isoformat(), language)


def ordinal_ending(day: int, language: str) -> str:
    """What makes 3 the 3rd; outside English only the first of a month has it."""
    if language == "en":
        return "th" if 11 <= day <= 13 else {1: "st", 2: "nd", 3: "rd"}.get(day % 10, "th")
    return {"fr": "er", "it": "º", "pt": "º"}.get(language, "") if day == 1 else ""


def mistyped(text: str, chance: random.Random) -> str:
    """One slip in a word of five letters or more: a letter twice, or two neighbours swapped.

    No letter is lost, since the n in "junio" is all that tells it from "julio".
    """
    places = [i for i in range(1, len(text) - 3) if text[i - 1 : i + 4].isalpha()]
    if not places:
        return text
    i = chance.choice(places)
    slip = text[i] * 2 + text[i + 1] if chance.random() < 0.5 else text[i + 1] + text[i]
    return text[:i] + slip + text[i + 2 :]


def spaced(text: str, chance: random.Random) -> str:
    """One or two spaces too many, at either end or where there is one already."""
    for _ in range(chance.randint(1, 2)):
        i = chance.choice([0, len(text), *[i for i, letter in enumerate(text) if letter == " "]])
        text = f"{text[:i]} {text[i:]}"
    return text


def days_held_out(dates: Sequence[Written], share: float) -> tuple[list[Written], list[Written]]:
    """Training dates and the rest, which are other days, none of them written as in training."""
    n = max(round(share * len(dates)), 1)
    known = {date.text for date in dates[n:]}
    return list(dates[n:]), [date for date in dates[:n] if date.text not in known]
