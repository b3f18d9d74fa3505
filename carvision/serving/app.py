"""The HTTP of the server: routes, bodies, errors, token, headers."""

import asyncio
import hmac
import json
import logging
import mimetypes
import time
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any

import fastapi
from fastapi import FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

import carvision
from carvision.serving import answers, limits
from carvision.serving.limits import ApiError
from carvision.serving.photos import Upload
from carvision.serving.service import Service

log = logging.getLogger(__name__)

PAGE = Path(__file__).parent / "page"
POLICY = (
    "default-src 'self'; img-src 'self' blob: data:; style-src 'self'; script-src 'self'; object-src 'none'; "
    "base-uri 'self'; form-action 'self'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY, "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin", "X-Frame-Options": "DENY",
}  # fmt: skip
OPEN = ("/v1/", "/metrics")  # paths that need the token begin so
TWO_LENGTHS = {b"content-length", b"transfer-encoding"}
GIVEN_UP = 499  # status by which requests count whose client has gone; nobody receives it

Model = Annotated[
    str | None, Query(max_length=limits.MAX_TEXT, description="one of several models; default: the first")
]
Top = Annotated[int, Query(ge=1, le=limits.MAX_TOP, description="classes of each head")]
Box = Annotated[
    str | None, Query(max_length=limits.MAX_TEXT, description="left,top,right,bottom, if the body is a photo")
]
Text = Annotated[str | None, Query(max_length=limits.MAX_TEXT)]
OF_PHOTOS = answers.errors_of(*limits.STATUS.keys() - {"not_ready", "internal"})
OF_LOOKUP = answers.errors_of("unauthorized", "not_found", "method_not_allowed", "invalid_value", "draining")


class Json(JSONResponse):
    """JSON in UTF-8; of names that are no Unicode, the parts that are."""

    def render(self, content: Any) -> bytes:
        text = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        return text.encode("utf-8", "replace")


def error_response(error: ApiError) -> Json:
    return Json({"error": error.as_dict()}, error.status, error.headers())


class Bodies:
    """Reads bodies, of at most MAX_BODY_BYTES each, and MAX_BYTES_WAITING of all that are read or worked on."""

    def __init__(self):
        self.num_bytes = 0

    @asynccontextmanager
    async def read(self, request: Request) -> AsyncIterator[bytes]:
        """Yield the body; it counts as long as the block runs. Raises ApiError."""
        body = bytearray()
        try:
            await self._fill(request, body)
            yield bytes(body)
        finally:
            self.num_bytes -= len(body)

    async def _fill(self, request: Request, body: bytearray) -> None:
        length = request.headers.get("content-length", "0")
        chunks = request.stream()
        try:
            async with asyncio.timeout(limits.BODY_S):
                too_large = not length.isdecimal() or int(length) > limits.MAX_BODY_BYTES
                while not too_large and (chunk := await anext(chunks, None)) is not None:
                    too_large = len(body) + len(chunk) > limits.MAX_BODY_BYTES
                    if self.num_bytes + len(chunk) > limits.MAX_BYTES_WAITING:
                        raise limits.too_many_waiting()
                    body += chunk
                    self.num_bytes += len(chunk)
        except TimeoutError:
            raise ApiError("timeout", f"the body did not arrive within {limits.BODY_S:g} s") from None
        if too_large:
            raise limits.body_too_large()


class Guard:
    """Around the app: the token, the headers of all answers, counts of requests, and the log of what fails.

    token: that requests of the API must bear; None: none. is_draining: answer new requests with 503.
    """

    def __init__(self, app: ASGIApp, service: Service, token: str | None):
        self.app, self.service, self.token = app, service, token
        self.is_draining = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, status = time.monotonic(), 0
        is_api = scope["path"].startswith(OPEN)

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                caching = "no-store" if is_api else "no-cache"
                own = {**HEADERS, "Cache-Control": caching}
                message["headers"] = [*message["headers"], *((k.lower().encode(), v.encode()) for k, v in own.items())]
            await send(message)

        try:
            if {name for name, _ in scope["headers"]} >= TWO_LENGTHS:  # a proxy may see another request in its body
                error = ApiError("bad_request", "a request can't have both Content-Length and Transfer-Encoding")
                await Json({"error": error.as_dict()}, 400, {"Connection": "close"})(scope, receive, send_with_headers)
            elif is_api and (error := self._refusal(scope)):
                await error_response(error)(scope, receive, send_with_headers)
            else:
                await self.app(scope, receive, send_with_headers)
        except Exception:  # which has been answered
            log.exception("%s %s failed", scope["method"], scope["path"])
        finally:
            path = getattr(scope.get("route"), "path", "other")
            self.service.monitor.add_request(path, status or GIVEN_UP, time.monotonic() - began)

    def _refusal(self, scope: Scope) -> ApiError | None:
        if self.token is not None:
            given = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
            kind, _, word = given.partition(b" ")
            if kind.lower() != b"bearer" or not hmac.compare_digest(word.strip(), self.token.encode()):
                return ApiError("unauthorized", "this needs the server's token: Authorization: Bearer <token>")
        return ApiError("draining", "the server is stopping") if self.is_draining else None


