"""JSON answers: [{"bbox_2d": [x0, y0, x1, y1], "label": "cat"}, …].

`parse` makes one strict attempt with Python's JSON decoder. If the response is not such a list, one tolerant scanner collects
every complete {…} that has a "bbox_2d". It accepts code fences, prose, missing quotes, single quotes, any order of keys and a
truncated end, and names what it accepted in the problems. It never guesses a missing number or label.
"""

import json
import re
from dataclasses import dataclass, field
from typing import NamedTuple

from boxtune.answers.syntaxes.parsed import NUMBER, Parsed, ParsedObject, Place, read_number

KEYS = ["bbox_2d", "label"]

# The tokens inside an object; whatever lies between them has no meaning. Every repetition is possessive (*+, ++), so that no
# text is scanned more than a few times.
# A string ends at its own quote or at the end of the line. A quote ends it only where a value may end: before , : ] or }.
_STRING = r"{0} (?: [^{0}\\\n]++ | \\. | {0}(?!\s*+[,:\]}}]) )*+ {0}?+"
# What may stand between a key and its colon: spaces, and any other character that starts no token.
_GAP = r"(?: [^{}\[\]:,\"'A-Za-z_\d.+-]++ | [-+](?!\.?\d) | \.(?!\d) )*+"
# A quoted string or a loose one (in single quotes, or a bare word) is a key if a colon follows, and a value otherwise.
_TOKEN = re.compile(
    rf"""
      (?P<mark> [{{}}\[\]:,] )
    | (?P<number> {NUMBER} )
    | (?: (?P<quoted> {_STRING.format('"')} ) | (?P<loose> {_STRING.format("'")} | [A-Za-z_]\w*+ ) ) (?P<colon> {_GAP} : )?+
    """,
    re.VERBOSE,
)
# An empty {} is not an object.
_OBJECT_START = re.compile(r"\{(?!\})")
# Nearly every object looks like this. The token loop would read it with the same result, but ten times slower.
_USUAL_OBJECT = re.compile(
    r"""
    \{ \s*+ "bbox_2d" \s*+ : \s*+
    \[ (?P<numbers> \s*+ ([0-9]{1,9}+) \s*+ , \s*+ ([0-9]{1,9}+) \s*+ , \s*+ ([0-9]{1,9}+) \s*+ , \s*+ ([0-9]{1,9}+) \s*+ ) \]
    \s*+ , \s*+ "label" \s*+ : \s*+ "(?P<label> [^"\\\n]*+ )" \s*+ \}
    """,
    re.VERBOSE,
)
_FENCE = re.compile(r"```[a-zA-Z]*")


def write(rows: list[list[int]], labels: list[str]) -> str:
    objects = [{"bbox_2d": row, "label": label} for row, label in zip(rows, labels, strict=True)]
    return json.dumps(objects, ensure_ascii=False)


def parse(text: str) -> Parsed:
    body = text.strip()
    try:
        data, end = json.JSONDecoder().raw_decode(body)
        canonical = json.dumps(data, ensure_ascii=False)
    except (ValueError, RecursionError):
        return _scan(text)
    rest = body[end:].strip()
    if "bbox_2d" in rest:  # several lists, or one object per line
        return _scan(text)
    items = [data] if isinstance(data, dict) else data
    if not isinstance(items, list) or not all(isinstance(item, dict) and "bbox_2d" in item for item in items):
        return _scan(text, is_json=not rest)
    parsed = _read_items(items, text)
    if rest:
        parsed.note("prose")
    if not parsed.problems and text != canonical:
        parsed.note("spacing")
    return parsed


def _read_items(items: list[dict[str, object]], text: str) -> Parsed:
    """The objects that the strict decoder found. The scanner adds their places, which the decoder does not report."""
    parsed = Parsed()
    places = [scanned.place for scanned in _scan(text).objects]
    if len(places) != len(items):
        places = [None] * len(items)
    for item, place in zip(items, places, strict=True):
        box = item["bbox_2d"]
        values = box if isinstance(box, list) else []
        parsed.objects.append(ParsedObject(values, item.get("label"), place))
        if any(isinstance(value, float) for value in values):
            parsed.note("float")
        if list(item)[:2] != KEYS:
            parsed.note("key_order")
    return parsed


# ---- the tolerant scanner ----------------------------------------------------------------------------------------------


