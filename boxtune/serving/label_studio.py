"""Label Studio's protocol for ML backends: it sends tasks, and gets rectangles that its annotators start from.

Label Studio sends the project's labelling configuration with every request, so nothing about a project is kept here. It shows
its users only the status of an error; the reason is in this server's log.
"""

import asyncio
from dataclasses import asdict
from typing import Any, TypeVar

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field

from boxtune.answers.prediction_writer import fingerprint
from boxtune.common.problems import join_names
from boxtune.inference.detections import Detections
from boxtune.models.checkpoint import weights_identity
from boxtune.reports.label_studio_tasks import prediction_of
from boxtune.serving.bodies import read_json, validated
from boxtune.serving.errors import RequestError, documented
from boxtune.serving.image_sources import ImageSources
from boxtune.serving.labelling_config import LabellingConfig, read_config, unusable
from boxtune.serving.limits import Place
from boxtune.serving.schema import Asked, json_body
from boxtune.serving.service import Service

PATHS = ("/setup", "/predict", "/webhook")
MAX_TASKS = 1000
UNKNOWN_LABEL = "unknown_label"
_TRAINING = "START_TRAINING"

T = TypeVar("T", bound=BaseModel)


class SetupRequest(BaseModel):
    label_config: str = Field(alias="schema", description="the project's labelling configuration")


class Task(BaseModel):
    id: int | str | None = None
    data: dict[str, Any]


class PredictRequest(BaseModel):
    tasks: list[Task] = Field(min_length=1, max_length=MAX_TASKS)
    label_config: str = Field(description="the project's labelling configuration")


class WebhookRequest(BaseModel):
    action: str = ""


class Problem(BaseModel):
    task: int | str | None = None
    problem: str


class SetupResponse(BaseModel):
    model_version: str
    problems: list[str] = Field(description="labels that the project or the checkpoint lacks")


class PredictResponse(BaseModel):
    results: list[dict[str, Any] | list[Any]] = Field(
        description="a prediction per task; [] if its image cannot be used"
    )
    model_version: str
    problems: list[Problem] = Field(description="images that cannot be used, labels that the project lacks")


class WebhookResponse(BaseModel):
    status: str


def make_router(service: Service, sources: ImageSources) -> APIRouter:
    router = APIRouter(tags=["Label Studio"])
    backend = Backend(service, sources)
    errors = documented(400, 401, 413, 415, 422, 503)

    @router.post("/setup", response_model=SetupResponse, responses=errors, openapi_extra=json_body(SetupRequest))
    async def setup(request: Request) -> dict[str, Any]:
        """Whether the checkpoint can predict for a project."""
        return await backend.setup(request)

    @router.post("/predict", response_model=PredictResponse, responses=errors, openapi_extra=json_body(PredictRequest))
    async def predict(request: Request) -> dict[str, Any]:
        """Rectangles for each task, with labels of the project's configuration only."""
        return await backend.predict(request)

    @router.post("/webhook", response_model=WebhookResponse, responses=errors, openapi_extra=json_body(WebhookRequest))
    async def webhook(request: Request) -> dict[str, str]:
        """Events are accepted and ignored. Training is refused: it takes `make train` with the exported annotations."""
        return await backend.webhook(request)

    return router


