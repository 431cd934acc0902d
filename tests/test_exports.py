"Files for other programs are read back: the same cells, the same areas, valid rings."

import json

import numpy as np
import pytest
import roifile
import shapely
import tifffile
from skimage.draw import disk, polygon2mask

from bloodcount.counting import cells_from_discs, cells_from_labels
from bloodcount.exports import (
    outlines,
    read_labels,
    write_coco,
    write_geojson,
    write_labels,
    write_rois,
)


def awkward_labels() -> np.ndarray:
    "Discs in and over the border, one pixel, a ring, pieces that touch by a corner, ragged cells."
    rng = np.random.default_rng(3)
    labels = np.zeros((160, 220), np.int32)
    for number, place in enumerate([(30, 30), (0, 90), (159, 219), (80, 0), (90, 60)], start=1):
        labels[disk(place, 16, shape=labels.shape)] = number
    labels[disk((90, 60), 6)] = 0  # A ring
    labels[140, 20] = 6
    labels[60, 150], labels[61, 151] = 7, 7
    labels[100:130, 120:150][rng.random((30, 30)) < 0.6] = 8
    labels[60:70, 180:190][np.eye(10, dtype=bool)] = 9
    return labels


LABELS = awkward_labels()
CELLS = {"rbc": cells_from_labels(LABELS), "wbc": cells_from_discs([[50, 60]], [9.5], LABELS.shape)}
AREAS = {c: np.bincount(those.labels.ravel())[1:] for c, those in CELLS.items()}


def test_outlines_are_valid_and_of_the_area_of_their_pixels():
    shapes = outlines(LABELS)
    assert len(shapes) == 9 and all(shape.is_valid for shape in shapes.values())
    assert [shape.area for shape in shapes.values()] == AREAS["rbc"].tolist()
    assert outlines(np.zeros((4, 5), np.int32)) == {}


def test_imagej_rois(tmp_path):
    write_rois(tmp_path / "a.zip", CELLS)
    rois = roifile.roiread(tmp_path / "a.zip")
    assert len(rois) == 10 and {roi.name for roi in rois} >= {"rbc-1", "rbc-9", "wbc-1"}
    for roi in rois:
        cell, label = roi.name.split("-")
        found = roi.coordinates(multi=True)
        parts = found if isinstance(found, list) else [found]
        joined = shapely.Polygon()
        for part in parts:  # ImageJ takes what lies in an odd number of rings
            joined = joined.symmetric_difference(shapely.Polygon(part).buffer(0))
        assert joined.area == pytest.approx(AREAS[cell][int(label) - 1], abs=1), roi.name


def test_no_cells_make_an_empty_set(tmp_path):
    none = {"rbc": cells_from_labels(np.zeros((20, 20), np.int32))}
    write_rois(tmp_path / "a.zip", none)
    assert roifile.roiread(tmp_path / "a.zip") == []
    write_geojson(tmp_path / "a.geojson", none)
    assert json.loads((tmp_path / "a.geojson").read_text())["features"] == []


def test_qupath_geojson(tmp_path):
    write_geojson(tmp_path / "a.geojson", CELLS)
    features = json.loads((tmp_path / "a.geojson").read_text())["features"]
    assert len(features) == 10
    for feature in features:
        shape = shapely.geometry.shape(feature["geometry"])
        cell, label = feature["properties"]["name"].split("-")
        assert shape.is_valid and shape.area == AREAS[cell][int(label) - 1]
        assert feature["properties"]["classification"]["name"] in ("red cells", "white cells")


def coco_mask(segmentation, shape) -> np.ndarray:
    "As COCO's readers draw it: polygons by their corners, run lengths column by column."
    if isinstance(segmentation, dict):
        runs = segmentation["counts"]
        flat = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
        return flat.reshape(segmentation["size"], order="F")
    mask = np.zeros(shape, bool)
    for ring in segmentation:
        xy = np.reshape(ring, (-1, 2))
        mask |= polygon2mask(shape, xy[:, ::-1] - 0.5)
    return mask


def test_coco(tmp_path):
    write_coco(tmp_path / "a.json", "a.png", CELLS)
    told = json.loads((tmp_path / "a.json").read_text())
    assert told["images"] == [{"id": 1, "file_name": "a.png", "height": 160, "width": 220}]
    names = {kind["id"]: kind["name"] for kind in told["categories"]}
    assert len(told["annotations"]) == 10
    for found in told["annotations"]:
        cell = names[found["category_id"]]
        mask = coco_mask(found["segmentation"], LABELS.shape)
        assert mask.sum() == pytest.approx(AREAS[cell][found["label"] - 1], abs=1)
        assert found["area"] == AREAS[cell][found["label"] - 1]
        x, y, width, height = found["bbox"]
        rows, cols = np.nonzero(CELLS[cell].labels == found["label"])
        assert (x, y) == (cols.min(), rows.min())
        assert (width, height) == (np.ptp(cols) + 1, np.ptp(rows) + 1)


def test_label_images_do_not_wrap(tmp_path):
    write_labels(tmp_path / "a.tif", LABELS, pixel_size=0.1)
    assert tifffile.imread(tmp_path / "a.tif").dtype == np.uint16
    assert (read_labels(tmp_path / "a.tif") == LABELS).all()
    many = np.arange(70_000, dtype=np.int32).reshape(250, 280)
    write_labels(tmp_path / "b.tif", many)
    assert (tifffile.imread(tmp_path / "b.tif") == many).all()


def test_more_than_65535_cells_are_counted():
    dots = np.zeros((600, 600), np.int32)
    dots[::2, ::2] = np.arange(1, 90_001).reshape(300, 300)
    cells = cells_from_labels(dots)
    assert len(cells) == 90_000 == cells.labels.max()
