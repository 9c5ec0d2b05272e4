"""Find the objects {"bbox_2d": […], "label": "…"} in any text, well-formed or not: the tolerant scanner of JSON answers.

It reads well-formed JSON as a JSON decoder does, except that doubled keys are separate objects, and it reports where each
object stands. Every repetition in its patterns is possessive (*+, ++), so that no text is scanned more than a few times.
"""

import json
import re
from bisect import bisect_left
from typing import NamedTuple

from boxtune.answers.syntaxes.parsed import NUMBER, ParsedObject, Place, read_number, read_numbers

LABEL = "label"
CAPTION = "caption"
BOX_KEYS = ("bbox_2d", "point_2d")

# Full-width and typographic punctuation, and the JSON punctuation that it stands for.
_ASCII_MARKS = {
    "｛": "{",
    "｝": "}",
    "［": "[",
    "］": "]",
    "【": "[",
    "】": "]",
    "：": ":",
    "，": ",",
    "、": ",",
    "=": ":",
    "=>": ":",
}
TO_ASCII = str.maketrans({mark: ascii_mark for mark, ascii_mark in _ASCII_MARKS.items() if len(mark) == 1})
# {opening quote: the quotes that close it}
_DOUBLE = dict.fromkeys("“”„‟«»＂「『", '”“‟»«＂」』"')
_SINGLE = dict.fromkeys("‘’‚‛＇", "’‘‛＇'")
_CLOSING = {'"': '"', "'": "'"} | _DOUBLE | _SINGLE
_OPENING = "".join(_CLOSING)
# What JSON writes without quotes, and what number it is.
_KEYWORDS = {"true": None, "false": None, "null": None, "NaN": float("nan"), "Infinity": float("inf")}

_MARK = r"[{}\[\]:,｛｝［］【】：，、] | =>?+"
# A string ends at its own quote or at the end of the line. A quote ends it only where a value may end. A string that never
# closes must not reach into the next object, so it also ends
#   before a "}" that ends the line or the response, or that the next object follows;
#   before a "{" with a quoted key after it;
#   before a comma with one of our own keys after it.
# In well-formed JSON none of these can be inside a string.
_STRING = r"""
    [{open}] (?:
        [^{close}\\\n{{}},]++ | \\.
      | [{close}](?!\s*+[,:\]}}=：，、］｝】])
      | \}}(?![^\S\n]*+\]?+[^\S\n]*+,?+[^\S\n]*+(?:\n|```|\Z|\{{\s*+[{close}]\w))
      | \{{(?!\s*+[{close}]\w)
      | ,(?!\s*+[{close}](?:bbox_2d|point_2d|label)[{close}])
    )*+ [{close}]?+
"""
# What may stand between a key and its colon: spaces, and any other character that starts no token.
_GAP = rf"(?: [^\w{{}}\[\]:,｛｝［］【】：，、={_OPENING}.+-]++ | [-+](?!\.?\d) | \.(?!\d) )*+"
_COLON = rf"{_GAP} (?: [:：] | =>?+ )"
_LOOSE = "|".join(
    _STRING.format(open=openers, close=closers)
    for openers, closers in (("'", "'"), ("".join(_DOUBLE), _DOUBLE["“"]), ("".join(_SINGLE), _SINGLE["‘"]))
)
# A quoted string or a loose one (in other quotes, or bare words) is a key if a colon follows, and a value otherwise.
_TOKEN = re.compile(
    rf"""
      (?P<mark> {_MARK} )
    | (?P<number> {NUMBER} )
    | (?: (?P<quoted> {_STRING.format(open='"', close='"')} )
        | (?P<loose> {_LOOSE} | [^\W\d]\w*+ (?:[ ]++ \w++ (?! {_COLON} ))*+ )
      ) (?P<colon> {_COLON} )?+
    """,
    re.VERBOSE,
)
# The "{" of what may be an object. {} is none, nor are braces that begin with a colon, or that another "{" cuts off before
# anything is named.
_NAMELESS = rf"[^{{}}｛｝\[\]［］【】:：={_OPENING}]*+"
OBJECT_START = re.compile(rf"[{{｛](?!\}}|\s*+[:：=]|[^{{}}｛｝:：={_OPENING}]*+[{{｛])")
_NAMELESS_BRACES = re.compile(rf"[{{｛]{_NAMELESS}[}}｝]")
# Nearly every object looks like this. The token loop would read it with the same result, but ten times slower.
_USUAL_OBJECT = re.compile(
    r"""
    \{ \s*+ "bbox_2d" \s*+ : \s*+
    \[ (?P<numbers> \s*+ ([0-9]{1,9}+) \s*+ , \s*+ ([0-9]{1,9}+) \s*+ , \s*+ ([0-9]{1,9}+) \s*+ , \s*+ ([0-9]{1,9}+) \s*+ ) \]
    \s*+ , \s*+ "label" \s*+ : \s*+ "(?P<label> [^"\\\n]*+ )" \s*+ \}
    """,
    re.VERBOSE,
)
# So many numbers in braces without a key are a box and not prose such as "the set {1, 2}".
_BOX_LENGTH = 4
# An object whose box cannot be read.
_NO_BOX = ParsedObject((), None, Place((0, 0), (0, 0)))