class Backend:
    def __init__(self, service: Service, sources: ImageSources):
        self._service, self._sources = service, sources
        checkpoint = service.detector.checkpoint
        # Label Studio asks again about a task only if the version is new, so it must change with the weights.
        settings = {"weights": weights_identity(checkpoint), "decoding": asdict(checkpoint.grounding.decoding)}
        self._version = f"{service.name}-{fingerprint(settings)[:8]}"

    async def setup(self, request: Request) -> dict[str, Any]:
        async with self._service.admitted() as place:
            sent = await self._receive(SetupRequest, request, place)
        problems = self._label_problems(self._config(sent.label_config))
        request.state.facts["problems"] = problems
        return {"model_version": self._version, "problems": problems}

    async def predict(self, request: Request) -> dict[str, Any]:
        async with self._service.admitted() as place:
            sent = await self._receive(PredictRequest, request, place)
            config = self._config(sent.label_config)
            slots = asyncio.Semaphore(self._service.max_batch)  # of decoded images in memory
            answers = [self._answer(task, config, place, slots) for task in sent.tasks]
            found = await asyncio.gather(*answers, return_exceptions=True)
            for error in filter(_concerns_all_tasks, found):
                raise error
        results, problems = [], []
        for task, result in zip(sent.tasks, found, strict=True):
            if isinstance(result, RequestError):
                problems.append({"task": task.id, "problem": result.message})
                results.append([])  # no prediction, rather than one that says that there is nothing
            else:
                prediction, kinds = result
                problems += [{"task": task.id, "problem": kind} for kind in kinds]
                results.append(prediction)
        if not any(results):
            raise RequestError(422, join_names(problem["problem"] for problem in problems), "tasks")
        objects = sum(len(prediction["result"]) for prediction in results if prediction)
        request.state.facts.update(tasks=len(results), objects=objects, problems=problems)
        return {"results": results, "model_version": self._version, "problems": problems}

    async def webhook(self, request: Request) -> dict[str, str]:
        async with self._service.admitted() as place:
            sent = await self._receive(WebhookRequest, request, place)
        if sent.action != _TRAINING:
            return {"status": "ignored"}
        raise RequestError(
            422,
            "this server does not train. Export the annotations, convert them with python -m data_prep labelstudio, and run "
            "make train.",
            "action",
        )

    async def _receive(self, model: type[T], request: Request, place: Place) -> T:
        limits = self._service.limits
        return await read_json(model, request, place, limits.body_bytes, limits.seconds / 2)

    def _config(self, xml: str) -> LabellingConfig:
        """The labelling configuration. Raises RequestError if the checkpoint can predict none of its labels."""
        config = read_config(xml)
        classes = self._service.detector.classes
        if self._service.detector.checkpoint.grounding.get_codec().is_click:
            raise unusable("the checkpoint answers with points, which RectangleLabels cannot hold")
        if classes and not any(config.label_for(name) for name in classes):
            raise unusable(
                f"none of its labels ({join_names(config.labels)}) is a class of the checkpoint ({join_names(classes)})"
            )
        return config

    def _label_problems(self, config: LabellingConfig) -> list[str]:
        classes = self._service.detector.classes
        expected = {config.label_for(name) for name in classes}
        never = [label for label in config.labels if label not in expected] if classes else []
        dropped = [name for name in classes if config.label_for(name) is None]
        problems = [f"labels that the checkpoint was not trained to find: {join_names(never)}"] if never else []
        return problems + (
            [f"classes without a label, whose boxes are left out: {join_names(dropped)}"] if dropped else []
        )

    async def _answer(
        self, task: Task, config: LabellingConfig, place: Place, slots: asyncio.Semaphore
    ) -> tuple[dict[str, Any], list[str]]:
        """(the prediction of a task, what is wrong with it). Raises RequestError if its image cannot be used."""
        field, service = config.control.field, self._service
        address = task.data.get(field)
        if not isinstance(address, str) or not address:
            raise RequestError(422, f"the task has no image in its field {field}.", "tasks")
        # A checkpoint is asked what it was trained to answer; its other classes are left out below.
        asked = validated(Asked, {"classes": None if service.detector.classes else config.labels})
        async with slots:
            with place.part() as part:
                limits = service.limits
                data = await asyncio.to_thread(self._sources.read, address, limits.body_bytes, limits.seconds)
                part.reserve(len(data))
                detections = await service.find(data, asked, part)
        return self._prediction(detections, config)

    def _prediction(self, detections: Detections, config: LabellingConfig) -> tuple[dict[str, Any], list[str]]:
        labels = [config.label_for(label) for label in detections.labels]
        kept = [position for position, label in enumerate(labels) if label is not None]
        objects = {
            "bbox": detections.boxes_xyxy[kept].tolist(),
            "category": [labels[position] for position in kept],
            "score": detections.scores[kept].tolist(),
        }
        problems = [f"the model's response: {kind}" for kind in dict.fromkeys(detections.problems)]
        if dropped := [name for name, label in zip(detections.labels, labels, strict=True) if label is None]:
            self._service.metrics.problems.labels(UNKNOWN_LABEL).inc()
            names = join_names(f"{name!r:.60}" for name in dict.fromkeys(dropped))
            problems.append(f"{len(dropped)} boxes left out, whose labels the project lacks: {names}")
        return prediction_of(objects, detections.size, self._version, config.control), problems


def _concerns_all_tasks(result: object) -> bool:
    """Whether this is an error, and not one about the image of a single task."""
    return isinstance(result, BaseException) and not (isinstance(result, RequestError) and result.status != 503)
