"""Personal data out of what is published: e-mail addresses and phone numbers, in Latin and Bengali digits.

A long number that is none (an account, an identity card) goes as well: better one too many than one too few. Short
ones stay, for 999 and ১০৯ are the help that a text names.
"""

from __future__ import annotations

import regex

EMAIL, PHONE = "[ই-মেইল]", "[ফোন]"
_EMAIL = regex.compile(r"[\p{L}\p{M}\p{N}._%+-]+\s?@\s?[\p{L}\p{M}\p{N}-]+(?:\.[\p{L}\p{M}\p{N}-]+)+")
# Nine digits or more, of any script, with what people put between them (a date has eight); joiners are not seen.
_DIGITS = regex.compile(r"[+(]{0,2}\p{Nd}(?:[ \t\u00a0().\-–\u200b-\u200d]{0,3}\p{Nd}){8,}")
# What begins neither with + nor 0 and has no four digits in a row is a list of short numbers.
_PHONE = regex.compile(r"[+(]*(?:\+|[0০])|.*\p{Nd}{4}")


def scrub(text: str) -> tuple[str, int]:
    """`text` with each address and number replaced by what it was, and how many there were."""
    text, addresses = _EMAIL.subn(EMAIL, text)
    numbers = 0

    def phone(found: regex.Match[str]) -> str:
        nonlocal numbers
        if not _PHONE.match(found[0]):
            return str(found[0])
        numbers += 1
        return PHONE

    text = _DIGITS.sub(phone, text)
    return text, addresses + numbers
