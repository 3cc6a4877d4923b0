"""All text of a request's JSON: what is judged, and what is counted."""

import string
from collections.abc import Iterator, Mapping
from typing import Any

# Where the base64 of images, audio and files stands.
_DATA = frozenset(
    {"data", "file_data", "url", "image_url", "video_url", "audio_url", "file", "image", "images"}
)
_BASE64 = (string.ascii_letters + string.digits + "+/=").encode()
_LONG = 1000  # characters; a shorter text is never taken for data


def texts(value: Any, *, data: bool = False) -> Iterator[str]:
    """Every text of a JSON value, in order: names, and numbers long enough to be a card's, too.

    The base64 of images, audio and files is left out, but where `data` is true: of
    `data:image/png;base64,...` the part before the comma is given.
    """
    waiting = [("", value)]
    while waiting:
        name, each = waiting.pop()
        if isinstance(each, str):
            yield each if data or name not in _DATA else _without_data(each)
        elif isinstance(each, Mapping):
            for key, inner in reversed(list(each.items())):
                waiting += ((key, inner), ("", key))
        elif isinstance(each, list | tuple):
            waiting += ((name, inner) for inner in reversed(each))
        elif isinstance(each, int) and abs(each) >= 10**7:
            yield str(each)


def _without_data(text: str) -> str:
    if len(text) < _LONG:
        return text
    head, comma, rest = text.partition(",") if text.startswith("data:") else ("", "", text)
    return head + comma if rest.isascii() and not rest.encode().translate(None, _BASE64) else text
