"""Checkpoints of the authors' code: their names and shapes, and the networks that their conventions describe.

The reference below is written from the conventions alone, in plain torch and in their names, without a layer of ours or
of timm: what it computes is what an imported model must compute.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import spheregen
from spheregen import Recipe, RunError, SphereModel
from spheregen.checkpoint import RunFolder
from spheregen.importing import fit, import_checkpoint

State = dict[str, Tensor]

# -- the listed names --------------------------------------------------------------------------------------------------
# Sizes: w width, h SwiGLU's hidden width, n tokens, d latent channels, k classes with the null class, p patch,
# q = p + 2, c colours, o channels that the decoder's head makes. {i} counts transformer layers, {m} mixer layers.

STEMS = """
encoder.pos_embed 1 n w
encoder.x_embedder.0.weight w c p p
encoder.x_embedder.1.weight w w 1 1
encoder.x_embedder.1.bias w
decoder.pos_embed 1 n w
decoder.x_embedder.0.weight w d
decoder.x_embedder.0.bias w
"""
BLOCKS = """
{part}.blocks.{i}.norm1.weight w
{part}.blocks.{i}.norm2.weight w
{part}.blocks.{i}.attn.qkv.weight 3w w
{part}.blocks.{i}.attn.qkv.bias 3w
{part}.blocks.{i}.attn.proj.weight w w
{part}.blocks.{i}.attn.proj.bias w
{part}.blocks.{i}.mlp.w12.weight 2h w
{part}.blocks.{i}.mlp.w12.bias 2h
{part}.blocks.{i}.mlp.w3.weight w h
{part}.blocks.{i}.mlp.w3.bias w
"""
BLOCKS_CONDITIONAL = """
{part}.blocks.{i}.adaLN_modulation.1.weight 6w w
{part}.blocks.{i}.adaLN_modulation.1.bias 6w
"""
CONDITIONAL = """
{part}.y_embedder.embedding_table.weight k w
{part}.ffn.norm.weight w
{part}.ffn.adaLN_modulation.1.weight 2w w
{part}.ffn.adaLN_modulation.1.bias 2w
"""
HEADS = """
encoder.ffn.linear.weight d w
encoder.ffn.linear.bias d
decoder.ffn.linear.weight o w
decoder.ffn.linear.bias o
"""
MIXER = """
{mixer}.blocks.{m}.alpha1 1
{mixer}.blocks.{m}.alpha2 1
{mixer}.blocks.{m}.norm1.weight {e}
{mixer}.blocks.{m}.tok_mixer.mix.0.weight n n
{mixer}.blocks.{m}.tok_mixer.mix.0.bias n
{mixer}.blocks.{m}.tok_mixer.mix.2.weight n n
{mixer}.blocks.{m}.tok_mixer.mix.2.bias n
{mixer}.blocks.{m}.norm2.weight {e}
{mixer}.blocks.{m}.chn_mixer.mix.0.weight 2{e} {e}
{mixer}.blocks.{m}.chn_mixer.mix.0.bias 2{e}
{mixer}.blocks.{m}.chn_mixer.mix.2.weight {e} 2{e}
{mixer}.blocks.{m}.chn_mixer.mix.2.bias {e}
"""
MIXER_END = "{mixer}.norm.weight {e}"
PIXELS = {
    "conv": "decoder.out.2.weight o o 3 3\ndecoder.out.2.bias o\ndecoder.out.4.weight o c q q\ndecoder.out.4.bias c",
    "linear": "decoder.out.2.weight c c 3 3\ndecoder.out.2.bias c",
}


def listed(recipe: Recipe) -> dict[str, tuple[int, ...]]:
    """The names and shapes of a checkpoint made with the authors' code for such a model."""
    shape, options = recipe.shape, recipe.decoder.options
    width, depth, _ = options.dimensions
    colours, patch = shape.image.channels, shape.patch
    sizes = {
        "w": width, "h": int(8 / 3 * width), "n": shape.tokens, "d": shape.latent_channels, "k": shape.num_classes + 1,
        "p": patch, "q": patch + 2, "c": colours, "o": 32 if options.head == "conv" else colours * patch**2,
    }  # fmt: skip

    def size(word: str) -> int:
        factor, name = (word[:-1], word[-1]) if word[-1].isalpha() else (word, "")
        return int(factor or 1) * sizes.get(name, 1)

    lines = STEMS + HEADS + PIXELS[options.head]
    for part, mixer, e in (("encoder", "encoder.out", "d"), ("decoder", "decoder.x_embedder.1", "w")):
        conditional = shape.num_classes > 0
        for i in range(depth):
            lines += (BLOCKS + (BLOCKS_CONDITIONAL if conditional else "")).format(part=part, i=i)
        lines += CONDITIONAL.format(part=part) if conditional else ""
        for m in range(options.mixer_depth):
            lines += MIXER.format(mixer=mixer, m=m, e=e)
        lines += MIXER_END.format(mixer=mixer, e=e)
    return {
        words[0]: tuple(size(word) for word in words[1:])
        for words in (line.split() for line in lines.splitlines())
        if words
    }


