"""Records made in memory, the repository's root folder, and the names of families."""

from pathlib import Path

from boxtune.data.questions import question

ROOT = Path(__file__).resolve().parents[2]
# Between them, all syntaxes, coordinate frames and patch sizes. tests/families has the tests of the other families.
FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
CODEC_NAMES = (*FAMILIES, *(f"{family}_click" for family in FAMILIES))


def make_record(
    name: str, image: str, width: int, height: int, objects: list[tuple[list[float], str]], **extra
) -> dict:
    """A prepared record that asks for every class it holds; `ignore` is False throughout."""
    classes = sorted({label for _, label in objects}) or ["thing"]
    return {
        "id": name,
        "image": image,
        "width": width,
        "height": height,
        "objects": {
            "bbox": [box for box, _ in objects],
            "category": [label for _, label in objects],
            "ignore": [False] * len(objects),
        },
        "messages": [
            {"role": "user", "content": question(extra.pop("classes", classes))},
            {"role": "assistant", "content": "<boxes>"},
        ],
        **extra,
    }
