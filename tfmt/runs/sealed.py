"""JSON that carries a digest of itself: most single bits that flip leave JSON that parses."""

from __future__ import annotations

import json
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from tfmt.spec import digest_json


class Part(BaseModel):
    """A part of what a run's file says: strict about names and numbers."""

    # Pydantic below 2.10 keeps names that begin with `model_` for itself.
    model_config: ClassVar[ConfigDict] = ConfigDict(extra="forbid", allow_inf_nan=False, protected_namespaces=())


class Sealed(Part):
    """What is a file of its own, which carries a digest of its content. A field `name_` is `name` in the file."""

    model_config: ClassVar[ConfigDict] = ConfigDict(
        alias_generator=lambda name: name.rstrip("_"), populate_by_name=True
    )

    def to_json(self) -> str:
        """The content as it is stored; `sha256` is of the rest in one canonical form, whatever the layout."""
        return seal_json(json.loads(self.model_dump_json(by_alias=True)))

    @model_validator(mode="before")
    @classmethod
    def _unseal(cls, content: Any) -> Any:
        return unseal(content)


def reason_of(error: ValidationError) -> str:
    """Why a file's content is refused: where, and what is wrong there."""
    first = error.errors(include_url=False, include_context=False)[0]
    where = ".".join(str(part) for part in first["loc"]) or "the file"
    return f"{where}: {first['msg'].removeprefix('Value error, ')}"


def seal_json(content: dict[str, Any]) -> str:
    """A JSON object as text, with a digest of itself under `sha256`, which `unseal` checks."""
    return json.dumps(content | {"sha256": digest_json(content)}, indent=1)


def unseal(content: Any) -> Any:
    """What `seal_json` was given; a value without a digest, as of earlier versions, is taken as it is.

    Raises:
      ValueError: it is not what it was when it was written.
    """
    if not isinstance(content, dict) or "sha256" not in content:
        return content
    rest = {key: value for key, value in content.items() if key != "sha256"}
    if content["sha256"] != digest_json(rest):
        raise ValueError("its content has changed since it was written (sha256)")
    return rest
