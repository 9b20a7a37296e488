"""Text as it is kept, and text as it is compared.

`normal` repairs what is broken and changes no word: the table is our own, because each normaliser for Bengali that can
be installed loses something (a hasanta, the joiner of র‍্যাব, an emoji, the digits). `canonical` and `letters` are for
comparing alone; nobody ever reads or trains on them.
"""

from __future__ import annotations

import re
import unicodedata

# Marks that are not seen and mean nothing inside a text: byte order marks, zero-width spaces, soft hyphens, direction
# marks. The two joiners stay, for they decide how a Bengali conjunct or an emoji looks.
UNSEEN = re.compile("[\u00ad\u061c\u200b\u200e\u200f\u202a-\u202e\u2060-\u2064\u2066-\u206f\ufeff]")
LINE_ENDS = re.compile("\r\n?|[\x0b\x0c\x85\u2028\u2029]")
CONTROL = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f]")
SPACES = re.compile("[\u00a0\u1680\u2000-\u200a\u202f\u205f\u3000]")
WITHIN = re.compile(r"(?<=\S)(?:[ \t]{2,}|\t)(?=\S)")
BEFORE_END = re.compile(r"[ \t]+(?=\n|$)")
EMPTY_LINES = re.compile(r"\n{3,}")

# Spellings that look right and are other letters, which NFC leaves as they are (Unicode Standard 12.2): the text before
# 2005 wrote ৎ as a ta with hasanta and joiner, and আ and র are no letters with a sign.
BENGALI = (
    (re.compile("\u09a4\u09cd\u200d"), "\u09ce"),  # ত্ + ZWJ → ৎ
    (re.compile("\u0985\u09be"), "\u0986"),  # অ + া → আ
    (re.compile("\u09ac\u09bc"), "\u09b0"),  # ব + ় → র
    # ৷ counts annas beside another sign of old money; anywhere else the danda was meant.
    (re.compile("(?<![\u09f2-\u09f6\u09f8\u09f9])\u09f7(?![\u09f2-\u09f6\u09f8\u09f9])"), "\u0964"),
)

JOINERS = re.compile("[\u200c\u200d]")
MARKS = str.maketrans({"\u09f7": "\u0964", ".": "\u0964", "|": "\u0964", "\u0965": "\u0964"})


def normal(text: str) -> str:
    """`text` in NFC, with `\\n` for every line end, ordinary spaces, at most one between two words and one empty line
    between two paragraphs, nothing unseen, and Bengali letters in place of what only looks like them.

    The same again changes nothing. Indentation stays.
    """
    text = CONTROL.sub("", UNSEEN.sub("", SPACES.sub(" ", LINE_ENDS.sub("\n", text))))
    text = unicodedata.normalize("NFC", text)
    for broken, whole in BENGALI:
        text = broken.sub(whole, text)
    text = WITHIN.sub(" ", BEFORE_END.sub("", text))
    return EMPTY_LINES.sub("\n\n", text).strip()


def canonical(text: str) -> str:
    """The form of `normal` text in which look-alikes are equal: no joiners, case or width, one danda for every full
    stop, one space for all white space."""
    text = unicodedata.normalize("NFKC", text).casefold()
    if JOINERS.search(text):
        text = normal(JOINERS.sub("", text))
    return " ".join(text.translate(MARKS).split())


def letters(form: str) -> str:
    """A canonical form without spaces, punctuation and symbols; whole where it is nothing else, such as an emoji."""
    return form.translate({ord(one): None for one in set(form) if unicodedata.category(one)[0] not in "LMN"}) or form
