"""The frozen base of every settings class, and the one error a user can cause."""

from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field

# Seeds fit into 63 bits, the range that torch, numpy and JSON readers share.
Seed = Annotated[int, Field(ge=0, lt=2**63)]
LONGEST_SENTENCE = 600  # characters of an error message; longer ones are quoted keys, paths and values


class Settings(BaseModel):
    """Frozen, strict, and closed: an unknown key, a wrong type, NaN or infinity is an error.

    The string under a field becomes the field's description in `schema.json`.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )
    added_later: ClassVar[frozenset[str]] = frozenset()
    """Fields that older experiment files do not have; at their default they are no part of a spec's hash."""

    def deciding(self, exclude: set[str] | None = None) -> dict[str, Any]:
        """Return JSON-ready data for a hash: all fields but `exclude` and those of `added_later` at their default.

        So a spec keeps its hash when nlt gains a setting that the spec does not use.
        """
        fields = type(self).model_fields
        left_alone = {key for key in self.added_later if getattr(self, key) == fields[key].get_default()}
        data = self.model_dump(mode="json", exclude=left_alone | (exclude or set()))
        return data | {key: value.deciding() for key, value in self if isinstance(value, Settings) and key in data}


class BadInput(Exception):
    """Something the user can mend: one sentence that names the field or file and the mend.

    The command line prints the error and exits with code 2. Each sentence is made one printable line of bounded length:
    control characters in a key, path or value would steer the terminal, and lone surrogates cannot be printed.
    """

    def __init__(self, *sentences: str) -> None:
        super().__init__(*map(one_line, sentences))

    def __str__(self) -> str:
        return "\n".join(self.args)


def brief(text: str, longest: int = 60) -> str:
    """Quote a user's text; the middle of a long one is left out."""
    return repr(text if len(text) <= longest else f"{text[: longest - 15]}...{text[-12:]}")


def one_line(sentence: str) -> str:
    """Escape what cannot be printed in a sentence, and leave out the middle of a long one."""
    if len(sentence) > LONGEST_SENTENCE:  # the place stands at the beginning, the mend at the end
        sentence = f"{sentence[: LONGEST_SENTENCE * 2 // 3]} ... {sentence[-LONGEST_SENTENCE // 3 :]}"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in sentence)
