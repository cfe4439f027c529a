"""The option that an answer chooses, read as a whole answer; or why it chooses none.

    "B", "(b) Negative", "Answer: Negative.", {"answer": "negative"}    the option
    "The tone is negative, as she cries."                               the option
    "Not negative", "It is neither"                                     a negation
    "Positive or negative"                                              several
    "I cannot determine the tone."                                      a refusal
    "He describes a negative."                                          unclear

A sentence chooses an option only in one of the few forms in which answers are given (`_LEAD`,
`_TAIL`): an option that merely occurs in a text is not chosen, whatever stands around it.
"""

import re
import unicodedata
from collections.abc import Sequence
from typing import NamedTuple

from ugc_jax.evals.texts import is_refusal
from ugc_jax.judge.messages import final_object, unfenced


class Choice(NamedTuple):
    """option: in its spelling; None if the answer chooses none.

    failure: why the answer chooses none: "refusal", "negation", "several", "unclear" (an option
    occurs, but not as the answer) or "empty"; None also for an answer without any of the options.
    """

    option: str | None
    failure: str | None = None


_KEYS = {"answer", "final_answer", "choice", "option", "label", "prediction", "response", "result"}
# Options stand in a text as characters of a private-use area, so that the grammar is theirs.
_FIRST = 0xE000
_MARK = re.compile("[\ue000-\uf8ff]")
# Words that are an option only where a clause ends: "No, it is" against "no music".
_FUNCTION = {"yes", "no", "not", "none", "true", "false", "neither", "nothing"}
_CLAUSE_END = r"(?=\s*(?:$|[\n.,;:!?)/|–—-]|(?:or|and|because|since|as)\b))"

_NEGATOR = re.compile(
    r"\b(?:not|no|nor|neither|never|none|nothing|nobody|without|hardly|cannot|lack\w*|absent|absence"
    r"|false|wrong|incorrect|unlike|opposite|non)\b|n't\b|不是|并非|没有"
)
_OPPOSED = re.compile(  # what stands before an option that the answer is not
    r"(?:\b(?:not|rather than|instead of|no|nor|never|neither|without|unlike|opposed to|than)\b"
    r"|n't\b)[^,.;:]*$"
)
_CONNECTIVE = (
    r"(?:so|thus|therefore|hence|then|and|but|well|ok|okay|sure|overall|in conclusion|in summary"
    r"|(?:i|we) (?:think|believe|guess|say)(?: that)?|(?:i|we)(?:'d| would) say(?: that)?"
    r"|to sum up|as an ai),? "
)
_IS = r"(?:'s|(?: is|:| was| has| seems| appears| sounds| feels| conveys| must be| should be)+)"
_ANSWER = r"(?:answer|option|choice|label|category|verdict)"
_ABOUT = r"(?:tone|mood|voice|source|video|clip|sentiment|emotion|atmosphere)"
_LEAD = re.compile(
    rf"(?:{_CONNECTIVE})*"
    rf"(?:(?:the |my )?(?:final |correct |right |best )*{_ANSWER}"
    rf"(?: (?:to|for|of)(?: \w+){{1,4}}?)?(?:{_IS})?"
    rf"|(?:it|this|that){_IS}"
    rf"|(?:the |this |its )?(?:[\w'-]+ ){{0,3}}?{_ABOUT}"
    rf"(?: (?:of|in|used in)(?: [\w'-]+){{1,4}}?)?{_IS}"
    r"|(?:i|we)(?:'d|'ll| would| will)? (?:choose|pick|select|answer|say|go with)"
    r")? ?"
)
_FILL = re.compile(
    r"(?:(?<![\w'-])(?:an?|the|clearly|definitely|mostly|mainly|generally|overall|primarily"
    r"|predominantly|probably|likely|most|very|quite|simply|just|best|(?:described|classified"
    r"|categorized|labell?ed) as|considered|to be|option|letter|category)[ :]+)+$"
)
_TAIL = re.compile(
    r"(?: (?:tone|mood|voice|sentiment|emotion|one|option|answer|overall|here|in tone"
    r"|(?:of|in|for) (?:this|the) (?:video|clip)))*"
    r"(?: (?:is|would be) (?:the )?(?:\w+ )?(?:answer|option|choice|correct|right))?"
    r"(?:\s*$|\s*[.!,;:()].*|\s[–—-]+\s.*"
    r"|\s(?:because|since|as|rather than|instead of|not|and not)\b.*)",
    re.DOTALL,
)
# "not positive but" before the option that is chosen
_CORRECTED = re.compile(
    rf"\bnot (?:(?:an?|the|really|option) )?{_MARK.pattern}(?: \w+)?,? but (?:rather |instead )?"
)
_TAKEN_BACK = re.compile(  # "Positive. Not!"
    r"[\s.-]*(?:i (?:think|guess|suppose) )?(?:no|not|wrong|false|incorrect)[\s.!-]*"
)
_REPORTED = re.compile(r"\b(?:says|said|claims|thinks|calls|tells|told|asks|asked|if)\b")
_CLAUSES = re.compile(r"[,;:]\s*|\s[–—-]+\s|\s(?=so\s)")
_MOST = 200  # characters before an option that tell whether it is chosen: reading is linear


