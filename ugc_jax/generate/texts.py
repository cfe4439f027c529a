"""The text of a completion while its tokens come: whole characters, up to a stop string."""

import codecs
from collections.abc import Callable, Sequence


class TextStream:
    """The text of one completion, of which each token adds a part.

    The parts together are the text of all tokens without the white space around it, up to the first
    stop string. A character over several tokens comes with the last of them; text that could begin
    a stop string, and white space that could be the end, wait for what follows.
    """

    def __init__(self, bytes_of: Callable[[int], bytes], stop: Sequence[str] = ()):
        """bytes_of: what a token adds to the text (`ChatTokenizer.bytes_of`). stop: not empty."""
        self._bytes_of, self._stop = bytes_of, stop
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""  # may begin a stop string
        self._space = ""  # may be the white space at the end
        self._begun = False
        self.stopped = False  # by a stop string; the text is complete

    def add(self, token: int) -> str:
        """Return the part of the text that is certain now and was not before."""
        return self._certain(self._decoder.decode(self._bytes_of(token)))

    def end(self) -> str:
        """Return the rest of the text, after the last token."""
        rest = self._certain(self._decoder.decode(b"", final=True))
        held, self._held = self._held, ""
        return rest + self._stripped(held)

    def _certain(self, text: str) -> str:
        if self.stopped:
            return ""
        text = self._held + text
        found = [at for at in map(text.find, self._stop) if at >= 0]
        if found:
            self.stopped, self._held = True, ""
            return self._stripped(text[: min(found)])
        most = max(map(len, self._stop), default=1) - 1
        size = next(
            (n for n in range(min(most, len(text)), 0, -1) if self._begins_stop(text[-n:])), 0
        )
        self._held = text[len(text) - size :]
        return self._stripped(text[: len(text) - size])

    def _begins_stop(self, text: str) -> bool:
        return any(one.startswith(text) for one in self._stop)

    def _stripped(self, text: str) -> str:
        text = self._space + text
        if not self._begun:
            text = text.lstrip()
        body = text.rstrip()
        self._begun = self._begun or bool(body)
        self._space = text[len(body) :]
        return body
