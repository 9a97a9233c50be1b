"""Image sources: small sets that packages carry, well-known sets as published, folders of images, and shards."""

from __future__ import annotations

import spheregen
from spheregen_data.cifar10 import Cifar10
from spheregen_data.digits import Digits
from spheregen_data.fashion_mnist import FashionMNIST
from spheregen_data.flowers102 import Flowers102
from spheregen_data.image_folder import ImageFolder
from spheregen_data.shards import Shards


@spheregen.hookimpl
def spheregen_components() -> list[type[spheregen.Component]]:
    return [Digits, FashionMNIST, Cifar10, Flowers102, ImageFolder, Shards]