class _Value(NamedTuple):
    """The value of a key: the text of a scalar, the texts of a list's items, or None for an object. The span includes quotes
    and brackets.
    """

    content: str | list[str] | None
    start: int
    end: int


class Scanned(NamedTuple):
    """What one pair of braces holds.

    end: where it ends in the text. objects: those in it, in order; None for one that has no box. problems: kinds to note once
    per response. is_empty_list: it holds an empty list and no object, as in {"objects": []}.
    """

    end: int
    objects: list[ParsedObject | None]
    problems: list[str]
    is_empty_list: bool = False


class _Braces:
    """A pair of braces as far as it has been scanned.

    keys: the first two keys; None stands for a list without a key. fields: the values of the box and label keys in order,
    None while a key has no value. captions: the values of the caption key, each with the number of fields before it. key: the
    last key, while it has no value. depth: how many lists are open; list_key: the key of the outermost, items: what it holds.
    inner: the objects in nested braces, which count if these braces turn out to be no object themselves.
    """

    # A looping response has hundreds of thousands of braces; most of these values never change.
    keys: tuple[str | None, ...] = ()
    items: list[str]
    captions: tuple[tuple[int, _Value], ...] = ()
    key: str | None = None
    list_key: str | None = None
    list_start = depth = numbers = 0
    is_loose = has_empty_list = False

    def __init__(self, start: int, in_list: bool):
        self.start, self.in_list = start, in_list
        self.fields: list[tuple[str, _Value | None]] = []
        self.inner: list[ParsedObject | None] = []

    def open_key(self, key: str) -> None:
        self.key = key
        if len(self.keys) < 2:
            self.keys += (key,)
        if key == LABEL or key in BOX_KEYS:
            self.fields.append((key, None))

    def add(self, content: str | list[str] | None, start: int, end: int) -> None:
        """Give a value to the key that waits for one. Any other value is dropped."""
        if self.key is None:
            if isinstance(content, list) and len(self.keys) < 2:
                self.keys += (None,)
        elif self.key == CAPTION:
            self.captions += ((len(self.fields), _Value(content, start, end)),)
        elif self.fields and self.fields[-1] == (self.key, None):
            self.fields[-1] = (self.key, _Value(content, start, end))
        self.key = None

    def add_nested(self, found: list[ParsedObject | None]) -> None:
        """Nested braces closed: they are a value, and may hold objects."""
        if self.depth:
            self.items.append("{")
            self.inner += found
            return
        if self.key is not None:
            self.add(None, self.start, self.start)
        if found:
            self.inner += [item for item in found if item]

    def has_key(self, key: str) -> bool:
        return bool(self.fields) and any(name == key for name, _ in self.fields)

    def left_behind(self, box_key: str) -> list[ParsedObject | None]:
        """The objects to keep if these braces never close."""
        return [] if self.has_key(box_key) else self.inner


def usual_object(text: str, start: int) -> tuple[ParsedObject, int] | None:
    """(the object that opens at `start`, its end) if it is written in the usual form."""
    match = _USUAL_OBJECT.match(text, start)
    if not match:
        return None
    numbers = [int(number) for number in match.group(2, 3, 4, 5)]
    place = Place(match.span("numbers"), match.span("label"))
    return ParsedObject(numbers, match["label"], place), match.end()


