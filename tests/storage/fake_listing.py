"""What the fake stores of both protocols tell of objects."""

import hashlib


def etag(content: bytes) -> str:
    return f'"{hashlib.md5(content).hexdigest()}"'


def level(keys: list[str], query: dict[str, str]) -> tuple[list[str], list[str]]:
    """Keys and folders of a listing, which a delimiter cuts at the next level."""
    prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
    if not delimiter:
        return keys, []
    rest = {key: key[len(prefix) :] for key in keys}
    folders = sorted({prefix + r.split(delimiter)[0] + delimiter for r in rest.values() if delimiter in r})
    return [key for key in keys if delimiter not in rest[key]], folders
