"""What the settings of all stages share: value types, and a base class that rejects unknown keys."""

from typing import Annotated, ClassVar

from pydantic import BaseModel, ConfigDict, Field

Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]
Weight = Annotated[float, Field(ge=0)]


class Settings(BaseModel):
    """Base class of all sections: rejects unknown keys; instances are immutable.

    everyday: the fields that `--help` prints; `--help-all` also prints the others, which are advanced.
    """

    everyday: ClassVar[frozenset[str]] = frozenset()
    model_config = ConfigDict(extra="forbid", frozen=True)
