"""What the server accepts, and the one shape of its errors. Imports no torch."""

from typing import Any

MAX_PHOTOS = 32  # of a request, and of a batch
MAX_WAITING = 256  # photos and requests that are waiting or being worked on; more are answered with 429
MAX_BODY_BYTES = 20 * 2**20
MAX_BYTES_WAITING = 16 * MAX_BODY_BYTES  # of all bodies that are being read or worked on
MAX_PIXELS = 50_000_000  # of a photo, by its header
MAX_TOP, MAX_NEIGHBOURS, MAX_CLASSES = 1000, 100, 1000  # items of an answer's list
MAX_TEXT = 200  # characters of a query's text
MAX_JSON_ITEMS = 10_000  # brackets and commas in JSON: parsing more of them would stop all other requests
BODY_S = 60.0  # for a request's body to arrive
ANSWER_S = 30.0  # for a photo to be answered, once its body has arrived
DRAIN_S = 30.0  # for requests in progress, once the server has been told to stop
RETRY_S = 1  # after which a refused client may try again

STATUS = {
    "bad_request": 400, "unauthorized": 401, "not_found": 404, "method_not_allowed": 405, "too_large": 413,
    "unsupported_type": 415, "unusable_photo": 422, "invalid_value": 422, "busy": 429, "internal": 500,
    "not_ready": 503, "draining": 503, "timeout": 504,
}  # fmt: skip


class ApiError(Exception):
    """An error that a client sees. code: a key of STATUS. message: a sentence. limit: the number exceeded."""

    def __init__(self, code: str, message: str, limit: int | None = None):
        super().__init__(message)
        self.code, self.message, self.limit, self.status = code, message, limit, STATUS[code]

    def as_dict(self) -> dict[str, Any]:
        """Return {"code", "message"}, and "limit" if there is one."""
        found: dict[str, Any] = {"code": self.code, "message": self.message}
        return found if self.limit is None else found | {"limit": self.limit}

    def headers(self) -> dict[str, str]:
        """Return the HTTP headers that belong to the error."""
        if self.code == "unauthorized":
            return {"WWW-Authenticate": "Bearer"}
        return {"Retry-After": str(RETRY_S)} if self.status in (429, 503) else {}


def too_many_waiting() -> ApiError:
    return ApiError("busy", f"{MAX_WAITING} photos are waiting already; try again later", MAX_WAITING)


def body_too_large() -> ApiError:
    return ApiError("too_large", f"the body has more than {MAX_BODY_BYTES:,} bytes", MAX_BODY_BYTES)


def too_many_photos(num: int) -> ApiError:
    return ApiError("too_large", f"{num} photos in one request are more than {MAX_PHOTOS}", MAX_PHOTOS)


def timed_out(seconds: float) -> ApiError:
    return ApiError("timeout", f"no answer within {seconds:g} s; try again later")
