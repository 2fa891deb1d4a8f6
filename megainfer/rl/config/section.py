"""What all sections of a configuration have in common."""

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """Frozen; an unknown key, or a value of another kind, is refused by name. A field's description
    is the help of its flag."""

    # Built when it is first used: the command line imports it, whatever is run.
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, defer_build=True)
