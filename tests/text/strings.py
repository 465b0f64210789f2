"""Random and adversarial texts: what tokenizers of one vocabulary disagree about, if about anything."""

# Letters that look like others are the point here.
# ruff: noqa: RUF001

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

SPACES = "\t\n\v\f\r \x1c\x1d\x1e\x1f\x85\xa0\u1680\u2000\u2003\u2009\u200a\u2028\u2029\u202f\u205f\u3000\u180e\u200b\u200d\ufeff"
NUMBERS = "0123456789²½⅞١٢۳०९๓௧Ⅷↂ①㊿㉑〇一二𝟘𝟗𑁥𞣇\u3007\u0bf0\U0001f100"
LETTERS = "abzABZéßẞñÅøçıİſKΩωσςΣдЖяאבعرबकंीกิไทยকண한글日本語あカー々ǅǈʰªºⁿᴬꟲ𝐀𝕏𐐷𐐏ﬁﬃ"
MARKS = "\u0300\u0301\u0308\u0327\u034f\u05b4\u064b\u093c\u094d\u0e31\u20dd\u20e3\ufe0f\U0001e8d0\U000e0100"
SIGNS = "!?.,;:'\"’“-–—_/\\|<>[](){}@#$%^&*+=~`¡¿§¶·…«»€₿™©▁☺"
PICTURES = "🙂🚀👩‍👩‍👧🏳️‍🌈🇩🇪🫠🪿"
RECENT = "\u1c89\ua7cb\ua7dc\u0897\u1acf\u088f\u0c5c\U00010d40\U00010d50\U00011380\U00011bf0\U00016d40\U0001cc00\U0001fae9"
RECENT += "\U0002ebf0\U00031350\U000323b0"
"""Characters that the latest versions of Unicode brought: libraries that know another version cut text elsewhere there."""
CONTRACTIONS = (
    *("'s", "'S", "'ſ", "'t", "'T", "'re", "'RE", "'Re", "'ve", "'VE", "'m", "'M", "'ll", "'LL", "'lL", "'d", "'D"),
    *("’s", "'x", "''s"),
)
PIECES = (
    *("\r\n", "\n\n", "    ", "\t\t", " \n ", "\n/", "//", "://", "x=1;", "def f(x):\n    return x\n", "1,234.5"),
    *("Ünïcödé", "ABCdef", "aBc"),
)
CONTROLS = (
    *("<|begin_of_text|>", "<|eot_id|>", "<|eot|>", "<|image|>", "<s>", "</s>", "<unk>", "<0x41>", "<|", "|>", "[INST]"),
    *("\ufffd", "\x00"),
)
ALPHABETS = (
    *("abcdefghijklmnopqrstuvwxyz", "ABCDEFGHIJKLMNOPQRSTUVWXYZ", "éèêëàçüöäßñ", "абвгдежзийклмн", "אבגדהוזח"),
    *("いろはにほへと", "0123456789"),
)


def strings(count: int, seed: int, tokens: Sequence[str] = ()) -> Iterator[str]:
    """`count` texts, the same for a seed. tokens: of a vocabulary, to be put together in ways that merging may not expect."""
    source = random.Random(seed)
    makers = (_any_characters, _of_classes, _spaced, _words, _pieces, _repeated)
    for _ in range(count):
        if tokens and source.random() < 0.2:
            yield "".join(source.choices(tokens, k=source.randrange(1, 8)))
        else:
            yield source.choice(makers)(source)


def _any_characters(source: random.Random) -> str:
    planes = ((0, 0x80), (0x80, 0x800), (0x800, 0xD800), (0xE000, 0x10000), (0x10000, 0x20000), (0x20000, 0x110000), (0xD800, 0xE000))
    weights = (8, 6, 6, 2, 4, 1, 0.3)
    chosen = source.choices(planes, weights, k=source.randrange(20))
    return "".join(chr(source.randrange(*plane)) for plane in chosen)


def _of_classes(source: random.Random) -> str:
    classes = (SPACES, NUMBERS, LETTERS, MARKS, SIGNS, PICTURES, RECENT)
    chosen = source.choices(classes, (5, 4, 8, 3, 4, 1, 1), k=source.randrange(30))
    return "".join(source.choice(characters) for characters in chosen)


def _spaced(source: random.Random) -> str:
    return "".join(source.choice(SPACES + "  \n\n   a1.") for _ in range(source.randrange(25)))


def _words(source: random.Random) -> str:
    words = []
    for _ in range(source.randrange(12)):
        alphabet = source.choice(ALPHABETS)
        word = "".join(source.choices(alphabet, k=source.randrange(1, 9)))
        words.append(word + source.choice(("", "", "", ".", ",", *CONTRACTIONS)))
    return source.choice((" ", " ", "  ", "\n", "", "-")).join(words)


def _pieces(source: random.Random) -> str:
    return "".join(source.choice((*PIECES, *CONTRACTIONS, *CONTROLS, " ", "a")) for _ in range(source.randrange(10)))


def _repeated(source: random.Random) -> str:
    return source.choice(LETTERS + SIGNS + SPACES + NUMBERS + MARKS) * source.randrange(1, 60) + source.choice(("", "a", " ", "\n", "1"))
