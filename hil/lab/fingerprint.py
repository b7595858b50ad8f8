"""Whether two inventories say the same."""

from __future__ import annotations

import hashlib
import json

from pydantic import BaseModel

from hil.lab.models import Lab


def fingerprint(lab: Lab) -> str:
    """SHA-256 (hexadecimal) of what the inventory says; comments and order do not change it."""
    content = {
        "name": lab.name,
        "kind": lab.provenance.value,
        "hosts": lab.hosts,
        "devices": lab.devices,
        "images": lab.images,
        "host_image": lab.host_image,
        "guest_image": lab.guest_image,
    }
    text = json.dumps(content, default=_plain, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _plain(value: object) -> object:
    # Keys that a later version adds say nothing as long as nobody writes them.
    if isinstance(value, BaseModel):
        return {name: getattr(value, name) for name in value.model_fields_set}
    return str(value)
