"""Labels of other programs: what is understood, and what is refused in one sentence."""

import json
from pathlib import Path

import numpy as np
import papermill
import pytest
import tifffile
from PIL import Image
from roifile import ROI_TYPE, ImagejRoi, roiwrite
from skimage.measure import label

from bloodcount.counting import cells_from_labels
from bloodcount.errors import InputError
from bloodcount.exports import outlines, rings, write_coco, write_labels, write_rois
from bloodcount.own_labels import (
    cell_of,
    ellipse,
    is_labels,
    labels_beside,
    planes,
    read_own_labels,
)
from bloodcount.star_truth import own_truth
from bloodcount.synthetic import synthetic_smear

SHAPE = (60, 100)
SQUARE = [[10, 10], [30, 10], [30, 30], [10, 30]]  # x, y
COCO = {
    "images": [{"id": 1, "file_name": "a.png"}, {"id": 2, "file_name": "b.png"}],
    "categories": [{"id": 5, "name": "Red Blood Cell"}, {"id": 6, "name": "WBC"}],
    "annotations": [
        {"image_id": 1, "category_id": 5, "segmentation": [sum(SQUARE, [])], "bbox": [0, 0, 1, 1]},
        {"image_id": 2, "category_id": 6, "bbox": [50, 20, 20, 10]},
    ],
}


def write(path, content):
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_a_square_of_labelme(tmp_path):
    shapes = [{"label": "erythrocyte", "points": SQUARE, "shape_type": "polygon"}]
    labels = read_own_labels(write(tmp_path / "a.json", {"shapes": shapes}), SHAPE)
    assert list(labels) == ["rbc"] and labels["rbc"][20, 20] == 1 and labels["rbc"][5, 5] == 0
    assert (labels["rbc"] == 1).sum() == 400 and labels["rbc"][10, 10] == labels["rbc"][29, 29] == 1


def test_a_circle_of_labelme(tmp_path):
    shapes = [{"label": "plt", "points": [[50, 30], [50, 40]], "shape_type": "circle"}]
    plane = read_own_labels(write(tmp_path / "a.json", {"shapes": shapes}), SHAPE)["plt"]
    row, col = np.nonzero(plane)
    assert abs(row.mean() - 30) < 0.6 and abs(col.mean() - 50) < 0.6
    assert abs(len(row) - np.pi * 100) < 45


def test_coco_by_image(tmp_path):
    path = write(tmp_path / "coco.json", COCO)
    assert list(read_own_labels(path, SHAPE, image="a")) == ["rbc"]
    white = read_own_labels(path, SHAPE, image="b")["wbc"]
    assert white[25, 60] == 1 and white[21, 51] == 0
    with pytest.raises(InputError, match="say which"):
        read_own_labels(path, SHAPE)
    with pytest.raises(InputError, match="no image"):
        read_own_labels(path, SHAPE, image="c")


def test_rois_of_imagej(tmp_path):
    rois = [
        ImagejRoi.frompoints(np.array(SQUARE), name="wbc-001"),
        ImagejRoi.frompoints(np.array(SQUARE) + 25, name="0001-0002"),
    ]
    roiwrite(tmp_path / "rois.zip", rois)
    labels = read_own_labels(tmp_path / "rois.zip", SHAPE, cell="platelet")
    assert labels["wbc"][20, 20] == 1 and labels["plt"][45, 45] == 1


@pytest.mark.parametrize(
    "name, cell", [("platelet-3", "plt"), ("white cell_2", "wbc"), ("WBC 1", "wbc"), ("", "rbc")]
)
def test_a_roi_is_of_the_type_that_its_name_says(tmp_path, name, cell):
    ImagejRoi.frompoints(np.array(SQUARE), name=name).tofile(tmp_path / "a.roi")
    assert list(read_own_labels(tmp_path / "a.roi", SHAPE)) == [cell]


def test_points_and_lines_of_imagej_are_refused(tmp_path):
    roi = ImagejRoi.frompoints(np.array(SQUARE), name="clicked")
    roi.roitype = ROI_TYPE.POINT
    roi.tofile(tmp_path / "a.roi")
    with pytest.raises(InputError, match="clicked is a point; outline each cell"):
        read_own_labels(tmp_path / "a.roi", SHAPE)


def test_an_image_is_found_in_the_second_coco_file(tmp_path):
    write(tmp_path / "train.json", COCO | {"images": [{"id": 1, "file_name": "other.png"}]})
    write(tmp_path / "val.json", COCO)
    assert list(labels_beside(tmp_path / "a.png", SHAPE)) == ["rbc"]


def test_other_files_of_the_folder_do_not_matter(tmp_path):
    (tmp_path / "notes.json").write_bytes("caf\u00e9".encode("latin-1"))
    write(tmp_path / "z.json", COCO)
    assert list(labels_beside(tmp_path / "a.png", SHAPE)) == ["rbc"]
    shapes = [{"label": "wbc", "points": SQUARE, "shape_type": "polygon"}]
    write(tmp_path / "a.json", {"shapes": shapes})
    assert list(labels_beside(tmp_path / "a.png", SHAPE)) == ["wbc"]


def test_a_label_image_keeps_its_numbers(tmp_path):
    labels = np.zeros(SHAPE, np.uint16)
    labels[3:9, 3:9], labels[20:30, 40:50] = 7, 300
    tifffile.imwrite(tmp_path / "a.tif", labels)
    assert (read_own_labels(tmp_path / "a.tif", SHAPE, cell="wbc")["wbc"] == labels).all()
    with pytest.raises(InputError, match="px"):
        read_own_labels(tmp_path / "a.tif", (10, 10))


