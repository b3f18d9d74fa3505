"""The shapes of bodies and answers, as /openapi.json describes them. Answers are built as plain values elsewhere."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from carvision.serving.limits import MAX_PHOTOS, STATUS


class Answer(BaseModel):
    model_config = ConfigDict(protected_namespaces=())


class Error(Answer):
    code: str = Field(examples=["too_large"], description=f"one of {', '.join(STATUS)}")
    message: str = Field(examples=["the photo has more than 50,000,000 pixels"], description="one sentence")
    limit: int | None = Field(None, description="what was exceeded, if anything was")


class ErrorAnswer(Answer):
    error: Error


class ClassName(Answer):
    id: str
    name: str


class Guess(ClassName):
    prob: float = Field(ge=0, le=1)


class Amount(Answer):
    value: float
    unit: str


class PhotoPrediction(Answer):
    width: int | None = Field(description="of the upright photo, in pixels")
    height: int | None
    box: list[float] | None = Field(description="as it was sent: left, top, right, bottom")
    part: list[int] | None = Field(description="what the network saw: left, top, right, bottom")
    heads: dict[str, list[Guess] | Amount] = Field(description="classes, the predicted one first; or a number")
    consistent: bool | None = Field(description="whether classes and their parents, as models and makes, fit together")
    sure: dict[str, bool | None] = Field(
        description="whether the probability reaches that of 95 % right answers (or fewer, if 95 is out of reach)"
    )
    error: Error | None = Field(description="why this photo can't be used")


class Prediction(Answer):
    model: str
    photos: list[PhotoPrediction]


class Explanation(Answer):
    model: str
    head: str
    class_: ClassName | None = Field(alias="class")
    part: list[int] = Field(description="of the upright photo that the values belong to: left, top, right, bottom")
    rows: int
    columns: int
    values: list[list[float]] = Field(description="0 to 1, row by row: how much each cell raises the class")
    note: str


class PhotoEmbedding(Answer):
    embedding: list[float] | None
    error: Error | None


class Embeddings(Answer):
    model: str
    width: int
    photos: list[PhotoEmbedding]


class Neighbour(Answer):
    row: int
    similarity: float
    classes: dict[str, ClassName]
    photo: str = Field(description="path of a small JPEG")


class Neighbours(Answer):
    model: str
    neighbours: list[Neighbour]


class ClassWithParent(ClassName):
    parent: ClassName | None


class Classes(Answer):
    head: str
    num_classes: int
    matches: int
    classes: list[ClassWithParent]


class Status(Answer):
    status: str


class About(Answer):
    models: list[str] = Field(description="by which model= chooses")
    name: str
    title: str
    backbone: str
    input_px: int
    crop_to_box: bool = Field(description="whether it was trained on the boxes of its photos")
    decoding: str
    engine: str
    heads: dict[str, dict[str, Any]]
    metrics: dict[str, dict[str, dict[str, Any]]]
    operating_points: dict[str, list[dict[str, float]]]
    neighbours: dict[str, Any]
    card: str = Field(description="the model card, Markdown")
    limits: dict[str, int]


BOX_SCHEMA = {
    "type": ["array", "null"], "items": {"type": "number"}, "minItems": 4, "maxItems": 4,
    "description": "left, top, right, bottom in pixels of the upright photo; null: all of it",
}  # fmt: skip
ONE_PHOTO = {"schema": {"type": "string", "format": "binary"}}


def body_of(max_photos: int = MAX_PHOTOS) -> dict[str, Any]:
    """Return OpenAPI's description of a body with photos."""
    of_json = {
        "type": "object", "additionalProperties": False, "required": ["data"],
        "properties": {"data": {"type": "string", "format": "byte"}, "box": BOX_SCHEMA},
    }  # fmt: skip
    counts = {"minItems": 1, "maxItems": max_photos}
    form = {
        "type": "object", "required": ["photo"], "additionalProperties": False,
        "properties": {
            "photo": {"type": "array", "items": {"type": "string", "format": "binary"}, **counts},
            "boxes": {"type": "string", "description": "JSON: a list with a box, or null, for each photo"},
        },
    }  # fmt: skip
    in_json = {
        "type": "object", "required": ["photos"], "additionalProperties": False,
        "properties": {"photos": {"type": "array", "items": of_json, **counts}},
    }  # fmt: skip
    content = {
        "multipart/form-data": {"schema": form}, "application/json": {"schema": in_json},
        "image/jpeg": ONE_PHOTO, "image/*": ONE_PHOTO, "application/octet-stream": ONE_PHOTO,
    }  # fmt: skip
    return {"requestBody": {"required": True, "content": content}}


def errors_of(*codes: str) -> dict[int | str, dict[str, Any]]:
    """Return FastAPI's description of the answers to these errors."""
    by_status: dict[int | str, list[str]] = {}
    for code in codes:
        by_status.setdefault(STATUS[code], []).append(code)
    return {
        status: {"model": ErrorAnswer, "description": " or ".join(of_status)} for status, of_status in by_status.items()
    }
