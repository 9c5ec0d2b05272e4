"""What /metrics reports, in the format of Prometheus."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class Metrics:
    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter("boxtune_requests", "responses sent", ["path", "status"], registry=self.registry)
        self.seconds = Histogram(
            "boxtune_request_seconds",
            "from the start of a request to its response",
            ["path"],
            registry=self.registry,
            buckets=_SECONDS,
        )
        self.queue = Gauge("boxtune_queue_length", "requests accepted and not yet answered", registry=self.registry)
        self.memory = Gauge("boxtune_queue_bytes", "memory held by these requests", registry=self.registry)
        self.batch_size = Histogram(
            "boxtune_batch_size",
            "images that the model was asked about at once",
            registry=self.registry,
            buckets=(1, 2, 4, 8, 16, 32, 64, 128),
        )
        self.batch_seconds = Histogram(
            "boxtune_batch_seconds", "time of the model per batch", registry=self.registry, buckets=_SECONDS
        )
        self.objects = Counter("boxtune_objects", "objects in responses", registry=self.registry)
        self.problems = Counter(
            "boxtune_problems", "problems in the model's responses", ["kind"], registry=self.registry
        )
