"""Guesses the encoding of text that is not UTF-8."""

import re
from collections.abc import Iterable
from pathlib import Path

# {encoding: the first bytes of its common characters}, the most likely encoding first. Chinese and Japanese standards sort
# the characters that nearly all texts consist of in front of the others: level 1, and punctuation or kana before it.
_COMMON = {
    "GBK": (range(0xA1, 0xA4), range(0xB0, 0xD8)),
    "BIG5": (range(0xA1, 0xC7),),
    "SHIFT_JIS": (range(0x81, 0x84), range(0x88, 0x99)),
}
_LEAST_COMMON = 0.8  # share of common characters in a text of an encoding
_HEAD = 4096  # bytes in which a file of two-byte characters shows itself


def guess_encoding(content: bytes) -> str | None:
    """A name that Python and iconv know; None if the bytes are no text in a usual encoding."""
    if content.startswith((b"\xff\xfe\0\0", b"\0\0\xfe\xff")):
        return "UTF-32"
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "UTF-16"
    if b"\0" in content[:_HEAD]:
        return {0: "UTF-16LE", 1: "UTF-16BE"}.get(content.find(b"\0") % 2 ^ 1) if content.isascii() else None
    shares = {encoding: _share_of_common(content, encoding) for encoding in _COMMON}
    best = max(shares, key=shares.__getitem__)
    if shares[best] >= _LEAST_COMMON:
        return best
    return "CP1252" if _decoded(content, "CP1252") else None


def name_faults(folders: Iterable[Path]) -> list[str]:
    """Why files in these folders cannot be found by their names: the names are not UTF-8, as after unpacking some zip files."""
    faults = []
    for folder in sorted(folders):
        names = [path.name for path in sorted(folder.iterdir())] if folder.is_dir() else []
        if strange := [name for name in names if has_other_bytes(name)]:
            faults.append(f"{folder}: {len(strange)} file name(s) are {describe_names(strange)} {folder}")
    return faults


def has_other_bytes(name: str) -> bool:
    """Whether the name of a file on disk is not UTF-8. Python reads such bytes as the characters U+DC80 to U+DCFF."""
    return any("\udc80" <= character <= "\udcff" for character in name)


def describe_names(names: list[str]) -> str:
    """The encoding that file names probably have, and the start of a command that renames the files of a folder."""
    text = re.sub("[\ud800-\udc7f\udd00-\udfff]", "", "\n".join(names))  # those in annotations stand for no bytes
    encoding = guess_encoding(text.encode("utf-8", "surrogateescape"))
    known = f"they look like {encoding}" if encoding else "their encoding is unknown"
    return f"not UTF-8; {known}. Rename the files, for example: convmv -r --notest -f {encoding or 'ENCODING'} -t UTF-8"


def _decoded(content: bytes, encoding: str) -> str:
    """The text; "" if the bytes are no text of that encoding."""
    try:
        return content.decode(encoding)
    except UnicodeDecodeError:
        return ""


def _share_of_common(content: bytes, encoding: str) -> float:
    """The share of common characters among those that are not ASCII; 0 for what is rather Western text.

    Accented letters of Western text can be read as these encodings too, but then stand beside other letters.
    """
    text = _decoded(content, encoding)
    runs = re.findall(r"[A-Za-z]?[^\x00-\x7f]+[A-Za-z]?", text)
    if not runs or sum(run[0].isascii() or run[-1].isascii() for run in runs) > len(runs) / 2:
        return 0
    firsts = [character.encode(encoding) for run in runs for character in run if not character.isascii()]
    common = sum(len(code) == 2 and any(code[0] in part for part in _COMMON[encoding]) for code in firsts)
    return common / len(firsts)
