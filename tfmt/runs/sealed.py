"""JSON that carries a digest of itself: most single bits that flip leave JSON that parses."""

from __future__ import annotations

import json
from typing import Any

from tfmt.spec import digest_json


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