def scan_braces(text: str, start: int, box_key: str, in_list: bool) -> Scanned:
    """Scan the "{" at `start` up to its "}", or to the end of the text.

    box_key: the key of the coordinates. in_list: whether the braces stand where a list has its items.

    Nested braces are a value if a colon or a list of another key than `box_key` holds them. Any other "{" means that the
    object before it was cut off. Where that was not in other braces, the scan ends there.
    """
    if nameless := _NAMELESS_BRACES.match(text, start):
        is_box = in_list or len(read_numbers(nameless.group())) >= _BOX_LENGTH
        return Scanned(nameless.end(), [_NO_BOX] if is_box else [], [] if is_box else ["prose"])
    problems: list[str] = []
    braces, outer = _Braces(start, in_list), []  # the innermost open braces, and those around them
    kept: list[ParsedObject | None] = []  # objects in braces that were cut off
    after_colon = False  # a "{" that comes next is a value
    is_empty = False  # the "}" that comes next belongs to a {} that is a value
    position = start + 1
    while position >= 0:
        tokens = _TOKEN.finditer(text, position)
        position = -1
        for token in tokens:
            mark, number, quoted, loose, colon = token.groups()
            if not mark:
                scalar = number or quoted or loose
                after_colon = colon is not None
                if (loose and loose not in _KEYWORDS) or (colon and colon[-1] != ":"):
                    braces.is_loose = True
                if colon and not braces.depth:
                    braces.open_key(_unquote(scalar))
                    continue
                braces.numbers += number is not None
                if braces.depth:
                    braces.items.append(scalar)
                else:
                    braces.add(scalar, *token.span())
                continue
            if mark in _ASCII_MARKS:
                braces.is_loose, mark = True, _ASCII_MARKS[mark]
            if mark == "{":
                is_item = braces.depth > 0
                if after_colon and not is_item and text.startswith("}", token.end()):
                    braces.add_nested([])
                    is_empty = True
                    continue
                if (after_colon and not is_item) or (is_item and braces.list_key not in (None, box_key)):
                    outer.append(braces)
                else:
                    _note(problems, "truncated")
                    kept += braces.left_behind(box_key)
                    if not outer:
                        return Scanned(token.start(), kept, problems)
                    is_item = is_item or braces.in_list
                braces, after_colon = _Braces(token.start(), is_item), False
                may_be_usual = box_key == "bbox_2d" and text.startswith('"bbox_2d"', token.end())
                if may_be_usual and (usual := usual_object(text, token.start())):
                    braces, position = outer.pop(), usual[1]
                    braces.add_nested([usual[0]])
                    break  # go on behind it
            elif mark == "}":
                if is_empty:
                    is_empty = after_colon = False
                    continue
                found, is_empty_list = _close(braces, box_key, problems, is_outermost=not outer)
                if not outer:
                    return Scanned(token.end(), kept + found, problems, is_empty_list)
                braces, after_colon = outer.pop(), False
                braces.add_nested(found)
                braces.has_empty_list |= is_empty_list
            elif mark == "[":
                if braces.depth:
                    braces.items.append("[")  # a list in a list is no number
                else:
                    braces.items, braces.list_start, braces.list_key = [], token.start(), braces.key
                braces.depth += 1
                after_colon = False
            elif mark == "]":
                after_colon = False
                if braces.depth:
                    braces.depth -= 1
                    if not braces.depth:
                        braces.has_empty_list |= not braces.items and braces.key is not None
                        braces.add(braces.items, braces.list_start, token.end())
            else:
                after_colon = mark == ":" and (braces.key is not None or braces.numbers > 0)
                if after_colon and not braces.depth and braces.key is None:
                    braces.open_key("")  # a number is the key
    _note(problems, "truncated")
    for unclosed in (*outer, braces):
        kept += unclosed.left_behind(box_key)
    return Scanned(len(text), kept, problems)


