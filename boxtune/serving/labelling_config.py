"""The labelling configuration of a Label Studio project: which labels its rectangles may have."""

import xml.etree.ElementTree as ET
from dataclasses import dataclass

from boxtune.answers.codecs import fold_name
from boxtune.common.errors import shown
from boxtune.reports.label_studio_tasks import Control
from boxtune.serving.errors import RequestError

FIELD = "label_config"


@dataclass(frozen=True)
class LabellingConfig:
    """labels: as Label Studio expects them in a region, in the order of the configuration."""

    control: Control
    labels: list[str]
    _by_folded_name: dict[str, str]

    def label_for(self, name: str) -> str | None:
        """The label that equals a model's label but for case, width and outer space; None if there is none."""
        return name if name in self.labels else self._by_folded_name.get(fold_name(name))


def read_config(xml: str) -> LabellingConfig:
    """The first RectangleLabels on an image. Raises RequestError if the configuration cannot be used."""
    root = _parse(xml)
    images = {image.get("name"): image for image in root.iter("Image")}
    controls = [control for control in root.iter("RectangleLabels") if control.get("toName") in images]
    if not controls:
        raise unusable("it has no RectangleLabels whose toName is the name of an Image")
    image = images[controls[0].get("toName")]
    variable = image.get("value", "")
    if not variable.startswith("$") or len(variable) == 1:
        raise unusable(f"its Image must have a value such as $image, got {shown(variable)}")
    by_folded_name: dict[str, str] = {}
    labels = []
    for label in controls[0].iter("Label"):
        # Label Studio stores the alias of a label in regions, if it has one.
        if stored := label.get("alias") or label.get("value"):
            labels.append(stored)
            by_folded_name |= {fold_name(name): stored for name in (label.get("value"), stored) if name}
    if not labels:
        raise unusable("its RectangleLabels have no Label; labels from a task's data are not supported")
    control = Control(controls[0].get("name", ""), image.get("name", ""), variable[1:])
    return LabellingConfig(control, labels, by_folded_name)


def _parse(xml: str) -> ET.Element:
    if "<!DOCTYPE" in xml:  # its entities could expand without limit
        raise unusable("it has a DOCTYPE")
    try:
        return ET.fromstring(xml)
    except (ET.ParseError, ValueError) as error:
        raise unusable(f"it is not XML: {error}") from None


def unusable(reason: str) -> RequestError:
    return RequestError(422, f"the labelling configuration cannot be used: {reason}.", FIELD)
