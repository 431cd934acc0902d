"A network of a few weights, for what does not depend on its size."

import contextlib
import dataclasses

from bloodcount.networks import MODELS, BatchNormalization, keras


def small(outputs=("mask", "edge"), size=None, crop: int = 44) -> keras.Model:
    "With DO-U-Net's margin, or that of a network whose output is as large as its input."
    layers = keras.layers
    image = keras.Input((size, size, 3))
    x = layers.Conv2D(4, 3, padding="same")(layers.Cropping2D(crop)(image) if crop else image)
    x = layers.ReLU()(BatchNormalization()(x))
    head = {"activation": "sigmoid", "dtype": "float32"}
    heads = [layers.Conv2D(1, 1, name=name, **head)(x) for name in outputs]
    return keras.Model(image, heads)


@contextlib.contextmanager
def small_network(name: str = "do_unet"):
    "It stands for a network of that name."
    whole = MODELS[name]

    def build(outputs=("mask", "edge"), size=None, **_):
        return small(outputs, size, whole.crop)

    MODELS[name] = dataclasses.replace(whole, build=build)
    try:
        yield
    finally:
        MODELS[name] = whole
