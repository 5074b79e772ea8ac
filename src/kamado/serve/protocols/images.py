"""Pictures inside requests: base64 only, bounded, of known kinds. Nothing is ever fetched for a client."""

from __future__ import annotations

import base64
import binascii
import re
from typing import Any

from ..faults import RequestError
from ..models.contract import ImagePart

_DATA_URL = re.compile(r"data:(image/[a-z0-9.+-]{1,40});base64,", re.IGNORECASE)
_MAGIC = {
    b"\x89PNG\r\n\x1a\n": "image/png",
    b"\xff\xd8\xff": "image/jpeg",
    b"GIF87a": "image/gif",
    b"GIF89a": "image/gif",
    b"RIFF": "image/webp",
    b"BM": "image/bmp",
}


def image_from_url(url: Any, param: str, max_bytes: int) -> ImagePart:
    """The picture of a data URL. Raises RequestError for any other address: fetching it would be done in our name."""
    RequestError.when(not isinstance(url, str), f"{param} must be a data URL", param=param)
    match = _DATA_URL.match(url, 0, 80)
    if match is None:
        raise RequestError(
            f"{param} must be a data URL such as data:image/png;base64,…: this server fetches nothing", param=param
        )
    return image_from_base64(url[match.end() :], param, max_bytes)


def image_from_base64(text: Any, param: str, max_bytes: int) -> ImagePart:
    """The picture of base64 text, its kind told by its first bytes. Raises RequestError."""
    RequestError.when(not isinstance(text, str), f"{param} must be base64 text", param=param)
    RequestError.when(
        len(text) > max_bytes * 4 // 3 + 4,
        f"{param} is larger than {max_bytes} bytes, the limit for a picture",
        param=param,
    )
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise RequestError(f"{param} is no valid base64", param=param) from None
    for magic, media_type in _MAGIC.items():
        if data.startswith(magic):
            return ImagePart(data, media_type)
    raise RequestError(f"{param} is no picture that is known here (PNG, JPEG, GIF, WebP, BMP)", param=param)
