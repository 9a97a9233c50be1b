"""Any image goes in: sizes, modes, orientation; what cannot be read is one clear line."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, TiffImagePlugin

from spheregen import DataError, read_image

RAMP = np.linspace(0, 65535, 16 * 16).reshape(16, 16)


def palette(**save: object) -> Image.Image:
    """Left half entry 0, red; right half entry 1, blue."""
    image = Image.new("P", (16, 16), 0)
    image.putpalette([200, 0, 0, 0, 0, 200])
    image.paste(1, (8, 0, 16, 16))
    return image


def test_sixteen_bits_are_scaled_not_cut(tmp_path: Path) -> None:
    """PNG and TIFF, both byte orders, and the 32-bit mode that older versions of Pillow read 16-bit PNGs as."""
    expected = torch.from_numpy(np.rint(RAMP.astype(np.uint16) / 257).astype(np.uint8)).unsqueeze(0)
    Image.fromarray(RAMP.astype(np.uint16)).save(tmp_path / "a.png")
    Image.fromarray(RAMP.astype(np.uint16)).save(tmp_path / "a.tif")
    Image.fromarray(RAMP.astype(np.int32)).save(tmp_path / "b.tif")
    big = Image.frombytes("I;16B", (16, 16), RAMP.astype(">u2").tobytes())
    big.save(tmp_path / "c.tif")
    for name, mode in (("a.png", "I;16"), ("a.tif", "I;16"), ("b.tif", "I"), ("c.tif", "I;16B")):
        assert Image.open(tmp_path / name).mode == mode
        assert torch.equal(read_image(tmp_path / name, 16, 1), expected), name
        assert torch.equal(read_image(tmp_path / name, 16, 3), expected.expand(3, 16, 16)), name


def test_values_of_unknown_range_are_refused(tmp_path: Path) -> None:
    Image.fromarray((RAMP / 65535).astype(np.float32)).save(tmp_path / "f.tif")
    Image.fromarray((RAMP * 70).astype(np.int32)).save(tmp_path / "i.tif")
    Image.fromarray((RAMP - 5).astype(np.int32)).save(tmp_path / "negative.tif")
    for name, what in (("f", "floats"), ("i", "32-bit integers"), ("negative", "32-bit integers")):
        with pytest.raises(DataError, match=rf"{name}\.tif: cannot be read: .*{what} of unknown range"):
            read_image(tmp_path / f"{name}.tif", 8, 3)


@pytest.mark.parametrize(
    ("save", "left", "right"),
    [
        (lambda path: palette().save(path), (200, 0, 0), (0, 0, 200)),
        (lambda path: palette().save(path, transparency=0), (255, 255, 255), (0, 0, 200)),
        (lambda path: palette().save(path, transparency=bytes([51, 255])), (244, 204, 204), (0, 0, 200)),
        (lambda path: palette().convert("PA").convert("RGBA").save(path), (200, 0, 0), (0, 0, 200)),
        (lambda path: palette().convert("RGB").save(path, transparency=(0, 0, 200)), (200, 0, 0), (255, 255, 255)),
        (lambda path: palette().convert("RGB").convert("1").save(path), None, None),
    ],
)
def test_transparency_is_laid_on_white(
    tmp_path: Path,
    save: Callable[[Path], None],
    left: tuple[int, ...] | None,
    right: tuple[int, ...] | None,
) -> None:
    save(tmp_path / "image.png")
    pixels = read_image(tmp_path / "image.png", 16, 3)
    if left is None or right is None:  # one bit: black and white alone
        assert {*pixels.unique().tolist()} <= {0, 255}
        return
    assert (pixels[:, 8, 2].float() - torch.tensor(left)).abs().max() <= 1
    assert (pixels[:, 8, 13].float() - torch.tensor(right)).abs().max() <= 1
    grey = read_image(tmp_path / "image.png", 16, 1)
    expected = np.asarray(Image.new("RGB", (1, 1), left).convert("L")).item()
    assert abs(grey[0, 8, 2].item() - expected) <= 1


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (Image.new("PA", (9, 9)), None),
        (Image.new("LA", (9, 9), (100, 255)), (100, 100, 100)),
        (Image.new("LA", (9, 9), (0, 0)), (255, 255, 255)),
        (Image.new("CMYK", (9, 9), (0, 255, 255, 0)), (255, 0, 0)),
        (Image.new("YCbCr", (9, 9), (90, 128, 128)), (90, 90, 90)),
        (Image.new("LAB", (9, 9), (255, 128, 128)), (255, 255, 255)),
        (Image.new("1", (9, 9), 1), (255, 255, 255)),
    ],
)
def test_modes_are_flattened(image: Image.Image, expected: tuple[int, ...] | None, channels: int) -> None:
    from spheregen.images import flatten

    flat = flatten(image, channels)
    assert flat.mode == ("L" if channels == 1 else "RGB")
    if expected is not None:
        grey = Image.new("RGB", (1, 1), expected).convert("L")
        wanted = np.asarray(grey if channels == 1 else Image.new("RGB", (1, 1), expected)).astype(int)
        assert np.abs(np.asarray(flat)[0, 0].astype(int) - wanted[0, 0]).max() <= 2


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_turned_upright(tmp_path: Path, orientation: int) -> None:
    """The stored image is made from the upright one by what the orientation undoes; the top left corner is white."""
    upright = np.zeros((32, 32), np.uint8)
    upright[:16, :16] = 255
    upright[:16, 16:] = 128
    store = {
        1: lambda a: a, 2: np.fliplr, 3: lambda a: np.rot90(a, 2), 4: np.flipud, 5: lambda a: a.T,
        6: lambda a: np.rot90(a, 1), 7: lambda a: np.rot90(a, 2).T, 8: lambda a: np.rot90(a, -1),
    }[orientation]  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(store(upright))).save(tmp_path / "turned.png", exif=exif)
    assert np.array_equal(read_image(tmp_path / "turned.png", 32, 1)[0].numpy(), upright)


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (500, 1), (7, 9000), (3, 2)])
def test_any_size_and_aspect_goes_in(tmp_path: Path, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """A long image is cut to its middle before it is scaled, so that a strip does not become larger than memory."""
    Image.new("L", size, 77).save(tmp_path / "strip.png")
    resize = Image.Image.resize

    def watched(image: Image.Image, to: tuple[int, int], *more: object) -> Image.Image:
        assert max(to) <= 32 * 64
        return resize(image, to, *more)  # type: ignore[arg-type]

    monkeypatch.setattr(Image.Image, "resize", watched)
    pixels = read_image(tmp_path / "strip.png", 64, 3)
    assert pixels.shape == (3, 64, 64)
    assert pixels.unique().tolist() == [77]


def test_a_long_image_keeps_its_middle(tmp_path: Path) -> None:
    pixels = np.zeros((1001, 4), np.uint8)
    pixels[499:502] = 200
    Image.fromarray(pixels).save(tmp_path / "strip.png")
    found = read_image(tmp_path / "strip.png", 4, 1)[0]
    assert found[1:].float().mean() > 100
    Image.fromarray(np.delete(pixels, range(499, 502), axis=0)).save(tmp_path / "strip.png")
    assert read_image(tmp_path / "strip.png", 4, 1).max() == 0


def test_large_photos_go_in_without_a_word(tmp_path: Path) -> None:
    """In a process of its own: pytest has warning filters of its own."""
    Image.new("L", (9000, 6000), 77).save(tmp_path / "54.png")
    Image.new("1", (9600, 9600), 1).save(tmp_path / "92.png")  # Pillow warns of those
    code = "import sys, spheregen; print(*(spheregen.read_image(p, 8, 1).unique().item() for p in sys.argv[1:]))"
    files = [str(tmp_path / name) for name in ("54.png", "92.png")]
    done = subprocess.run([sys.executable, "-W", "always", "-c", code, *files], capture_output=True, text=True)
    assert done.stdout == "77 255\n"
    assert "Bomb" not in done.stderr


def test_a_decompression_bomb_is_refused(tmp_path: Path) -> None:
    Image.new("1", (20_000, 10_000)).save(tmp_path / "bomb.png")
    assert (tmp_path / "bomb.png").stat().st_size < 100_000
    with pytest.raises(DataError, match=r"bomb.png: too large to be read: .*200000000 pixels"):
        read_image(tmp_path / "bomb.png", 8, 1)


def test_what_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    noise = Image.effect_noise((200, 200), 80)
    noise.save(tmp_path / "whole.png")
    noise.save(tmp_path / "whole.jpg")
    for kind in ("png", "jpg"):
        content = (tmp_path / f"whole.{kind}").read_bytes()
        (tmp_path / f"cut.{kind}").write_bytes(content[: len(content) // 2])
        (tmp_path / f"stub.{kind}").write_bytes(content[:10])
    (tmp_path / "text.png").write_text("not an image\n" * 50)
    (tmp_path / "empty.png").touch()
    (tmp_path / "folder.png").mkdir()
    ifd = TiffImagePlugin.ImageFileDirectory_v2()
    ifd[270] = "x"
    noise.save(tmp_path / "odd.tif", tiffinfo=ifd)
    (tmp_path / "odd.tif").write_bytes((tmp_path / "odd.tif").read_bytes()[:2000])
    names = ["cut.png", "cut.jpg", "stub.png", "stub.jpg", "text.png", "empty.png", "folder.png", "odd.tif", "none.png"]
    for name in names:
        with pytest.raises(DataError) as caught:
            read_image(tmp_path / name, 8, 3)
        message = str(caught.value)
        assert message.startswith(str(tmp_path / name))
        assert "\n" not in message


def test_open_files_are_read_and_named_and_bounded(tmp_path: Path) -> None:
    image = Image.frombytes("L", (30, 20), bytes(i % 256 for i in range(600)))
    image.save(tmp_path / "image.png")
    with (tmp_path / "image.png").open("rb") as file:
        found = read_image(file, 16, 1, name="mine.png", megapixels=0.0006)
    assert torch.equal(found, read_image(tmp_path / "image.png", 16, 1))
    with pytest.raises(DataError, match=r"^mine.png: has 0 megapixels; expected at most 0.0005, make it smaller$"):
        read_image(io.BytesIO((tmp_path / "image.png").read_bytes()), 16, 1, name="mine.png", megapixels=0.0005)
    with pytest.raises(DataError, match=r"^mine.png: not an image that can be read$"):
        read_image(io.BytesIO(b"text"), 16, 1, name="mine.png")
