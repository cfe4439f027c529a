"""Words of a text in any script, by the rules of Unicode and without a dictionary.

    words("Well-known: the café's 2 cats")  ->  well known the café s 2 cats
    words("一个女人在做饭 with 2 cats")        ->  一 个 女 人 在 做 饭 with 2 cats

A word is a run of letters, digits and underscores with the marks that belong to them: vowel signs,
accents, joiners. In scripts that are written without spaces between words (Chinese, Japanese, Thai,
Lao, Khmer, Burmese, Tibetan, ...) each character is a word, with its marks: to find their words
takes a dictionary (ICU), and a count or a comparison of characters serves as well. Korean has
spaces. Punctuation and emoji are no words.

Words are compared in lower case and in one of the forms that Unicode calls compatible (NFKC):
composed or decomposed accents, full-width letters and half-width kana are no difference.
For text in ASCII, `words` equals `re.findall(r"\\w+", text.lower())`. Linear in the text's length.
"""

import unicodedata

import regex

# Without spaces between words. By Unicode's script extensions, so that ー and 々 are among them.
SCRIPTS = (
    "Hani", "Hira", "Kana", "Bopo", "Yiii", "Tang", "Nshu",
    "Thai", "Laoo", "Khmr", "Mymr", "Tibt", "Tale", "Talu", "Lana", "Tavt", "Java", "Bali",
)  # fmt: skip
LONGEST_MARKS = 30  # after one letter; more are dropped (UAX #15, Stream-Safe Text Format)

_ALL = "".join(rf"\p{{scx={script}}}" for script in SCRIPTS)
_SPACELESS = rf"[[\p{{L}}\p{{Nl}}]&&[{_ALL}]]"
# A letter with its marks; with letters that are stacked under it (Khmer, Burmese), and with the
# second half of am (Thai, Lao), which NFKC takes apart.
_MARKED = r"\X\p{M}*+"
_STACKED = rf"(?<=\p{{InSC=Invisible_Stacker}})(?={_SPACELESS}){_MARKED}"
_AM = r"(?<=[\u0e4d\u0ecd])[\u0e32\u0eb2]\p{M}*+"
_CHARACTER = rf"(?={_SPACELESS}){_MARKED}(?:{_STACKED}|{_AM})*+"
# Marks but no frames around letters (keycaps); non-joiner, joiner and soft hyphen
_INSIDE = r"[\p{L}\p{N}_\p{Mn}\p{Mc}\u200c\u200d\u00ad--\p{Variation_Selector}]"
_RUN = rf"[\p{{L}}\p{{N}}_]{_INSIDE}*+"
_SPACED = rf"[[\p{{L}}\p{{N}}_]--{_SPACELESS}][{_INSIDE}--{_SPACELESS}]*+"


def _compiled(pattern: str) -> regex.Pattern:
    return regex.compile(pattern, regex.V1)


WORD = _compiled(f"{_CHARACTER}|{_SPACED}")
_RUNS, _CHARACTERS, _WITHOUT_SPACES = map(_compiled, (_RUN, _CHARACTER, _SPACELESS))
_INVISIBLE = _compiled(r"[\p{Variation_Selector}\u200c\u200d\u00ad]")
_MARKS = _compiled(rf"(\p{{M}}{{{LONGEST_MARKS}}})\p{{M}}++")


def words(text: str) -> list[str]:
    """Return the words of a text in lower case, without punctuation and emoji."""
    return [plain(word) for word in WORD.findall(text)]


def spaced_words(text: str) -> str:
    """Return the text in lower case with one space in place of punctuation, emoji and spaces.

    Characters of scripts without spaces stay together.
    """
    return " ".join(plain(run) for run in _RUNS.findall(text))


def count_words(text: str) -> int:
    """Count as readers do: what stands between spaces is one word ("well-known", "it's", "-").

    Where it has characters of scripts without spaces, each of them is one, and so is each word of
    another script beside them: "我爱ABC。" has three.
    """
    pieces = text.split()
    if _WITHOUT_SPACES.search(text) is None:
        return len(pieces)
    return sum(max(1, _count(piece)) for piece in pieces)


def plain(word: str) -> str:
    """Return the form in which words are compared."""
    if word.isascii():
        return word.lower()
    word = _MARKS.sub(r"\1", _INVISIBLE.sub("", word))  # NFKC takes quadratic time over marks
    return unicodedata.normalize("NFKC", word).lower()


def _count(piece: str) -> int:
    others = sum(_RUNS.search(rest) is not None for rest in _CHARACTERS.split(piece))
    return len(_CHARACTERS.findall(piece)) + others