def create_app(service: Service, token: str | None = None) -> Guard:
    """Return the ASGI application."""
    app = FastAPI(
        title="carvision", version=carvision.__version__, docs_url=None, redoc_url=None,
        description="Photos in; classes, heat maps, embeddings and the nearest training photos out.",
    )  # fmt: skip
    guard = Guard(app, service, token)
    _add_errors(app)
    _add_photo_routes(app, service)
    _add_lookups(app, service)
    _add_health(app, service, guard)
    if PAGE.is_dir():
        _add_page(app)
    return guard


def _add_errors(app: FastAPI) -> None:
    """Give all errors the same shape."""

    @app.exception_handler(ApiError)
    async def api_error(_: Request, error: ApiError) -> Response:
        return error_response(error)

    @app.exception_handler(ClientDisconnect)
    async def gone(*_) -> Response:
        return Response(status_code=GIVEN_UP)

    @app.exception_handler(Exception)
    async def internal(*_) -> Response:  # Guard logs it
        return error_response(ApiError("internal", "the server failed to answer this request"))

    @app.exception_handler(HTTPException)
    async def http_error(_: Request, error: HTTPException) -> Response:
        code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "bad_request")
        text = {"not_found": "there is nothing at this path", "method_not_allowed": "this path has another method"}
        response = error_response(ApiError(code, text.get(code, "the request can't be understood")))
        response.headers.update(error.headers or {})
        return response

    @app.exception_handler(RequestValidationError)
    async def invalid_value(_: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        name, text = first["loc"][-1], first["msg"]
        return error_response(ApiError("invalid_value", f"{name}: {text[:1].lower()}{text[1:]}"))


def _add_photo_routes(app: FastAPI, service: Service) -> None:
    """Add what takes photos."""
    bodies = Bodies()

    async def answer(request: Request, box: str | None, work: Any) -> Any:
        """Read the photos, and return what work(uploads) returns, unless the client goes away."""
        async with bodies.read(request) as body:
            uploads = await service.uploads(body, request.headers.get("content-type", ""), box)
            return await _unless_gone(request, work(uploads), service)

    @app.post(
        "/v1/predict", openapi_extra=answers.body_of(), responses={200: {"model": answers.Prediction}, **OF_PHOTOS}
    )
    async def predict(request: Request, top: Top = 5, model: Model = None, box: Box = None) -> Response:
        """Predict the classes of 1 to 32 photos. A photo that can't be used has an error of its own beside the others;
        alone, its error is the answer's."""
        served = service.model(model)
        return Json(_alone(await answer(request, box, lambda uploads: service.predict(served, uploads, top))))

    @app.post(
        "/v1/explain", openapi_extra=answers.body_of(1),
        responses={200: {"model": answers.Explanation, "content": {"image/png": {}}}, **OF_PHOTOS},
    )  # fmt: skip
    async def explain(
        request: Request, head: Text = None, class_: Annotated[Text, Query(alias="class")] = None, model: Model = None,
        box: Box = None,
    ) -> Response:  # fmt: skip
        """Show which parts of one photo raise a class (Grad-CAM): its numbers, or with Accept: image/png a picture.
        head: default: the last with classes. class: its id; default: the predicted one."""
        served, as_picture = service.model(model), "image/png" in request.headers.get("accept", "")
        found = await answer(
            request, box, lambda uploads: service.explain(served, _single(uploads), head, class_, as_picture)
        )
        return Response(found, media_type="image/png") if isinstance(found, bytes) else Json(found)

    @app.post("/v1/embed", openapi_extra=answers.body_of(), responses={200: {"model": answers.Embeddings}, **OF_PHOTOS})
    async def embed(request: Request, model: Model = None, box: Box = None) -> Response:
        """Return 1 to 32 photos as vectors of length 1, close to those of photos that look alike."""
        served = service.model(model)
        return Json(_alone(await answer(request, box, lambda uploads: service.embeddings(served, uploads))))

    @app.post(
        "/v1/neighbours", openapi_extra=answers.body_of(1), responses={200: {"model": answers.Neighbours}, **OF_PHOTOS}
    )
    async def neighbours(
        request: Request, k: Annotated[int, Query(ge=1, le=limits.MAX_NEIGHBOURS)] = 12, model: Model = None,
        box: Box = None,
    ) -> Response:  # fmt: skip
        """Find the training photos that are nearest to one photo, by the embeddings of `carvision embed RUN`."""
        served = service.model(model)
        return Json(await answer(request, box, lambda uploads: service.neighbours(served, _single(uploads), k)))


def _add_lookups(app: FastAPI, service: Service) -> None:
    """Add what needs no photo."""

    @app.get("/v1/neighbours/{row}.jpg", responses={200: {"content": {"image/jpeg": {}}}, **OF_LOOKUP},
             response_class=Response)  # fmt: skip
    async def neighbour_photo(row: Annotated[int, fastapi.Path(ge=0, le=10**9)], model: Model = None) -> Response:
        """Return a training photo, at most 320 px wide and high."""
        return Response(await service.neighbour_photo(service.model(model), row), media_type="image/jpeg")

    @app.get("/v1/model", responses={200: {"model": answers.About}, **OF_LOOKUP})
    async def about(model: Model = None) -> Response:
        """Describe a model: heads, metrics with intervals of 95 %, operating points, card, limits."""
        return Json(await service.describe(service.model(model)))

    @app.get("/v1/classes/{head}", responses={200: {"model": answers.Classes}, **OF_LOOKUP})
    async def classes(
        head: Annotated[str, fastapi.Path(max_length=limits.MAX_TEXT)],
        search: Annotated[str, Query(max_length=limits.MAX_TEXT)] = "",
        offset: Annotated[int, Query(ge=0, le=10**9)] = 0,
        limit: Annotated[int, Query(ge=1, le=limits.MAX_CLASSES)] = 100,
        model: Model = None,
    ) -> Response:
        """List the classes of a head whose name or id contains a text."""
        return Json(service.model(model).classes(head, search, offset, limit))


def _add_health(app: FastAPI, service: Service, guard: Guard) -> None:
    """Add what other programs watch."""

    @app.get("/livez", responses={200: {"model": answers.Status}})
    async def livez() -> Response:
        """Report that the process answers."""
        return Json({"status": "ok"})

    @app.get("/readyz", responses={200: {"model": answers.Status}, **answers.errors_of("not_ready")})
    async def readyz() -> Response:
        """Report whether photos are answered."""
        if guard.is_draining:
            raise ApiError("draining", "the server is stopping")
        if not service.batcher.is_alive:
            raise ApiError("not_ready", "the network is not running")
        return Json({"status": "ok"})

    @app.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
    async def metrics() -> Response:
        """Report counts and seconds to Prometheus."""
        return Response(service.monitor.text(), media_type=service.monitor.content_type)


def _add_page(app: FastAPI) -> None:
    """Add the page and its files."""

    @app.get("/", include_in_schema=False)
    async def index() -> Response:
        return FileResponse(PAGE / "index.html")

    @app.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        return FileResponse(PAGE / "docs.html")

    mimetypes.add_type("text/javascript", ".js")  # which Windows' registry may call text/plain, that no browser runs
    app.mount("/static", StaticFiles(directory=PAGE), name="static")


async def _unless_gone(request: Request, work: Coroutine, service: Service) -> Any:
    """Return the result of some work, which is cancelled if the client goes away, or if it takes too long."""

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    tasks = [asyncio.ensure_future(work), asyncio.ensure_future(gone())]
    try:
        await asyncio.wait(tasks, timeout=limits.ANSWER_S, return_when=asyncio.FIRST_COMPLETED)
        if tasks[0].done():
            return tasks[0].result()
        if not tasks[1].done():
            raise limits.timed_out(limits.ANSWER_S)
        service.monitor.given_up.inc()
        raise ClientDisconnect
    finally:
        for task in tasks:
            task.cancel()


def _single(uploads: list[Upload]) -> Upload:
    if len(uploads) != 1:
        raise ApiError("bad_request", f"this takes one photo, and {len(uploads)} were sent", 1)
    return uploads[0]


def _alone(found: dict[str, Any]) -> dict[str, Any]:
    """Return the answer; raise the error of a photo that is the only one."""
    if len(found["photos"]) == 1 and (error := found["photos"][0]["error"]):
        raise ApiError(error["code"], error["message"], error.get("limit"))
    return found
