"""What a prediction is before it is scored: a text that answers, or one that is none."""

import re

# How programs write a value that is missing, where they write it as text.
_MISSING = {
    **dict.fromkeys(("nan", "NaN", "NAN"), "NaN"),
    **dict.fromkeys(("None", "null", "NULL", "undefined", "<NA>", "NaT", "#N/A"), "null"),
}
# How programs write an error where a caption belongs.
_ERROR = re.compile(
    r"\s*(?:[\[(]?(?i:error|exception)[\])]?\s*:|[A-Z]\w*(?:Error|Exception)\s*[:(]"
    r"|Traceback \(most recent call last\)|(?i:<!doctype html|<html\b|http (?:error )?[45]\d\d\b))",
)
_UNABLE = (
    r"(?:can(?:not|'t| not)|could(?: not|n't)|(?:am|'m|are|is|was) (?:not able|unable)|unable"
    r"|will not|won't|must decline|decline|refuse)"
)
_DO = (
    r"(?:assist|help|answer|comply|determine|identify|tell|say|judge|provide|describe|analy[sz]e|watch"
    r"|process|view|access|fulfil\w*|continue|generate|create|engage|discuss|choose|decide|know"
    r"|see (?:the|this|any|your|a)(?: \w+)? (?:video|clip|file|media)|be determined)"
)
_CANNOT = re.compile(
    rf"\b{_UNABLE}\s(?:\w+\s){{0,4}}?(?:to\s)?(?:\w+\s){{0,2}}?{_DO}\b"
    r"|\bas an? (?:ai|artificial|language model|large language)"
    r"|\b(?:do not|don't) (?:know|have (?:access|enough|the ability|any way))"
    r"|无法|不能|作为(?:一个|一名)?(?:ai|人工智能)",
    re.IGNORECASE,
)
_UNKNOWN = re.compile(
    r"\b(?:not|isn't)\s(?:enough|sufficient|clear|sure|certain|possible to)\b"
    r"|\b(?:insufficient|unclear|uncertain|unsure|undetermined|impossible to|unknown)\b"
    r"|\b(?:hard|difficult) to (?:say|tell|determine)\b"
    r"|^\W*(?:i'm |i am )?(?:so |very )?sorry\b|\bapologi[sz]e\b"
    r"|^no (?:answer|idea|comment)\b|^(?:i )?(?:decline|refuse|pass)\b|^n/a\W*$|抱歉|对不起",
    re.IGNORECASE,
)
_TASK = re.compile(  # what is refused: a caption may tell of people who cannot help
    r"\b(?:assist|help with|help you|comply|request|videos?|clips?|images?|footage|content|audio"
    r"|captions?|media|files?|text)\b|视频|请求|协助|帮",
    re.IGNORECASE,
)
_BEGINS = re.compile(
    r"\W*(?:(?:i'm|i am|we are|we're)? ?(?:so |very |really )?sorry\b|(?:i|we) (?:do )?apologi[sz]e"
    r"|apologies|unfortunately,? (?:i|we)\b|unable to|as an? (?:ai|artificial|large|language model)"
    r"|(?:i|we) (?:can(?:not|'t| not)|am unable|are unable|am not able|won't|will not|do not have"
    r"|don't have|must decline|refuse|decline)|i'm (?:unable|not able)|很?抱歉|对不起|我无法"
    r"|作为(?:一个|一名)?(?:ai|人工智能))",
    re.IGNORECASE,
)
_LONGEST = 400  # characters of a refusal; a caption that is longer describes something


def missing(text: str) -> str | None:
    """ "NaN" or "null" for a text that is a program's mark of a missing value; else None."""
    return _MISSING.get(text.strip())


def is_error(text: str) -> bool:
    """True if a text is the message of a program that failed: "Error: ...", a page of HTML, ..."""
    return _ERROR.match(text) is not None


def is_refusal(text: str) -> bool:
    """True if a text says that the answer cannot be given, or is not known."""
    text = text.replace("’", "'")
    return any(pattern.search(text) is not None for pattern in (_CANNOT, _UNKNOWN))


def is_refused_task(text: str) -> bool:
    """True if a free text, such as a caption, is a refusal to write it: short, and begins as one.

    A caption may tell of people who are sorry or who do not know.
    """
    text = text.strip().replace("’", "'")
    if len(text) > _LONGEST or _BEGINS.match(text) is None:
        return False
    return _CANNOT.search(text) is not None and _TASK.search(text) is not None
