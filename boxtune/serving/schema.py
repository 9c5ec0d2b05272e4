"""The JSON of requests and responses."""

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from boxtune.data.record_checks import label_problem

MAX_CLASSES, MAX_CLASS_LENGTH = 1000, 200


def _class_name(name: str) -> str:
    if problem := label_problem(name):
        raise ValueError(problem)
    return name


ClassName = Annotated[str, Field(max_length=MAX_CLASS_LENGTH), AfterValidator(_class_name)]


class Asked(BaseModel):
    """What is asked about an image."""

    model_config = ConfigDict(extra="forbid")

    classes: list[ClassName] | None = Field(
        None, min_length=1, max_length=MAX_CLASSES, description="classes to look for; by default the trained ones"
    )
    threshold: float | None = Field(
        None, ge=0, le=1, allow_inf_nan=False, description="minimum confidence; by default the checkpoint's own"
    )


class DetectRequest(Asked):
    model_config = ConfigDict(strict=True)

    image: str = Field(description="the image file in base64, also as a data URL; never the address of an image")


class ImageSize(BaseModel):
    """Pixels of the upright image: an EXIF rotation is applied."""

    width: int
    height: int


class Prediction(BaseModel):
    """One object. x and y are its center. All are in pixels of the upright image; a point has width and height 0."""

    x: float
    y: float
    width: float
    height: float
    class_name: str = Field(alias="class")
    class_id: int = Field(description="position in the trained classes, then in `classes`; -1 for any other label")
    confidence: float
    detection_id: str


class DetectResponse(BaseModel):
    image: ImageSize
    predictions: list[Prediction]
    time: float = Field(description="seconds from the start of the request")


class LimitsInfo(BaseModel):
    body_bytes: int
    image_pixels: int
    formats: list[str]


class InfoResponse(BaseModel):
    """The checkpoint, and what a request may contain."""

    checkpoint: str
    classes: list[str]
    objects: str = Field(description="boxes or points")
    threshold: float = Field(description="the checkpoint's own minimum confidence")
    codec: str
    backend: str = Field(description="in-process, or server")
    version: str
    limits: LimitsInfo


class Status(BaseModel):
    status: str


class Health(Status):
    """Also what Label Studio expects of an ML backend."""

    model_class: str


class ErrorContent(BaseModel):
    message: str
    field: str | None


class ErrorResponse(BaseModel):
    error: ErrorContent


def json_body(model: type[BaseModel]) -> dict[str, Any]:
    """The body of a route that reads it itself, for the API's documentation."""
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": model.model_json_schema()}}}}


def detect_bodies() -> dict[str, Any]:
    """The two bodies of POST /detect, for the API's documentation: the route reads them itself."""
    json_schema = DetectRequest.model_json_schema()
    form = Asked.model_json_schema()
    file = {"type": "string", "format": "binary", "description": "the image file"}
    form_schema = form | {"properties": {"file": file} | form["properties"], "required": ["file"]}
    content = {"multipart/form-data": {"schema": form_schema}, "application/json": {"schema": json_schema}}
    return {"requestBody": {"required": True, "content": content}}
