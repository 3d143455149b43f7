"""The frozen base of every settings class, and the one error a user can cause."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

# Seeds fit into 63 bits, the range that torch, numpy and JSON readers share.
Seed = Annotated[int, Field(ge=0, lt=2**63)]


class Settings(BaseModel):
    """Frozen, strict, and closed: an unknown key, a wrong type, NaN or infinity is an error.

    The string under a field becomes the field's description in `schema.json`.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


class BadInput(Exception):
    """Something the user can mend: one sentence that names the field or file and the mend.

    The command line prints it and exits with code 2.
    """
