"""All source formats: {name: (module with recognise() and read(), help line)}."""

from data_prep.formats import (
    aabb,
    coco,
    csv_table,
    cvat,
    hf,
    jsonl,
    labelme,
    labelstudio,
    openfoodfacts,
    via,
    voc,
    yolo,
)

FORMATS = {
    "voc": (voc, "Pascal VOC: a devkit folder, or .xml files beside their images"),
    "coco": (coco, "COCO: a .json file, or a folder with one for each split"),
    "yolo": (yolo, "YOLO: data.yaml, or the folder that contains it"),
    "csv": (csv_table, "CSV: a file, or a folder with one for each split"),
    "via": (via, "VGG Image Annotator: a .json or .csv file, or a folder with one for each split"),
    "labelme": (labelme, "labelme: a folder of .json files, with or without their images"),
    "cvat": (cvat, "CVAT for images 1.1: annotations.xml, or the folder that contains it"),
    "labelstudio": (labelstudio, "Label Studio: a JSON or JSON-MIN export, or the folder that contains it"),
    "aabb": (aabb, "JSON list with objects of class and bbox_aabb in fractions"),
    "jsonl": (jsonl, "JSON lines: metadata.jsonl of an `imagefolder`, or the folder that contains it"),
    "hf": (hf, "any detection table of `datasets`: a hub id, .parquet files, or a save_to_disk folder"),
    "openfoodfacts": (openfoodfacts, "a table such as openfoodfacts/nutrition-table-detection: like hf, y before x"),
}