def read_choice(text: str, options: Sequence[str]) -> Choice:
    """The option that an answer, without thinking, chooses.

    Upper and lower case are equal. An answer names the option by its words (whatever joins them) or
    by its letter ("B", "(b)", "Option B"), alone, in a sentence that gives the answer, or in JSON
    under a key such as "answer". What explains the answer may mention others as those that it is
    not. An answer that is marked as one ("Final answer: ...") stands above other sentences.
    """
    content = final_object(text)
    if content:
        named = set(map(_plain, options))
        values = [value for key, value in content.items() if key.lower() in _KEYS]
        if not values and named & set(map(_plain, content)):  # {"positive": "yes", ...}
            return Choice(None, "unclear")
        if not values:
            exact = [value for value in content.values() if _plain(str(value)) in named]
            values = exact or list(content.values())
        values = [
            one for value in values for one in (value if isinstance(value, list) else [value])
        ]
        if all(value in (None, "") for value in values):
            return Choice(None, "empty")
        if not all(isinstance(value, str) for value in values):  # {"answer": true}
            return Choice(None, "unclear")
        text = "\n".join(values)
    plain = _plain(unfenced(text))
    marked = _CORRECTED.sub("", _marked(plain, options))
    sentences = re.split(r"\n+|(?<=[.!?;])\s+", marked)
    found = [_statement(sentence, options) for sentence in sentences]
    found = [one for one in found if one is not None]
    if found and any(map(_TAKEN_BACK.fullmatch, sentences)):
        return Choice(None, "negation")
    if found:
        highest = max(rank for rank, _ in found)
        chosen = set().union(*(marks for rank, marks in found if rank == highest))
        if len(chosen) == 1:
            return Choice(options[ord(chosen.pop()) - _FIRST])
        return Choice(None, "several" if chosen else "negation")
    mentioned = set(_MARK.findall(marked))
    if is_refusal(plain):
        return Choice(None, "refusal")
    if not mentioned and re.match(r"\W*(?:none|neither)\b", plain):
        return Choice(None, "negation")
    if not mentioned:
        words = set(re.findall(r"\w+", marked))
        # "There is no music", of yes and no
        is_near = words & _FUNCTION & {option.lower() for option in options}
        return Choice(None, "unclear" if is_near else None)
    if _NEGATOR.search(marked):
        return Choice(None, "negation")
    return Choice(None, "several" if len(mentioned) > 1 else "unclear")


def _plain(text: str) -> str:
    """Lower case, without quotation marks, Markdown, brackets and LaTeX boxes."""
    text = unicodedata.normalize("NFKC", _MARK.sub(" ", text)).casefold().replace("。", ". ")
    text = re.sub(r"<\|[^|<>]{0,40}\|>", "", text)  # special tokens
    text = re.sub(r"\\(?:boxed|text|textbf|mathrm)\b", "", re.sub("[‘’]", "'", text))
    text = re.sub(r"[*`\"“”«»{}\[\]$#<>]|(?<!\w)'|'(?!\w)", "", text)
    return re.sub(r"[^\S\n]+", " ", re.sub(r"\s*\n\s*", "\n", text)).strip()