def _close(
    braces: _Braces, box_key: str, problems: list[str], is_outermost: bool
) -> tuple[list[ParsedObject | None], bool]:
    """(the objects of braces that closed, whether they hold an empty list and no object)."""
    if braces.is_loose:
        _note(problems, "quotes")
    if braces.has_key(box_key):
        return _read_objects(braces, box_key, problems), False
    is_empty_list = braces.has_empty_list and not braces.fields and not braces.inner
    if not braces.inner and not is_empty_list:
        if braces.keys:
            return [None], False
        if braces.in_list or braces.numbers >= _BOX_LENGTH:
            return [_NO_BOX], False
    if is_outermost:  # what nested braces hold may belong to an object
        _note(problems, "prose")
    return braces.inner, is_empty_list


def _read_objects(braces: _Braces, box_key: str, problems: list[str]) -> list[ParsedObject | None]:
    """The objects of one pair of braces: one, or several if keys are doubled. The key that came first opens each of them."""
    fields = [(i, key, value) for i, (key, value) in enumerate(braces.fields) if key in (box_key, LABEL)]
    if not any(key == box_key and value for _, key, value in fields):
        return [None]
    groups: list[dict[str, _Value | None]] = []
    starts: list[int] = []  # positions in `fields` at which the groups begin
    for i, key, value in fields:
        if not groups or key == fields[0][1] or key in groups[-1]:
            groups.append({})
            starts.append(i)
        groups[-1][key] = value
    for position, caption in braces.captions:
        own = max(bisect_left(starts, position) - 1, 0)
        if CAPTION in groups[own] and own + 1 < len(groups):
            own += 1  # here, captions come before their objects
        groups[own].setdefault(CAPTION, caption)
    if len(groups) > 1 or braces.keys != (box_key, LABEL):
        _note(problems, "key_order")
    has_label = braces.has_key(LABEL)
    return [_read_object(group, box_key, has_label, problems) if box_key in group else None for group in groups]


def _read_object(group: dict[str, _Value | None], box_key: str, has_label: bool, problems: list[str]) -> ParsedObject:
    """One object. Its label is None if the braces have no label at all, and "" if it is broken or belongs to another box."""
    box, label = group[box_key], group.get(LABEL)
    if box is None or not isinstance(box.content, list):
        return _NO_BOX
    numbers = [_read_item(item, problems) for item in box.content]
    if float in map(type, numbers):
        _note(problems, "float")
    name, span = _read_label(label) if label else ("", (box.end, box.end))
    caption, caption_span = _read_caption(group.get(CAPTION))
    place = Place((box.start + 1, box.end - 1), span, caption_span)
    return ParsedObject(numbers, name if has_label else None, place, caption)


def _read_caption(value: _Value | None) -> tuple[str | None, tuple[int, int]]:
    """(the caption that a string spells, its place); None if there is none or null, "" if it cannot be read."""
    if value is None or value.content == "null":
        return None, (0, 0)
    return _read_label(value)


def _read_item(item: str, problems: list[str]) -> int | float | str | None:
    """A number of a box, which may be written as a string."""
    if item in _KEYWORDS:
        return _KEYWORDS[item]
    if item[0] not in _CLOSING:
        return read_number(item)
    characters = _without_quotes(item).strip()
    if re.fullmatch(NUMBER, characters):
        _note(problems, "quotes")
        return read_number(characters)
    return item


def _read_label(value: _Value) -> tuple[str, tuple[int, int]]:
    """(the label that a string or word spells, its place); "" for anything else, and for a string whose quote never closes."""
    token, span = value.content, (value.start, value.end)
    if not isinstance(token, str) or token in _KEYWORDS or re.match(NUMBER, token) or not _is_closed(token):
        return "", span
    return _unquote(token), (value.start + 1, value.end - 1) if token[0] in _CLOSING else span


def _is_closed(token: str) -> bool:
    """Whether the quote that a token begins with is closed. A word has none."""
    if token[0] not in _CLOSING:
        return True
    before = token[1:-1]
    escapes = len(before) - len(before.rstrip("\\"))
    return len(token) > 1 and token[-1] in _CLOSING[token[0]] and escapes % 2 == 0


def _without_quotes(token: str) -> str:
    """The characters of a string or word. The closing quote may be missing."""
    if token[0] not in _CLOSING:
        return token
    return token[1:-1] if _is_closed(token) else token[1:]


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


def _note(problems: list[str], problem: str) -> None:
    if problem not in problems:
        problems.append(problem)
