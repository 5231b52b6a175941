"""A small COCO file with every kind of segmentation: polygons, both encodings, a point, none."""

GOOD = {
    "images": [
        {"id": 7, "file_name": "b/é.png", "height": 20, "width": 30},
        {"id": 2, "file_name": "a.png", "height": 20, "width": 30},
    ],
    "categories": [{"id": 5, "name": "cell"}, {"id": 3, "name": "dust"}],
    "annotations": [
        {"id": 4, "image_id": 7, "category_id": 3, "bbox": [2, 2, 8, 6], "area": 48, "iscrowd": 0,
         "segmentation": [[2, 2, 10, 2, 10, 8, 2, 8], [1, 2]]},
        {"id": 9, "image_id": 7, "category_id": 5, "bbox": [0, 0, 1, 20], "area": 20, "iscrowd": 1,
         "segmentation": {"size": [20, 30], "counts": [0, 20, 580]}},
        {"id": 1, "image_id": 7, "category_id": 5, "bbox": [2, 2, 8, 6], "area": 48, "iscrowd": False,
         "segmentation": {"size": [20, 30], "counts": "0d0Tb0"}},
        {"id": 3, "image_id": 2, "category_id": 5, "bbox": [2, 2, 8, 6], "area": 48, "iscrowd": 0,
         "segmentation": [[2, 2, 10, 2]]},
        {"id": 8, "image_id": 2, "category_id": 5, "bbox": [2, 2, 8, 6], "area": 48, "iscrowd": 0},
    ],
}  # fmt: skip