def _marked(text: str, options: Sequence[str]) -> str:
    """A plain text with a character of `_MARK` for each option that it names."""
    words = {o: r"[\W_]*".join(map(re.escape, re.findall(r"[^\W_]+", _plain(o)))) for o in options}
    # longest first: "not applicable" is not "not"
    for option in sorted(options, key=len, reverse=True):
        pattern = words[option]
        if not pattern or list(words.values()).count(pattern) > 1:  # "+" and "-"
            pattern = re.escape(option.casefold())
        end = _CLAUSE_END if option.lower() in _FUNCTION else ""
        mark = chr(_FIRST + options.index(option))
        text = re.sub(rf"(?<![^\W_]){pattern}(?![^\W_]){end}", mark, text)
    # a letter beside the words is the model's own: the questions have none
    text = re.sub(rf"(?<!\w)\(?[a-z][.):]+\s*(?={_MARK.pattern})", "", text)
    if not options:
        return text
    last = chr(ord("a") + min(len(options), 26) - 1)
    if _MARK.search(text):
        before = r"(?:(?<=\banswer is )|(?<=\banswer: ))"
        letter = re.compile(rf"{before}\(?([a-{last}])\)?(?=\s*(?:$|[\n,;:!?)]|\.(?!\w)))")
        return letter.sub(lambda match: chr(_FIRST + ord(match[1]) - ord("a")), text)
    letter = re.compile(
        rf"(?:(?<![^\n,;:./|])|(?<=\b(?:is|be|or)\s)|(?<=\bnot\s)|(?<=\b(?:and|nor|say)\s)"
        rf"|(?<=\b(?:it's|pick)\s)|(?<=\boption\s)|(?<=\bchoice\s)|(?<=\banswer\s)|(?<=[,;:/|]\s)"
        rf"|(?<=\beither\s)|(?<=\bneither\s)|(?<=\bchoose\s)|(?<=\bselect\s)|(?<=\bwith\s))"
        rf"\(?([a-{last}])\)?(?=\s*(?:$|[\n,;:!?)/|]|\.(?!\w))|\s(?:is|or|and|nor|because|since)\b)"
    )
    return letter.sub(lambda match: chr(_FIRST + ord(match[1]) - ord("a")), text)


def _statement(sentence: str, options: Sequence[str]) -> tuple[int, set[str]] | None:
    """(rank, marks) of a sentence that gives an answer; None for any other.

    rank: 2 for a final answer, 1 for one that is marked as an answer, else 0. marks: of the options
    that it chooses; none for an answer that it takes back.
    """
    found = _answer(sentence, 0, options)
    if found is not None or sentence.endswith("?"):
        return found
    negator = _NEGATOR.search(sentence)
    for split in _CLAUSES.finditer(sentence):
        found = _answer(sentence, split.end(), options)
        # "Not true: it is positive" is none; "she does not smile, so it is negative" is one
        is_bare = ":" in split[0] or _MARK.match(sentence, split.end()) is not None
        is_negated = negator is not None and negator.start() < split.start()
        if found is not None and not (is_negated and is_bare):
            return found
    return None


def _answer(sentence: str, start: int, options: Sequence[str]) -> tuple[int, set[str]] | None:
    """`_statement` of what begins at `start`."""
    mark = _MARK.search(sentence, start, start + _MOST)
    if mark is None or sentence.endswith("?"):
        return None
    lead, tail = sentence[start : mark.start()].lstrip(" -•>"), sentence[mark.end() :]
    lead = _FILL.sub("", lead)
    if not _LEAD.fullmatch(lead) or _NEGATOR.search(lead) or _REPORTED.search(lead):
        return None
    if not _TAIL.fullmatch(tail):
        return None
    rank = 2 if "final" in lead else int(re.search(rf"\b{_ANSWER}\b", lead) is not None)
    others = {
        other[0]
        for other in _MARK.finditer(tail)
        if other[0] != mark[0]
        and not _OPPOSED.search(tail[max(0, other.start() - _MOST) : other.start()])
    }
    # "Positive, not."; but "No, not at all" is a no
    takes_back = re.match(
        r"[\s,;:()–—.-]*(?:or |i (?:think|guess|suppose) )?"
        r"(?:not|no|wrong|false|never|incorrect)\b",
        tail,
    )
    is_function = options[ord(mark[0]) - _FIRST].lower() in _FUNCTION
    if takes_back and not is_function and not _MARK.search(tail):
        return rank, set()
    return rank, {mark[0], *others}
