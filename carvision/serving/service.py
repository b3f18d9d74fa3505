"""What a server does with photos: decode them in threads, have the network's thread compute them, answer each."""

import asyncio
import io
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from torch import Tensor

from carvision.errors import InputError
from carvision.inference.rows import Row
from carvision.serving.batcher import Batcher
from carvision.serving.limits import ApiError
from carvision.serving.model.served import ServedModel
from carvision.serving.monitor import Monitor
from carvision.serving.photos import Seen, Upload, decode, open_part, read_uploads, start_threads
from carvision.system.runtime import release_freed_memory

PART = 8  # photos that a thread decodes in one go, as in the loader
INLINE_BYTES = 16_384  # of a body that is read at once, rather than by another thread
RELEASE_S = 5.0  # after which freed memory is returned: batches of ever other sizes leave ever more gaps in it
OVERLAY_PX = 512  # the shorter side of a heat map that is drawn, at most


class Service:
    """Answers requests for one model or several; no HTTP here.

    Its coroutines may be cancelled: what has not begun by then is dropped. They raise ApiError.
    """

    def __init__(self, models: Sequence[ServedModel], num_threads: int):
        self.models = {model.name: model for model in models}
        self.first = models[0]
        self.released = time.monotonic()
        self.batcher = Batcher(self._run, on_batch=self._add_batch)
        self.monitor = Monitor(lambda: self.batcher.num_admitted)
        self.threads: ThreadPoolExecutor = start_threads(num_threads)

    def start(self, engine: str = "eager") -> None:
        """Start the thread of the network, which builds and warms up all networks. Raises InputError."""
        self.batcher.prepare = lambda: [model.warm_up(engine) for model in self.models.values()]
        self.batcher.start()

    def close(self) -> None:
        """Compute what is waiting, then end the threads."""
        self.batcher.close(timeout_s=10)
        self.threads.shutdown(wait=False, cancel_futures=True)

    def model(self, name: str | None) -> ServedModel:
        """Return the model of that name, the first one by default."""
        if name is None:
            return self.first
        if name not in self.models:
            raise ApiError("not_found", f"model: {name[:100]!r} is not one of {', '.join(self.models)}")
        return self.models[name]

    async def uploads(self, body: bytes, content_type: str, box: str | None) -> list[Upload]:
        """Return the photos of a body."""
        if len(body) < INLINE_BYTES or not content_type.lower().startswith(("multipart/", "application/json")):
            return read_uploads(body, content_type, box)
        return await self._in_thread(read_uploads, body, content_type, box)

    async def predict(self, model: ServedModel, uploads: Sequence[Upload], top: int) -> dict[str, Any]:
        """Return the predictions of photos, in order."""
        with self.batcher.admitted(len(uploads)):
            found = await self._for_each_part(model, uploads, "predict", lambda images: (images, top))
        photos = [model.answer(seen, row, top) for seen, row in found]
        self.monitor.photos.labels(model.name).inc(len(photos))
        return {"model": model.name, "photos": photos}

    async def embed(self, model: ServedModel, uploads: Sequence[Upload], kind: str = "embed") -> list[tuple[Seen, Any]]:
        """Return what is known of each photo, and its embedding float32 (D,), None if the photo can't be used."""
        with self.batcher.admitted(len(uploads)):
            return await self._for_each_part(model, uploads, kind, lambda images: images)

    async def embeddings(self, model: ServedModel, uploads: Sequence[Upload]) -> dict[str, Any]:
        """Return the embeddings of photos, in order."""
        photos, width = [], model.embedding_width
        for seen, values in await self.embed(model, uploads):
            found = None if values is None else np.round(values.astype(float), 7).tolist()
            photos.append({"embedding": found, "error": seen.error and seen.error.as_dict()})
        return {"model": model.name, "width": width, "photos": photos}

    async def explain(
        self, model: ServedModel, upload: Upload, head: str | None, class_id: str | None, as_picture: bool
    ) -> dict[str, Any] | bytes:
        """Return the heat map of a photo; as_picture: drawn over the photo, as PNG."""
        head = model.head_of(head)
        code = None if class_id is None else model.code_of(head, class_id)
        with self.batcher.admitted(1):
            chosen = model.map_input or await self._compute(model, "map_input", None)
            geometries = [*model.geometries, *chosen.geometries]
            [seen], images = await self._in_thread(self._decode, [upload], geometries)
            if seen.error:
                raise seen.error
            num = len(model.geometries)
            cam, code = await self._compute(model, "explain", (images[:num], images[num:], head, code))
            if not as_picture:
                return model.explanation(seen, head, cam, code)
            return await self._in_thread(draw, model, upload, cam.values)

    async def neighbours(self, model: ServedModel, upload: Upload, num: int) -> dict[str, Any]:
        """Return the training photos that are nearest to one."""
        self._require_index(model)
        try:
            await self._in_thread(model.index.load)
            [(seen, embedding)] = await self.embed(model, [upload], "neighbours")
            if seen.error:
                raise seen.error
            found = await self._in_thread(model.index.search, embedding, num)
        except InputError as error:
            raise ApiError("not_found", f"no neighbours: {error}") from None
        neighbours = [
            {
                "row": row, "similarity": similarity, "classes": model.index.classes(row),
                "photo": f"/v1/neighbours/{row}.jpg?model={model.name}",
            }
            for row, similarity in found
        ]  # fmt: skip
        return {"model": model.name, "neighbours": neighbours}

    async def neighbour_photo(self, model: ServedModel, row: int) -> bytes:
        """Return a photo of the index as a JPEG."""
        self._require_index(model)
        try:
            found = await self._in_thread(model.index.photo, row)
        except InputError as error:
            raise ApiError("not_found", f"no neighbours: {error}") from None
        if found is None:
            raise ApiError("not_found", f"row {row} of the index has no photo here")
        return found

    async def describe(self, model: ServedModel) -> dict[str, Any]:
        """Return what is known of a model."""
        return {"models": list(self.models), **await self._in_thread(model.describe)}

    def _require_index(self, model: ServedModel) -> None:
        if model.index.folder is None:
            raise ApiError("not_found", f"the run has no embeddings; carvision embed {model.name} computes them")

    async def _for_each_part(self, model: ServedModel, uploads: Sequence[Upload], kind: str, content) -> list[tuple]:
        """Return (seen, result or None) of each photo; a part is in the network while the next one is decoded."""
        parts = [uploads[start : start + PART] for start in range(0, len(uploads), PART)]
        if len(parts) == 1:
            return await self._part(model, uploads, kind, content)
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._part(model, part, kind, content)) for part in parts]
        return [each for task in tasks for each in task.result()]

    async def _part(self, model: ServedModel, uploads: Sequence[Upload], kind: str, content) -> list[tuple[Seen, Any]]:
        found, images = await self._in_thread(self._decode, uploads, model.geometries)
        num = len(images[0])
        results: Sequence[Row | np.ndarray] = []
        if num:
            results = await self._compute(model, kind, content(images), num)
        rest = iter(results)
        return [(seen, None if seen.error else next(rest)) for seen in found]

    def _decode(self, uploads: Sequence[Upload], geometries) -> tuple[list[Seen], list[Tensor]]:
        began = time.monotonic()
        found, images = decode(uploads, geometries)
        self.monitor.decoding.observe(time.monotonic() - began)
        for seen in found:
            if seen.error:
                self.monitor.bad_photos.labels(seen.error.code).inc()
        return found, images

    async def _compute(self, model: ServedModel, kind: str, content: Any, num_photos: int = 1) -> Any:
        """Have the network's thread compute a job."""
        if not self.batcher.is_alive:
            raise ApiError("not_ready", "the network is not running; try again later")
        return await asyncio.wrap_future(self.batcher.submit((model.name, kind), content, num_photos))

    async def _in_thread(self, function, *arguments) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self.threads, partial(function, *arguments))

    def _run(self, key: Any, contents: Sequence[Any]) -> Sequence[Any]:
        name, kind = key
        return self.models[name].run(kind, contents)

    def _add_batch(self, num_photos: int, waited: list[float], seconds: float) -> None:
        self.monitor.add_batch(num_photos, waited, seconds)
        if time.monotonic() - self.released > RELEASE_S:
            release_freed_memory()
            self.released = time.monotonic()


def draw(model: ServedModel, upload: Upload, values: np.ndarray) -> bytes:
    """Return a heat map over the part of the photo that the network saw, as PNG."""
    from carvision.explanation.overlay import (
        overlay,  # only now, as in ServedModel: pandas and matplotlib take a second
    )

    part = open_part(upload, replace(model.model.preprocessing, size_px=OVERLAY_PX))
    shrink = min(1.0, 2 * OVERLAY_PX / max(part.size))
    part = part.resize((max(1, round(part.width * shrink)), max(1, round(part.height * shrink))))
    written = io.BytesIO()
    overlay(part, values).save(written, "PNG")
    return written.getvalue()