def test_the_later_outline_lies_on_top():
    plane = planes([("rbc", ellipse(0, 0, 40, 40)), ("rbc", ellipse(20, 0, 40, 40))], SHAPE)["rbc"]
    assert plane[20, 30] == 2 and set(np.unique(plane)) == {0, 1, 2}


@pytest.mark.parametrize("name", ["RBCs", "White-Blood_Cell", "Thrombocyte"])
def test_names_are_understood(name):
    assert cell_of(name) in ("rbc", "wbc", "plt")


@pytest.mark.parametrize(
    ("file", "content", "says"),
    [
        ("a.json", "{", "neither LabelMe nor COCO"),
        ("a.json", "[]", "neither LabelMe nor COCO"),
        ("a.json", {"shapes": [{"label": "rbc"}]}, "neither LabelMe nor COCO"),
        ("a.json", {"shapes": [{"label": "yeast", "points": SQUARE}]}, "no cell type"),
        ("a.json", {"shapes": [{"label": "rbc", "points": SQUARE, "shape_type": "line"}]}, "line"),
        ("a.roi", "nothing", "ROIs"),
        ("a.png", "nothing", "label image"),
    ],
)
def test_what_is_not_understood_is_refused(tmp_path, file, content, says):
    with pytest.raises(InputError, match=says):
        read_own_labels(write(tmp_path / file, content), SHAPE)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        read_own_labels(tmp_path / "absent.json", SHAPE)


def test_a_box_of_labelme_is_the_ellipse_within(tmp_path):
    shapes = [{"label": "RBC", "points": [[60, 40], [20, 20]], "shape_type": "rectangle"}]
    plane = read_own_labels(write(tmp_path / "a.json", {"shapes": shapes}), SHAPE)["rbc"]
    assert plane[30, 40] == 1 and plane[21, 21] == 0
    assert abs((plane > 0).sum() - np.pi * 20 * 10) < 70


def test_masks_of_coco_are_refused_with_what_to_do(tmp_path):
    runs = {"image_id": 1, "category_id": 5, "segmentation": {"counts": [1], "size": [1, 1]}}
    path = write(tmp_path / "coco.json", {**COCO, "annotations": [runs]})
    with pytest.raises(InputError, match="export polygons"):
        read_own_labels(path, SHAPE, image="a")


# A folder of images with labels beside them, in each format


@pytest.fixture(scope="module")
def smear():
    return synthetic_smear(seed=8, shape=(400, 520), rbc=14, wbc=2, plt=4, overlap=0)


@pytest.fixture(scope="module")
def truth(smear):
    return {cell: label(mask).astype(np.int32) for cell, mask in smear.masks.items()}


def labelme_of(truth) -> dict:
    "What LabelMe would write."
    shapes = [
        {"label": cell, "points": rings(shape)[0].tolist(), "shape_type": "polygon"}
        for cell, plane in truth.items()
        for shape in outlines(plane).values()
    ]
    return {"shapes": shapes, "imagePath": "a.png"}


def save_labels(folder, kind, truth):
    "The labels of `a.png` as a program writes them."
    cells = {cell: cells_from_labels(plane) for cell, plane in truth.items()}
    if kind == "labelme":
        write(folder / "a.json", labelme_of(truth))
    elif kind == "coco":
        write_coco(folder / "all of them.json", "a.png", cells)
    elif kind == "imagej":
        write_rois(folder / "a.zip", cells)
    else:
        for cell, plane in truth.items():
            write_labels(folder / f"a_{cell}.tif", plane)


@pytest.mark.parametrize("kind", ["labelme", "coco", "imagej", "label images"])
def test_each_format_gives_the_same_cells_to_learn(tmp_path, smear, truth, kind):
    save_labels(tmp_path, kind, truth)
    found = labels_beside(tmp_path / "a.png", smear.image.shape[:2])
    assert set(found) == set(truth)
    for cell, plane in truth.items():
        assert found[cell].max() == plane.max()
        assert ((found[cell] > 0) == (plane > 0)).all(), cell
    own = own_truth("a", smear.image, found)
    assert [len(own.numbers(kind)) for kind in (1, 2, 3)] == [p.max() for p in truth.values()]
    assert own.whole == set(truth)


@pytest.mark.parametrize("suffix", [".labels.tif", ".labels.png"])
def test_a_label_image_beside_is_of_one_type(tmp_path, truth, suffix):
    plane = truth["wbc"].astype(np.uint16)
    Image.fromarray(plane).save(tmp_path / f"a{suffix}")
    found = labels_beside(tmp_path / "a.jpg", plane.shape, "wbc")
    assert list(found) == ["wbc"] and (found["wbc"] == plane).all()
    assert is_labels(tmp_path / f"a{suffix}") and not is_labels(tmp_path / "a.jpg")


def test_an_image_without_labels_is_refused(tmp_path):
    write(tmp_path / "settings.json", {"nothing": "of this kind"})
    with pytest.raises(InputError, match="no labels beside it.*a.labels.tif"):
        labels_beside(tmp_path / "a.jpg", SHAPE)


def test_the_notebook_that_trains_on_them_runs_to_its_end(tmp_path):
    notebook = Path(__file__).parent.parent / "nbs" / "train_on_your_own.ipynb"
    done = tmp_path / "done.ipynb"
    papermill.execute_notebook(notebook, done, cwd=tmp_path, progress_bar=False)
    assert (tmp_path / "runs" / "own-model" / "card.json").is_file()
