"""What every export of predictions gets."""

# (box_xyxy, class number from 0, score) of each object of one image.
Rows = list[tuple[list[float], int, float]]
