"""All source formats: {name: (module with recognise() and read(), help line)}."""

from data_prep.formats import (
    aabb,
    coco,
    csv_table,
    cvat,
    dota,
    hf,
    jsonl,
    kitti,
    labelme,
    labelstudio,
    openfoodfacts,
    via,
    visdrone,
    voc,
    yolo,
)

FORMATS = {
    "voc": (voc, "Pascal VOC: a devkit folder, or .xml files next to their images"),
    "coco": (coco, "COCO: a .json file, or a folder with one file per split"),
    "yolo": (yolo, "YOLO: data.yaml, or the folder that contains it"),
    "csv": (csv_table, "CSV: a file, or a folder with one file per split"),
    "via": (via, "VGG Image Annotator: a .json or .csv file, or a folder with one file per split"),
    "labelme": (labelme, "labelme: a folder of .json files, with or without their images"),
    "cvat": (cvat, "CVAT for images 1.1: annotations.xml, or the folder that contains it"),
    "labelstudio": (labelstudio, "Label Studio: a JSON or JSON-MIN export, or the folder that contains it"),
    "kitti": (kitti, "KITTI: a folder with one .txt file per image, such as label_2"),
    "dota": (dota, "DOTA or YOLOv5-OBB: a folder with one .txt file per image; rotated boxes become upright"),
    "visdrone": (visdrone, "VisDrone DET: a folder with one .txt file per image"),
    "aabb": (aabb, "a JSON list of objects with class and bbox_aabb (corners as fractions of the image)"),
    "jsonl": (jsonl, "JSON lines: metadata.jsonl of an `imagefolder`, or the folder that contains it"),
    "hf": (hf, "any Hugging Face `datasets` table with boxes: a Hub id, .parquet files, or a save_to_disk folder"),
    "openfoodfacts": (
        openfoodfacts,
        "like hf, for boxes with y before x, such as openfoodfacts/nutrition-table-detection",
    ),
}
