"""What /metrics reports to Prometheus: requests, photos, seconds, batches."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from carvision.serving.limits import MAX_PHOTOS

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
BATCHES = tuple(2**power for power in range(MAX_PHOTOS.bit_length()))


class Monitor:
    """Counts of one server, which may be changed by any thread.

    paths: the routes by which requests are counted; a path that is none of them counts as "other", so that requests
    can't add names without end.
    """

    content_type = CONTENT_TYPE_LATEST

    def __init__(self, num_waiting: Callable[[], int]):
        self.registry = CollectorRegistry()
        own = {"registry": self.registry, "namespace": "carvision"}
        self.requests = Counter("requests", "Answered requests", ["path", "code"], **own)
        self.photos = Counter("photos", "Photos that were answered", ["model"], **own)
        self.bad_photos = Counter("bad_photos", "Photos that can't be used", ["reason"], **own)
        self.given_up = Counter("given_up", "Requests whose client went away before the answer", **own)
        seconds = Histogram("seconds", "Seconds by part of the work", ["part"], buckets=SECONDS, **own)
        self.request_seconds = Histogram("request_seconds", "Seconds of a request", ["path"], buckets=SECONDS, **own)
        self.decoding, self.waiting, self.network = (seconds.labels(n) for n in ("decoding", "waiting", "network"))
        self.batches = Histogram("batch_photos", "Photos of a batch", buckets=BATCHES, **own)
        queue = Gauge("queue_photos", "Photos that are being decoded, wait, or are in the network", **own)
        queue.set_function(num_waiting)

    def add_batch(self, num_photos: int, waited: list[float], seconds: float) -> None:
        """Count a batch: its photos, the seconds that each of its jobs has waited, and those of the network."""
        self.batches.observe(num_photos)
        self.network.observe(seconds)
        for each in waited:
            self.waiting.observe(each)

    def add_request(self, path: str, code: int, seconds: float) -> None:
        """Count an answered request. path: of its route."""
        self.requests.labels(path, str(code)).inc()
        self.request_seconds.labels(path).observe(seconds)

    def text(self) -> bytes:
        """Return all counts in Prometheus' text format."""
        return generate_latest(self.registry)
