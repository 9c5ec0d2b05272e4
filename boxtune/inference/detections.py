"""The objects found in one image, as arrays and in the formats of other tools."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from boxtune.answers.predictions import Prediction, response_text
from boxtune.common.errors import UserError
from boxtune.data.boxes import box_xyxy_to_xywh
from boxtune.data.records import CAPTION

if TYPE_CHECKING:
    import supervision


@dataclass(frozen=True, eq=False)
class Detections:
    """N objects of one image, in the order of the model's response, or by falling score where it gave several responses.

    boxes_xyxy: (N, 4) float64, in pixels of the upright original image; (0, 4) if the checkpoint answers with points.
    points_xy: (N, 2) float64, in the same pixels; (0, 2) if the checkpoint answers with boxes.
    labels: N class names. class_ids: (N,) int64, the positions of the labels in `classes`, -1 for a label that is not there.
    scores: (N,) float64 from 0 to 1.
    captions: N captions, None where the model wrote none; empty if it was not trained to write any.
    classes: the checkpoint's classes, followed by any other classes that the call asked for.
    size: (width, height) of the upright original image.
    text: the response as generated; where several questions were asked about the image, the responses one below the other.
    problems: what was wrong with it, such as "truncated" (docs/architecture.md lists them).
    """

    boxes_xyxy: np.ndarray
    points_xy: np.ndarray
    labels: list[str]
    class_ids: np.ndarray
    scores: np.ndarray
    classes: list[str]
    size: tuple[int, int]
    text: str
    problems: list[str]
    captions: list[str | None]

    @classmethod
    def from_prediction(cls, prediction: Prediction, classes: Sequence[str]) -> "Detections":
        """The objects of a line of predictions.jsonl."""
        objects = prediction["objects"]
        labels = list(objects["category"])
        class_ids = {name: number for number, name in enumerate(classes)}
        return cls(
            boxes_xyxy=np.array(objects.get("bbox", []), dtype=float).reshape(-1, 4),
            points_xy=np.array(objects.get("point", []), dtype=float).reshape(-1, 2),
            labels=labels,
            class_ids=np.array([class_ids.get(label.strip(), -1) for label in labels], dtype=np.int64),
            scores=np.array(objects["score"], dtype=float),
            classes=list(classes),
            size=(prediction["width"], prediction["height"]),
            text=response_text(prediction),
            problems=list(prediction["problems"]),
            captions=list(objects.get(CAPTION, [])),
        )

    def __len__(self) -> int:
        return len(self.labels)

    def to_coco(self, image_id: int) -> list[dict[str, Any]]:
        """COCO result dicts: image_id, category_id (class id + 1), bbox (xywh in pixels) and score.

        These are the category ids of `python -m data_prep export`. A label outside `classes` has none, so its object is left
        out. Raises UserError if the detections are points.
        """
        self._require_boxes("to_coco")
        rows = zip(
            self.class_ids.tolist(), box_xyxy_to_xywh(self.boxes_xyxy).tolist(), self.scores.tolist(), strict=True
        )
        return [
            {"image_id": image_id, "category_id": class_id + 1, "bbox": box, "score": score}
            for class_id, box, score in rows
            if class_id >= 0
        ]

    def to_supervision(self) -> "supervision.Detections":
        """`sv.Detections` with the labels as `data["class_name"]` and, if there are any, the captions as `data["caption"]`.

        Raises UserError if the detections are points, or if the package supervision is not installed.
        """
        self._require_boxes("to_supervision")
        try:
            import supervision
        except ModuleNotFoundError:
            raise UserError("to_supervision needs the package supervision: pip install supervision") from None
        return supervision.Detections(
            xyxy=self.boxes_xyxy,
            confidence=self.scores,
            class_id=self.class_ids,
            data={
                "class_name": np.array(self.labels, dtype=str),
                **({CAPTION: np.array(self.captions, dtype=object)} if self.captions else {}),
            },
        )

    def _require_boxes(self, method: str) -> None:
        if len(self.points_xy):
            raise UserError(f"{method}: this checkpoint answers with points, not boxes. Use points_xy.")