def _scan(text: str, is_json: bool = False) -> Parsed:
    """Collect the objects of any text. If `is_json`, the whole text is valid JSON, so that nothing in it can be truncated."""
    parsed = Parsed()
    if _FENCE.search(text):
        parsed.note("fence")
    outside: list[str] = []  # the text before, between and after the objects
    without_box = 0
    is_truncated = False
    position = 0
    while opening := _OBJECT_START.search(text, position):
        start = opening.start()
        outside.append(text[position:start])
        if usual := _USUAL_OBJECT.match(text, start):
            parsed.objects.append(_usual_object(usual))
            position = usual.end()
            continue
        scanned = _scan_object(text, start)
        position = scanned.end
        if not scanned.is_closed or scanned.start > start:
            is_truncated = True
        if not scanned.is_closed:
            continue
        if scanned.has_loose_strings:
            parsed.note("quotes")
        if "bbox_2d" in scanned.fields:
            _add_object(parsed, scanned)
        elif ":" in text[scanned.start : scanned.end]:
            without_box += 1
    outside.append(text[position:])
    around = _FENCE.sub("", "".join(outside).replace("{}", ""))
    if "[" in around and "]" not in around:
        is_truncated = True
    if is_truncated and not is_json:
        parsed.note("truncated")
    parsed.problems += ["bad_box"] * without_box
    if re.search(r"[^\s,\[\]]", around):
        parsed.note("prose")
    is_empty_list = not without_box and re.sub(r"\s+", "", around) == "[]"
    if not parsed.objects and not is_empty_list:
        parsed.problems = ["truncated", "unparsable"] if "truncated" in parsed.problems else ["unparsable"]
    elif not parsed.problems:
        parsed.note("spacing")
    return parsed


class _Value(NamedTuple):
    """The value of a key: the text of a scalar, or the texts of a list's items. The span includes quotes and brackets."""

    content: str | list[str]
    start: int
    end: int


@dataclass(slots=True)
class _ScannedObject:
    """One {…} as far as it has been scanned.

    `fields` holds the first value of each key. A list before the first key is kept under None, so that the order of the keys
    counts as unusual.
    """

    start: int
    end: int = 0
    is_closed: bool = False
    has_loose_strings: bool = False
    key: str | None = None  # the last key, while it has no value
    fields: dict[str | None, _Value] = field(default_factory=dict)

    def add(self, value: _Value) -> None:
        """Give the value to the key that waits for one. Any other value is dropped, except a list before all keys."""
        is_first_list = isinstance(value.content, list) and not self.fields
        if self.key is not None or is_first_list:
            self.fields.setdefault(self.key, value)
        self.key = None


def _scan_object(text: str, start: int) -> _ScannedObject:
    """Scan the object that opens at `start` up to its "}", or to the end of the text.

    A "{" directly after a colon opens a nested object, which is skipped. Any other "{" means that the object before it was
    cut off; then the result is the object that opens there.
    """
    scanned = _ScannedObject(start)
    items: list[str] | None = None  # of the list that is open
    list_start = 0
    nesting = 0  # how many nested objects are open
    after_colon = False  # a "{" that comes next opens a nested object
    for token in _TOKEN.finditer(text, start + 1):
        mark, number, quoted, loose, colon = token.groups()
        if nesting:
            nesting += (mark == "{") - (mark == "}")
        elif mark == "{" and after_colon:
            nesting = 1
        elif mark == "{":
            scanned, items = _ScannedObject(token.start()), None
        elif mark == "}":
            scanned.end, scanned.is_closed = token.end(), True
            return scanned
        elif mark:
            after_colon = mark == ":"
            if mark == "[":  # a list that was already open is dropped
                items, list_start = [], token.start()
            elif mark == "]" and items is not None:
                scanned.add(_Value(items, list_start, token.end()))
                items = None
        else:
            scalar = number or quoted or loose
            after_colon = colon is not None
            if loose:
                scanned.has_loose_strings = True
            if items is not None:
                items.append(scalar)
            elif colon:
                scanned.key = _unquote(scalar)
            else:
                scanned.add(_Value(scalar, *token.span()))
    scanned.end = len(text)
    return scanned


def _usual_object(match: re.Match[str]) -> ParsedObject:
    numbers = [int(number) for number in match.group(2, 3, 4, 5)]
    return ParsedObject(numbers, match["label"], Place(match.span("numbers"), match.span("label")))


def _add_object(parsed: Parsed, scanned: _ScannedObject) -> None:
    """Add a closed object that has a "bbox_2d", and note how its fields differ from the usual ones."""
    box, label = scanned.fields["bbox_2d"], scanned.fields.get("label")
    label_token = label.content if label and isinstance(label.content, str) else ""
    numbers = [read_number(item) for item in box.content] if isinstance(box.content, list) else []
    if float in map(type, numbers):
        parsed.note("float")
    if list(scanned.fields)[:2] != KEYS:
        parsed.note("key_order")
    label_start = (label.start if label else scanned.start) + label_token.startswith(("'", '"'))
    place = Place((box.start + 1, box.end - 1), (label_start, label_start + len(_without_quotes(label_token))))
    parsed.objects.append(ParsedObject(numbers, _unquote(label_token), place))


def _without_quotes(token: str) -> str:
    """The characters of a string or word. The closing quote may be missing."""
    if not token.startswith(("'", '"')):
        return token
    return token[1:-1] if len(token) > 1 and token[-1] == token[0] else token[1:]


def _unquote(token: str) -> str:
    """The string that a token spells, its escapes resolved; characters that are no valid escapes stay as they are."""
    characters = _without_quotes(token)
    if "\\" not in characters:
        return characters
    try:
        # A JSON string has double quotes around it, and only those are escaped in it.
        return str(json.loads('"' + characters.replace("\\'", "'").replace('"', '\\"').replace('\\\\"', '\\"') + '"'))
    except ValueError:
        return characters
