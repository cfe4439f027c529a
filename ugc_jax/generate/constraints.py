"""JSON schemas as constraints of a completion: which tokens may come next, by llguidance.

The library parses the text so far by the schema's grammar, and gives a bit for each token of the
vocabulary. The end-of-text token may come where the text satisfies the schema, so that a completion
which ends by it does.
"""

import json

import numpy as np

from ugc_jax.data.prompt import ChatTokenizer
from ugc_jax.errors import UserError, require_extra

# White space between the parts of a value: unlimited, a model may write it for ever.
_SPACE = r"[ \n]{1,32}"


class Schemas:
    """Compiles JSON schemas for the tokens of one model. Thread-safe."""

    def __init__(self, tokenizer: ChatTokenizer, vocabulary: int):
        """vocabulary: of the model, which may have ids that the tokenizer has not.

        Raises EnvironmentFailure without the library.
        """
        require_extra("serve", "a JSON schema")
        import llguidance

        self._library, self._words = llguidance, -(-vocabulary // 32)
        self._tokenizer = llguidance.LLTokenizer(
            tokenizer.to_json(), n_vocab=vocabulary, eos_token=tokenizer.turn_end
        )
        self._limits = llguidance.LLParserLimits(verbose_errors=False)

    def compile(self, schema: dict) -> "SchemaConstraint":
        """Return the constraint to a JSON value that satisfies a schema; {} is any object.

        Raises UserError, which names what, for a schema that is none or has a part that cannot be
        guaranteed while the text is written.
        """
        matcher = self._library.LLMatcher
        spaces = {"whitespace_pattern": _SPACE}
        try:
            text = json.dumps(schema or {"type": "object"})
            grammar = matcher.grammar_from_json_schema(text, overrides=spaces)
            made = matcher(self._tokenizer, grammar, log_level=0, limits=self._limits)
            fault = made.get_error()
        except (TypeError, ValueError, RecursionError) as error:
            fault = str(error)
        if fault:
            raise UserError(f"schema: {_line(fault)}; leave that part out or write it differently")
        return SchemaConstraint(made, self._words)


class SchemaConstraint:
    """An `engine.Constraint`."""

    def __init__(self, matcher, words: int):
        self._matcher = matcher
        self.first = np.zeros(words, np.uint32)
        self.matcher().allow(self.first)

    def matcher(self) -> "SchemaMatcher":
        return SchemaMatcher(self._matcher.deep_copy())


class SchemaMatcher:
    """An `engine.Matcher`."""

    def __init__(self, matcher):
        self._matcher = matcher

    def allow(self, bits_W: np.ndarray):
        bits_W[:] = np.frombuffer(self._matcher.compute_bitmask(), np.uint32)[: len(bits_W)]
        self._check()

    def take(self, token: int):
        self._matcher.consume_token(token)
        self._check()

    def _check(self):
        if self._matcher.is_error():
            raise UserError(
                f"schema: {_line(self._matcher.get_error())}; give a simpler one, with bounds on "
                "the length of strings and arrays"
            )


def _line(fault: str) -> str:
    return " ".join(fault.split())[:300]
