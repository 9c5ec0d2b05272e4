"""Questions about classes that an image of the user lacks: does the model invent boxes?"""

import random

from boxtune.data.absent_questions import absent_questions
from boxtune.inference.probes.material import Material
from boxtune.inference.probes.subject import Shown, Subject
from boxtune.metrics.guardrail_rules import Probe, mean_of


def measure(subject: Subject, material: Material) -> dict[str, Probe]:
    descriptions = subject.collator.grounding.descriptions
    questions = [
        Shown(question, one.open)
        for one in material.records
        for question in absent_questions([one.record], material.classes, descriptions)
    ]
    count = min(material.suite.questions, len(questions))
    predictions = subject.detect(random.Random(material.suite.seed).sample(questions, count))
    return {"absent_rate": mean_of([bool(prediction["objects"]["category"]) for prediction in predictions])}
