"""How well the captions of detected objects agree with those of the ground truth."""

import re
import sys

from boxtune.answers.predictions import Prediction
from boxtune.data.records import CAPTION, Record, object_columns
from boxtune.metrics.matching import ImageMatch

# Chinese and Japanese ideographs, which are written without spaces between words.
_IDEOGRAPH = re.compile(r"[\u3400-\u9fff]")


def caption_scores(records: list[Record], predictions: list[Prediction], images: list[ImageMatch]) -> dict | None:
    """{"n", "exact", "bleu"} over the matched pairs whose ground truth has a caption; None if no prediction has captions.

    exact: the fraction of equal captions, apart from outer space. bleu: corpus BLEU from 0 to 1, None if sacrebleu is not
    installed. Without pairs both are None. A prediction without a caption counts as an empty one.
    """
    if not any(CAPTION in prediction["objects"] for prediction in predictions):
        return None
    pairs = []
    for record, prediction, image in zip(records, predictions, images, strict=True):
        wanted, found = object_columns(record["objects"]).get(CAPTION), prediction["objects"].get(CAPTION)
        for predicted, actual, _ in image.pairs:
            if wanted and isinstance(wanted[actual], str) and wanted[actual].strip():
                pairs.append((((found and found[predicted]) or "").strip(), wanted[actual].strip()))
    if not pairs:
        return {"n": 0, "exact": None, "bleu": None}
    exact = sum(found == wanted for found, wanted in pairs) / len(pairs)
    return {"n": len(pairs), "exact": exact, "bleu": _bleu(pairs)}


def _bleu(pairs: list[tuple[str, str]]) -> float | None:
    """Corpus BLEU of (predicted, actual) captions."""
    try:
        from sacrebleu.metrics import BLEU
    except ModuleNotFoundError:
        print('note: captions: BLEU needs the package sacrebleu: pip install "boxtune[captions]"', file=sys.stderr)
        return None
    found, wanted = zip(*pairs, strict=True)
    has_ideographs = any(map(_IDEOGRAPH.search, wanted))
    # Captions are often shorter than four words; without effective_order their BLEU would be 0 even if they are right.
    bleu = BLEU(tokenize="zh" if has_ideographs else "13a", effective_order=True)
    return float(bleu.corpus_score(list(found), [list(wanted)]).score) / 100