# -- the reference -----------------------------------------------------------------------------------------------------


def table(grid: int, width: int) -> Tensor:
    """The fixed position table [N, width]: tokens row by row; the first half tells the column, sines before cosines."""
    rows = []
    for row in range(grid):
        for column in range(grid):
            halves = []
            for position in (column, row):
                angles = [position / 10000 ** (j / (width // 4)) for j in range(width // 4)]
                halves += [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
            rows.append(halves)
    return torch.tensor(rows, dtype=torch.float64).float()


def rms(x: Tensor, weight: Tensor) -> Tensor:
    return x / torch.sqrt((x**2).mean(-1, keepdim=True) + 1e-6) * weight


def turned(x: Tensor, grid: int) -> Tensor:
    """RoPE on one head [B, N, head]: neighbouring pairs as complex numbers, the first half of the channels by the row,
    the second by the column, theta 10000 over half the head."""
    half = x.shape[-1] // 2
    pairs = torch.view_as_complex(x.reshape(*x.shape[:-1], half, 2).contiguous())
    frequency = torch.tensor([10000 ** (-2 * j / half) for j in range(half // 2)])
    tokens = torch.arange(grid * grid)
    angles = torch.cat([(tokens // grid)[:, None] * frequency, (tokens % grid)[:, None] * frequency], dim=1)
    return torch.view_as_real(pairs * torch.polar(torch.ones_like(angles), angles)).reshape(x.shape)


def attention(x: Tensor, s: State, name: str, heads: int, grid: int) -> Tensor:
    width = x.shape[-1]
    q, k, v = F.linear(x, s[f"{name}.qkv.weight"], s[f"{name}.qkv.bias"]).split(width, dim=-1)
    head = width // heads
    outputs = []
    for j in range(heads):
        channels = slice(j * head, (j + 1) * head)
        scores = turned(q[..., channels], grid) @ turned(k[..., channels], grid).transpose(1, 2) / math.sqrt(head)
        outputs.append(scores.softmax(-1) @ v[..., channels])
    return F.linear(torch.cat(outputs, -1), s[f"{name}.proj.weight"], s[f"{name}.proj.bias"])


def swiglu(x: Tensor, s: State, name: str) -> Tensor:
    x = F.linear(x, s[f"{name}.w12.weight"], s[f"{name}.w12.bias"])
    hidden = x.shape[-1] // 2
    gate, value = x[..., :hidden], x[..., hidden:]
    return F.linear(gate * torch.sigmoid(gate) * value, s[f"{name}.w3.weight"], s[f"{name}.w3.bias"])


def modulations(condition: Tensor, s: State, name: str, parts: int) -> list[Tensor]:
    c = F.linear(F.silu(condition), s[f"{name}.adaLN_modulation.1.weight"], s[f"{name}.adaLN_modulation.1.bias"])
    width = condition.shape[-1]
    return [c[:, None, j * width : (j + 1) * width] for j in range(parts)]


def transformer(x: Tensor, s: State, part: str, depth: int, heads: int, labels: Tensor | None) -> Tensor:
    """Positions, blocks and head."""
    grid = math.isqrt(x.shape[1])
    x = x + table(grid, x.shape[-1])
    c = s[f"{part}.y_embedder.embedding_table.weight"][labels] if labels is not None else None
    for i in range(depth):
        block = f"{part}.blocks.{i}"
        norm1, norm2 = s[f"{block}.norm1.weight"], s[f"{block}.norm2.weight"]
        if c is None:
            x = x + attention(rms(x, norm1), s, f"{block}.attn", heads, grid)
            x = x + swiglu(rms(x, norm2), s, f"{block}.mlp")
            continue
        shift1, scale1, gate1, shift2, scale2, gate2 = modulations(c, s, block, 6)
        x = x + gate1 * attention(rms(x, norm1) * (1 + scale1) + shift1, s, f"{block}.attn", heads, grid)
        x = x + gate2 * swiglu(rms(x, norm2) * (1 + scale2) + shift2, s, f"{block}.mlp")
    if c is not None:
        shift, scale = modulations(c, s, f"{part}.ffn", 2)
        x = rms(x, s[f"{part}.ffn.norm.weight"]) * (1 + scale) + shift
    return F.linear(x, s[f"{part}.ffn.linear.weight"], s[f"{part}.ffn.linear.bias"])


def mixer(x: Tensor, s: State, name: str, depth: int) -> Tensor:
    def mlp(x: Tensor, name: str) -> Tensor:
        x = F.silu(F.linear(x, s[f"{name}.mix.0.weight"], s[f"{name}.mix.0.bias"]))
        return F.linear(x, s[f"{name}.mix.2.weight"], s[f"{name}.mix.2.bias"])

    for m in range(depth):
        block = f"{name}.blocks.{m}"
        tokens = mlp(rms(x, s[f"{block}.norm1.weight"]).transpose(1, 2), f"{block}.tok_mixer").transpose(1, 2)
        x = x + s[f"{block}.alpha1"] * tokens
        x = x + s[f"{block}.alpha2"] * mlp(rms(x, s[f"{block}.norm2.weight"]), f"{block}.chn_mixer")
    return rms(x, s[f"{name}.norm.weight"])


def reference_encoder(images: Tensor, labels: Tensor | None, s: State, recipe: Recipe) -> Tensor:
    _, depth, heads = recipe.encoder.options.dimensions
    x = F.conv2d(images, s["encoder.x_embedder.0.weight"], stride=recipe.shape.patch)
    x = F.conv2d(x, s["encoder.x_embedder.1.weight"], s["encoder.x_embedder.1.bias"])
    tokens = torch.stack([x[:, :, row, column] for row in range(x.shape[2]) for column in range(x.shape[3])], dim=1)
    z = transformer(tokens, s, "encoder", depth, heads, labels)
    return mixer(z, s, "encoder.out", recipe.encoder.options.mixer_depth)


def reference_decoder(latents: Tensor, labels: Tensor | None, s: State, recipe: Recipe) -> Tensor:
    _, depth, heads = recipe.decoder.options.dimensions
    grid, patch, colours = recipe.shape.grid, recipe.shape.patch, recipe.image.channels
    x = F.linear(latents, s["decoder.x_embedder.0.weight"], s["decoder.x_embedder.0.bias"])
    x = mixer(x, s, "decoder.x_embedder.1", recipe.decoder.options.mixer_depth)
    x = transformer(x, s, "decoder", depth, heads, labels)
    if recipe.decoder.options.head == "conv":
        x = x.reshape(-1, grid, grid, 32).permute(0, 3, 1, 2)
        x = F.silu(F.conv2d(x, s["decoder.out.2.weight"], s["decoder.out.2.bias"], padding=1))
        x = F.conv_transpose2d(x, s["decoder.out.4.weight"], s["decoder.out.4.bias"], stride=patch, padding=1)
        return torch.tanh(x)
    image = torch.empty(len(x), colours, grid * patch, grid * patch)
    for token in range(grid * grid):
        top, left = patch * (token // grid), patch * (token % grid)
        image[:, :, top : top + patch, left : left + patch] = x[:, token].reshape(-1, colours, patch, patch)
    padded = F.pad(image, (1, 1, 1, 1), mode="reflect")
    return torch.tanh(F.conv2d(padded, s["decoder.out.2.weight"], s["decoder.out.2.bias"]))


# -- checkpoints -------------------------------------------------------------------------------------------------------

LPIPS = 'perceptual.parts=[{use="lpips", weight=1.0}]'
SMALL = [f"{part}.{setting}" for part in ("encoder", "decoder") for setting in ("width=64", "depth=3", "heads=4")]
# The two listed models, narrower and less deep; the second with fewer tokens too.
MODELS: dict[str, tuple[str, list[str]]] = {
    "cifar10": ("cifar10_b", [*SMALL, "encoder.mixer_depth=2", "decoder.mixer_depth=2"]),
    "256 pixels": ("animal_faces_l", [*SMALL, "data.image_size=64", "latent.grid=8"]),
}


@cache
def read(recipe: str, *overrides: str) -> Recipe:
    """A recipe without its larger perceptual network, which reading one looks into."""
    return Recipe.read(recipe, [LPIPS, *overrides])


def small(name: str, *overrides: str) -> Recipe:
    recipe, settings = MODELS[name]
    return read(recipe, *settings, *overrides)


def random_state(recipe: Recipe, seed: int = 0) -> State:
    """Random tensors under the listed names, large enough that every one of them shows in the output."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, shape in listed(recipe).items():
        noise = torch.randn(shape, generator=generator)
        if name.endswith("pos_embed"):
            state[name] = table(recipe.shape.grid, shape[-1])[None]
        elif "norm" in name:
            state[name] = 1 + 0.2 * noise
        elif len(shape) > 1 and "embedding_table" not in name:
            state[name] = noise / math.sqrt(math.prod(shape[1:])) * (0.4 if "decoder.out" in name else 1)
        else:
            state[name] = 0.5 * noise
    return state


def inputs(recipe: Recipe) -> tuple[Tensor, Tensor, Tensor | None]:
    generator = torch.Generator().manual_seed(1)
    shape = recipe.shape
    images = torch.rand(3, shape.image.channels, shape.image.size, shape.image.size, generator=generator) * 2 - 1
    latents = torch.randn(3, shape.tokens, shape.latent_channels, generator=generator)
    labels = torch.tensor([0, 7, shape.null_label]) if shape.num_classes else None
    return images, latents, labels


@pytest.fixture
def save(tmp_path: Path) -> Callable[..., Path]:
    """Write a checkpoint as the authors' code does."""

    def write(state: State, **more: object) -> Path:
        path = tmp_path / "checkpoint.pth"
        torch.save({"model": state, "epoch": 12, **more}, path)
        return path

    return write


# -- tests -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("recipe", "overrides"),
    [
        ("cifar10_b", ["encoder.mixer_depth=2", "decoder.mixer_depth=2"]),
        ("animal_faces_l", ["encoder.size=base", "decoder.size=base"]),
        ("imagenet_xl", []),
    ],
)
def test_the_listed_names_and_shapes_are_the_models(recipe: str, overrides: list[str]) -> None:
    """At full size: every tensor of ours is one of theirs, of the same shape, and none of theirs is left over."""
    full = read(recipe, *overrides)
    with torch.device("meta"):
        model = SphereModel.from_recipe(full)
    found: dict[str, tuple[int, ...]] = {}
    for part in ("encoder", "decoder"):
        network = getattr(model, part)
        ours = {**network.state_dict(), **network.authors_tables()}
        names = network.authors_names() | {name: name for name in network.authors_tables()}
        found |= {f"{part}.{names[name]}": tuple(tensor.shape) for name, tensor in ours.items()}
    assert found == listed(full)


def test_the_listing_here_is_the_documents() -> None:
    """Some lines of the two listings, as they stand there, against the formulas above."""
    cifar10 = listed(read("cifar10_b", "encoder.mixer_depth=2", "decoder.mixer_depth=2"))
    assert cifar10["encoder.blocks.11.mlp.w12.weight"] == (4096, 768)
    assert cifar10["encoder.y_embedder.embedding_table.weight"] == (11, 768)
    assert cifar10["encoder.out.blocks.1.chn_mixer.mix.0.weight"] == (16, 8)
    assert cifar10["decoder.x_embedder.1.blocks.1.tok_mixer.mix.2.weight"] == (256, 256)
    assert cifar10["decoder.out.4.weight"] == (32, 3, 4, 4)
    assert cifar10["decoder.ffn.linear.weight"] == (32, 768)
    assert "encoder.out.blocks.2.alpha1" not in cifar10
    faces = listed(read("animal_faces_l", "encoder.size=base", "decoder.size=base"))
    assert faces["encoder.x_embedder.0.weight"] == (768, 3, 8, 8)
    assert faces["encoder.out.blocks.3.tok_mixer.mix.0.weight"] == (1024, 1024)
    assert faces["decoder.ffn.linear.weight"] == (192, 768)
    assert faces["decoder.out.2.weight"] == (3, 3, 3, 3)
    assert not [name for name in faces if "y_embedder" in name or "adaLN" in name or name.endswith("ffn.norm.weight")]


class Case(NamedTuple):
    """A small model in their names, inputs, and what the reference makes of them."""

    recipe: Recipe
    state: State
    images: Tensor
    latents: Tensor
    labels: Tensor | None
    encoded: Tensor
    decoded: Tensor


@cache
def case(name: str) -> Case:
    recipe = small(name)
    state, (images, latents, labels) = random_state(recipe), inputs(recipe)
    encoded = reference_encoder(images, labels, state, recipe)
    decoded = reference_decoder(latents, labels, state, recipe)
    return Case(recipe, state, images, latents, labels, encoded, decoded)


@pytest.mark.parametrize("name", MODELS)
def test_an_imported_model_computes_what_the_conventions_say(
    name: str, save: Callable[..., Path], tmp_path: Path
) -> None:
    it = case(name)
    import_checkpoint(save(it.state), it.recipe, tmp_path / "run")
    model = spheregen.load(tmp_path / "run")
    with torch.no_grad():
        encoded, decoded = model.encode(it.images, it.labels), model.decode(it.latents, it.labels)
    torch.testing.assert_close(encoded, it.encoded, atol=1e-4, rtol=0)
    torch.testing.assert_close(decoded, it.decoded, atol=1e-4, rtol=0)
    assert it.encoded.std() > 0.5
    assert it.decoded.std() > 0.1
    assert (it.decoded.abs() > 0.99).float().mean() < 0.05  # tanh is not saturated, which would hide differences


def swapped(tensor: Tensor, parts: int, a: int, b: int) -> Tensor:
    """Two of the equal parts of a tensor's first dimension in each other's place."""
    pieces = list(tensor.chunk(parts))
    pieces[a], pieces[b] = pieces[b], pieces[a]
    return torch.cat(pieces)


@pytest.mark.parametrize(
    ("tensor", "parts", "a", "b"),
    [
        ("blocks.1.adaLN_modulation.1.bias", 6, 0, 1),  # shift and scale
        ("blocks.1.adaLN_modulation.1.bias", 6, 2, 5),  # the two gates
        ("ffn.adaLN_modulation.1.bias", 2, 0, 1),
        ("blocks.0.attn.qkv.weight", 3, 0, 2),  # q and v; q and k are symmetric only without biases
        ("blocks.0.attn.qkv.weight", 12, 0, 1),  # heads
        ("blocks.2.mlp.w12.weight", 2, 0, 1),  # SwiGLU's halves
        ("y_embedder.embedding_table.weight", 11, 0, 10),  # the null class and the first
    ],
)
def test_the_comparison_sees_every_convention(tensor: str, parts: int, a: int, b: int) -> None:
    """A state in another order would not pass the test above."""
    it = case("cifar10")
    model = SphereModel.from_recipe(it.recipe).eval()
    for part in ("encoder", "decoder"):
        name = f"{part}.{tensor}"
        model.load_state_dict(fit(model, {**it.state, name: swapped(it.state[name], parts, a, b)}))
        with torch.no_grad():
            found = model.encode(it.images, it.labels) if part == "encoder" else model.decode(it.latents, it.labels)
        assert (found - (it.encoded if part == "encoder" else it.decoded)).abs().max() > 1e-2, part


def test_either_state_dict_is_taken_and_told_in_the_header(save: Callable[..., Path], tmp_path: Path) -> None:
    recipe = small("cifar10")
    raw, ema = random_state(recipe, 0), random_state(recipe, 1)
    path = save(raw, ema_model=ema, optimizer={"state": {}, "param_groups": [{"lr": 1e-4}]})
    for weights, state, told in (("model", raw, "raw"), ("ema_model", ema, "ema")):
        done = import_checkpoint(path, recipe, tmp_path / weights, weights)
        assert done.epoch == 12
        tensors, about, _ = RunFolder(tmp_path / weights).weights()
        assert about["weights"] == told
        assert about["epochs"] == "12"
        assert torch.equal(tensors["encoder.mixer.0.gate1"], state["encoder.out.blocks.0.alpha1"])
        assert torch.equal(tensors["decoder.vit.blocks.2.mlp.fc2.bias"], state["decoder.blocks.2.mlp.w3.bias"])


def test_half_precision_is_taken_as_it_is() -> None:
    recipe = small("cifar10")
    state = {name: tensor.bfloat16() for name, tensor in random_state(recipe).items()}
    model = SphereModel.from_recipe(recipe)
    model.load_state_dict(fit(model, state))
    weight = model.state_dict()["decoder.stem.weight"]
    assert weight.dtype == torch.float32
    assert torch.equal(weight, state["decoder.x_embedder.0.weight"].float())


def refusal(path: Path, recipe: Recipe, tmp_path: Path) -> str:
    """What an import says that must write nothing."""
    with pytest.raises(RunError) as refused:
        import_checkpoint(path, recipe, tmp_path / "runs" / "run")
    assert not list((tmp_path / "runs").iterdir())
    return str(refused.value)


def test_names_and_shapes_that_do_not_fit_are_all_listed(save: Callable[..., Path], tmp_path: Path) -> None:
    recipe = small("cifar10")
    state = random_state(recipe)
    del state["decoder.x_embedder.0.bias"]
    state["encoder.surprise"] = torch.zeros(1)
    state["decoder.out.4.weight"] = torch.zeros(32, 3, 6, 6)
    state["encoder_cond_proj.0.weight"] = torch.zeros(4)
    state["decoder_cond_proj.weight"] = torch.zeros(4)
    said = refusal(save(state), recipe, tmp_path).splitlines()
    assert "checkpoint.pth: 'model' does not fit the recipe cifar10-b; nothing is written" in said[0]
    assert sorted(line.split(": ")[0] for line in said[1:]) == [
        "decoder.out.4.weight", "decoder.x_embedder.0.bias", "decoder_cond_proj.weight", "encoder.surprise",
        "encoder_cond_proj.0.weight",
    ]  # fmt: skip
    text = "\n".join(said)
    assert "decoder.out.4.weight: is [32, 3, 6, 6], expected [32, 3, 4, 4]" in text
    assert "decoder.x_embedder.0.bias: missing, expected [64]" in text
    assert "encoder.surprise: unknown" in text
    assert "encoder_cond_proj belongs to an extension" in text
    assert "decoder_cond_proj belongs to an extension" in text


def test_a_recipe_of_other_sizes_is_refused_in_a_line_a_kind_of_layer(
    save: Callable[..., Path], tmp_path: Path
) -> None:
    path = save(random_state(small("cifar10")))
    said = refusal(path, small("cifar10", "encoder.depth=1"), tmp_path)
    assert "encoder.blocks.{1-2}.attn.qkv.weight: unknown" in said
    assert len(said.splitlines()) == 13
    said = refusal(path, small("cifar10", "conditioner.use=unconditional"), tmp_path)
    assert "encoder.y_embedder.embedding_table.weight: unknown" in said
    said = refusal(path, small("cifar10", "regularizer.use=batchnorm"), tmp_path)
    assert (
        'regularizer.norm.running_mean: such checkpoints hold no tensor for it; choose [regularizer] use = "none"'
        in said
    )


@pytest.mark.parametrize("other", ["transposed", "interleaved"])
def test_another_position_table_is_another_convention(other: str, save: Callable[..., Path], tmp_path: Path) -> None:
    recipe = small("cifar10")
    state = random_state(recipe)
    name = "decoder.pos_embed"
    if other == "transposed":  # row before column
        state[name] = state[name].view(1, 16, 16, -1).transpose(1, 2).reshape(1, 256, -1)
    else:  # sines and cosines by turns
        state[name] = state[name].view(1, 256, 2, 2, -1).transpose(3, 4).reshape(1, 256, -1)
    said = refusal(save(state), recipe, tmp_path)
    assert "decoder.pos_embed: differs from the fixed table by up to" in said
    assert len(said.splitlines()) == 2


@pytest.mark.parametrize("modern", [True, False])
def test_pickled_code_is_never_run(modern: bool, tmp_path: Path) -> None:
    class Touch:
        def __reduce__(self) -> tuple[object, ...]:
            return (Path.touch, (tmp_path / "owned",))

    for content, told in ((Touch(), "pickled code"), (argparse.Namespace(lr=1), "argparse.Namespace")):
        torch.save({"model": {}, "args": content}, tmp_path / "c.pth", _use_new_zipfile_serialization=modern)
        assert told in refusal(tmp_path / "c.pth", small("cifar10"), tmp_path)
        assert not (tmp_path / "owned").exists()


def test_files_that_are_no_checkpoints_are_refused_in_a_line(tmp_path: Path) -> None:
    recipe = small("cifar10")
    file = tmp_path / "c.pth"

    def said() -> str:
        message = refusal(file, recipe, tmp_path)
        assert str(file) in message
        assert len(message.splitlines()) == 1
        return message

    assert "No such file" in said()
    file.write_bytes(b"hello")
    assert "damaged" in said()
    torch.save({"model": {"encoder.pos_embed": torch.zeros(1)}}, file)
    file.write_bytes(file.read_bytes()[:300])
    assert "damaged" in said()
    torch.save({"state_dict": {}, "epoch": 1}, file)
    assert "holds no 'model'" in said()
    torch.save([1, 2], file)
    assert "holds no 'model'" in said()
    torch.save({"model": {"encoder.pos_embed": 3}}, file)
    assert "expected a state dict" in said()


def test_a_folder_that_holds_anything_is_left_alone(save: Callable[..., Path], run: Path) -> None:
    before = (run / "model.safetensors").read_bytes()
    with pytest.raises(RunError, match="not an empty folder"):
        import_checkpoint(save(random_state(small("cifar10"))), small("cifar10"), run)
    assert (run / "model.safetensors").read_bytes() == before
    assert not list(run.parent.glob(".*"))


def test_networks_that_are_not_the_authors_are_told(tmp_path: Path) -> None:
    class Other(spheregen.Encoder, name="other"):
        def forward(self, images: Tensor, labels: Tensor | None) -> Tensor:
            return images

    recipe = small("cifar10")
    model = SphereModel.from_recipe(recipe)
    model.encoder = Other(Other.Options(), recipe.shape)
    with pytest.raises(ValueError, match=r"encoder: 'other' is not a network of the authors' code"):
        fit(model, {})


def test_the_command_imports_and_the_model_samples(
    save: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from spheregen import cli

    recipe, settings = MODELS["cifar10"]
    words = [word for setting in (LPIPS, *settings) for word in ("--set", setting)]
    path, run = save(random_state(small("cifar10"))), tmp_path / "run"
    with pytest.raises(SystemExit) as done:
        cli.main(["import", str(path), "--recipe", f"recipes/{recipe}.toml", "--run", str(run), *words])
    captured = capsys.readouterr()
    assert not done.value.code
    assert "epoch 12" in captured.out
    assert "class names are numbers" in captured.err  # CIFAR-10 itself is not at hand: its classes are numbers
    model = spheregen.load(run)
    images = spheregen.sample(model, [3, 10], steps=2)
    assert images.shape == (2, 3, 32, 32)
    assert json.loads(RunFolder(run).weights()[1]["class_names"]) == [str(i) for i in range(10)]

    with pytest.raises(SystemExit) as done:
        cli.main(
            [
                "import",
                str(path),
                "--recipe",
                recipe,
                "--run",
                str(tmp_path / "other"),
                "--weights",
                "ema_model",
                *words,
            ]
        )
    assert done.value.code == 1
    assert "holds no 'ema_model'" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()
