"""Networks drawn from their graphs: every layer, its numbers, and nothing about data."""

import hashlib
import subprocess
import sys

import matplotlib.text
import pytest

from bloodcount.errors import InputError
from bloodcount.networks import MODELS, do_unet, keras, segnet
from bloodcount.studies.diagram import KINDS, network_blocks, network_figure
from bloodcount.studies.figures import write_figure

SIDES = {"do_unet": 188, "segnet": 128, "segnet_3x3": 128}


def small_unet(depth: int = 2, convolutions: int = 1) -> keras.Model:
    "A U-Net without cropping, of any depth."
    layers, skips = keras.layers, []
    image = x = keras.Input((64, 48, 3), name="image")
    for _ in range(depth):
        for _ in range(convolutions):
            x = layers.Conv2D(8, 3, padding="same", activation="relu")(x)
        skips.append(x)
        x = layers.MaxPooling2D()(x)
    x = layers.Conv2D(16, 3, padding="same")(x)
    for skip in reversed(skips):
        x = layers.Concatenate()([skip, layers.Conv2DTranspose(8, 2, strides=2)(x)])
        x = layers.Conv2D(8, 3, padding="same")(x)
    return keras.Model(
        image, layers.Conv2D(1, 1, activation="sigmoid", name="mask")(x), name="small"
    )


def drawn_boxes(figure) -> list[str]:
    ids = (artist.get_gid() for artist in figure.findobj())
    return sorted((i for i in ids if i and i.startswith("block-")), key=lambda i: int(i[6:]))


def texts(figure) -> str:
    return "\n".join(text.get_text() for text in figure.findobj(matplotlib.text.Text))


@pytest.mark.parametrize("outputs", (("mask",), ("mask", "edge")))
@pytest.mark.parametrize("name", MODELS)
def test_every_layer_of_the_graph_is_drawn(name, outputs):
    model = MODELS[name].build(outputs, size=SIDES[name])
    of_graph = [layer.name for layer in model.layers if type(layer).__name__ in KINDS]
    blocks = network_blocks(model)
    assert [block.layer for block in blocks] == of_graph
    for block in blocks:
        output = model.get_layer(block.layer).output
        shape = (output[0] if isinstance(output, list | tuple) else output).shape
        assert (*block.side, block.channels) == tuple(shape[1:])
    figure = network_figure(model, "A network")
    assert drawn_boxes(figure) == [f"block-{i}" for i in range(len(blocks))]
    assert all(str(block.side[0]) in texts(figure) for block in blocks)
    assert [block.layer for block in blocks if block.kind == "output"] == list(outputs)


def test_blocks_tell_where_maps_are_joined_and_indices_used():
    blocks = network_blocks(do_unet(size=188))
    joined = [block for block in blocks if block.skip is not None]
    assert [(block.crop, blocks[block.skip].side[0], block.joined) for block in joined] == [
        (4, 40, 128),
        (16, 88, 64),
        (40, 184, 32),
    ]
    blocks = network_blocks(segnet(("mask",), size=64))
    unpooled = [block for block in blocks if block.kind == "unpooling"]
    assert [blocks[block.indices].level - 1 for block in unpooled] == [4, 3, 2, 1, 0]
    assert [block.level for block in unpooled] == [4, 3, 2, 1, 0]


def test_a_changed_model_changes_the_figure():
    base = len(drawn_boxes(network_figure(small_unet(), "small")))
    assert len(drawn_boxes(network_figure(small_unet(convolutions=2), "small"))) == base + 2
    assert len(drawn_boxes(network_figure(small_unet(depth=3), "small"))) == base + 4
    assert "64×48" in texts(network_figure(small_unet(), "small"))


def test_a_layer_without_a_drawing_is_refused():
    image = keras.Input((32, 32, 3))
    model = keras.Model(image, keras.layers.GlobalAveragePooling2D()(image))
    with pytest.raises(InputError, match="GlobalAveragePooling2D"):
        network_blocks(model)


def test_another_process_writes_the_same_diagram_without_a_word_of_data(tmp_path):
    code = (
        "import sys; from bloodcount.networks import do_unet; from bloodcount.studies.figures import write_figure;"
        "from bloodcount.studies.diagram import network_figure;"
        "write_figure(sys.argv[1], network_figure(do_unet(size=188), 'DO-U-Net'), 'profile paper, data')"
    )
    elsewhere, here = tmp_path / "elsewhere.svg", tmp_path / "here.svg"
    subprocess.run([sys.executable, "-c", code, elsewhere], check=True, capture_output=True)
    figure = network_figure(do_unet(size=188), "DO-U-Net")
    write_figure(here, figure, "profile paper, data")
    digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in (elsewhere, here)]
    assert digests[0] == digests[1]
    assert "profile" not in texts(figure)
