"""The studio without a server: what is built, and the page in Chromium, cut off from every host but this one."""

from __future__ import annotations

import functools
import http.server
import io
import json
import math
import os
import re
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from conftest import TINY, Invoke, scramble
from PIL import Image
from scipy.stats import kstest
from torch import Tensor

import spheregen
from spheregen import Recipe, RunError, SpheregenError, SphereModel, export, generation, sphere
from spheregen.checkpoint import RunFolder
from spheregen.registry import registry
from spheregen.rng import generators, normal
from spheregen.studio import runtime, static

if os.environ.get("CI"):
    import playwright.sync_api as playwright
else:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

PIXEL = 1e-4  # of a pixel in [0, 1]; the promise is 1e-2
PATIENCE = 120_000  # milliseconds, for a busy machine
MODELS = {
    "conditional": ("digits", [*TINY, "conditioner.scale=1.7"]),
    "unconditional": (
        "cifar10_l_unconditional",
        [*TINY, "encoder.size=tiny", "decoder.size=tiny", "latent.grid=4", "sampler.truncation=1.5"],
    ),
}
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
]  # fmt: skip
TELLING = """() => {
    const status = document.getElementById("status");
    window.told = [];
    new MutationObserver(() => told.push(status.textContent)).observe(status, { childList: true });
}"""

playwright.expect.set_options(timeout=PATIENCE)


def missing(reason: str) -> None:
    """Skip what this machine cannot test; where everything must be there, fail."""
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


class Site(NamedTuple):
    model: SphereModel
    folder: Path
    address: str


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """A plain web server of this machine, one that knows few types of files; gives its address."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def guess_type(self, path: Any) -> str:
            types = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}
            return types.get(Path(path).suffix, "application/octet-stream")

        def log_message(self, *_: object) -> None:
            pass

    handler = functools.partial(Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(scope="module")
def files() -> Path:
    """onnxruntime-web's files."""
    try:
        return runtime.find()
    except SpheregenError as error:
        missing(str(error))
        raise


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory, files: Path) -> Iterator[dict[str, Site]]:
    """The pages of small models with random weights, below a path of the server."""
    root = tmp_path_factory.mktemp("www")
    made: dict[str, Site] = {}
    with serving(root) as address:
        for name, (recipe_name, overrides) in MODELS.items():
            recipe = Recipe.read(recipe_name, overrides)
            torch.manual_seed(0)
            run = RunFolder(tmp_path_factory.mktemp(name) / "run")
            run.begin(recipe)
            run.save_model(scramble(SphereModel.from_recipe(recipe)), {"images": "12345"})
            folder = static.build(run.path, root / "some" / "path" / name, runtime=files)
            made[name] = Site(spheregen.load(run.path), folder, f"{address}/some/path/{name}/")
        yield made


@pytest.fixture(scope="module")
def browser() -> Iterator[playwright.Browser]:
    path = shutil.which("chromium")
    if path is None:
        missing("chromium is not installed")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()


@contextmanager
def opened(browser: playwright.Browser, address: str, quiet: bool = True, **options: Any) -> Iterator[playwright.Page]:
    """A page of the site, which may talk to its own server alone and, where it should be quiet, reports no error."""
    context = browser.new_context(**options)
    context.set_default_timeout(PATIENCE)
    page = context.new_page()
    asked: list[str] = []
    errors: list[str] = []
    context.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda message: errors.append(message.text) if message.type in ("error", "warning") else None)
    page.goto(address)
    yield page
    assert [url for url in asked if not url.startswith((address, "blob:", "data:"))] == []
    assert address + "studio.json" in asked
    if quiet:
        assert errors == []
    context.close()


@pytest.fixture(scope="module")
def pages(sites: dict[str, Site], browser: playwright.Browser) -> Iterator[dict[str, playwright.Page]]:
    """The sites, opened and ready, for tests that leave them as they are."""
    with (
        opened(browser, sites["conditional"].address) as conditional,
        opened(browser, sites["unconditional"].address) as unconditional,
    ):
        found = {"conditional": conditional, "unconditional": unconditional}
        for page in found.values():
            page.evaluate("spheregen.ready")
        yield found


def status(page: playwright.Page) -> playwright.LocatorAssertions:
    return playwright.expect(page.locator("#status"))


def calls(page: playwright.Page, module: str, function: str, *arguments: Any) -> Any:
    """What a function of one of the page's modules gives, from and to JSON; lists are float arrays there."""
    return page.evaluate(
        """async ([module, name, given]) => {
            const exported = await import(new URL(module, location.href));
            const answer = await exported[name](...given.map((a) => (Array.isArray(a) ? Float32Array.from(a) : a)));
            return ArrayBuffer.isView(answer) ? Array.from(answer) : answer;
        }""",
        [module, function, list(arguments)],
    )


# -- the method in JavaScript ------------------------------------------------------------------------------------------


def test_the_sphere_is_the_same_in_javascript(pages: dict[str, playwright.Page]) -> None:
    page = pages["conditional"]
    z = torch.randn(4, 3, 5, generator=torch.Generator().manual_seed(0)) * torch.tensor([1, 100, 1e-5, 0]).view(4, 1, 1)
    e = torch.randn(4, 3, 5, generator=torch.Generator().manual_seed(1))
    v = sphere.spherify(z)

    def rows(found: list[float]) -> Tensor:
        return torch.tensor(found).view(4, 3, 5)

    torch.testing.assert_close(rows(calls(page, "sphere.js", "spherify", z.flatten().tolist(), 4)), v)
    for sigma in (0, 0.5, math.tan(math.radians(80))):
        found = calls(page, "sphere.js", "perturb", v.flatten().tolist(), sigma, e.flatten().tolist(), 4)
        torch.testing.assert_close(rows(found), sphere.perturb(v, sigma, e))
    for degrees in (0, 45, 80, 89):
        assert calls(page, "sphere.js", "angleToSigma", degrees) == pytest.approx(sphere.angle_to_sigma(degrees))


@pytest.mark.parametrize("options", [{"use": "fixed", "r": 0.8}, {"use": "decay", "r": 0.5, "gamma": 2}])
def test_strengths_are_the_samplers(options: dict[str, Any], pages: dict[str, playwright.Page]) -> None:
    component = registry.get("sampler", options["use"])
    sampler = component(component.Options(**{key: value for key, value in options.items() if key != "use"}))
    for steps in (2, 3, 8):
        for step in range(2, steps + 1):
            found = calls(pages["conditional"], "sphere.js", "strength", options, step, steps)
            assert found == pytest.approx(sampler.strength(step, steps), abs=1e-12)


def test_noise_is_kept_or_drawn_anew(pages: dict[str, playwright.Page]) -> None:
    """First the prior's numbers are drawn, then those of the steps; `draw` counts."""
    script = """async (noise) => {
        const { sampler } = await import(new URL("sphere.js", location.href));
        let drawn = 0;
        const made = sampler({ use: "fixed", r: 1, noise, truncation: 2 }, (a) => `${++drawn}, ${a}`);
        const first = made.prior();
        const second = made.noise(null, first);
        return [first, second, made.noise(second, first)];
    }"""
    page = pages["conditional"]
    assert page.evaluate(script, "shared") == ["1, 2", "2, null", "2, null"]
    assert page.evaluate(script, "shared-prior") == ["1, 2", "1, 2", "1, 2"]
    assert page.evaluate(script, "independent") == ["1, 2", "2, null", "3, null"]


def sfc32(seed: int, index: int) -> Iterator[int]:
    """PractRand's sfc32 with two words of seed, from its definition."""
    a, b, c, counter, mask = seed, index, 0, 1, 2**32 - 1
    for number in range(2**32):
        result = (a + b + counter) & mask
        counter = (counter + 1) & mask
        a, b, c = b ^ (b >> 9), (c + (c << 3)) & mask, ((((c << 21) | (c >> 11)) & mask) + result) & mask
        if number >= 15:
            yield result


DRAW = """async ([seed, count, length, truncation]) => {
    const { source } = await import(new URL("random.js", location.href));
    return Array.from(source(seed, count, length)(truncation));
}"""


def test_random_numbers_are_sfc32s_by_box_muller(pages: dict[str, playwright.Page]) -> None:
    found = pages["conditional"].evaluate(DRAW, [4_000_000_000, 3, 6, None])
    words = sfc32(4_000_000_000, 2)
    expected: list[float] = []
    for _ in range(3):
        radius, angle = math.sqrt(-2 * math.log((next(words) + 1) / 2**32)), 2 * math.pi * next(words) / 2**32
        expected += [radius * math.cos(angle), radius * math.sin(angle)]
    assert found[12:] == pytest.approx(expected, rel=1e-6)


def test_random_numbers_are_gaussian_and_an_images_own(pages: dict[str, playwright.Page]) -> None:
    page = pages["conditional"]
    sample = page.evaluate(DRAW, [1, 4, 5000, None])
    assert kstest(sample, "norm").pvalue > 0.01
    assert np.abs(np.corrcoef(np.reshape(sample, (4, 5000))) - np.eye(4)).max() < 0.06
    assert page.evaluate(DRAW, [1, 1, 5000, None]) == sample[:5000]
    assert page.evaluate(DRAW, [2, 1, 5000, None]) != sample[:5000]
    truncated = page.evaluate(DRAW, [1, 4, 5000, 1.5])
    assert 1.4 < np.abs(truncated).max() <= 1.5


# -- the same images as PyTorch ----------------------------------------------------------------------------------------

FLOATS = "async (options) => Array.from(await spheregen.generate(options))"


def expected_images(
    model: SphereModel,
    count: int,
    labels: list[int] | None,
    steps: int,
    use: str,
    guidance: float,
    position: str | None,
) -> tuple[Tensor, dict[str, Any]]:
    """PyTorch's images, and the page's options for the same: the noise among them."""
    shape = (model.shape.tokens, model.shape.latent_channels)
    streams = generators(7, "sample", range(count))
    noise = {
        "noise": normal(shape, streams).flatten().tolist(),
        "perturbations": [normal(shape, streams).flatten().tolist()],
    }
    component = registry.get("sampler", use)
    conditioner = generation.conditioner_for(model, *((guidance, position) if position else (None, None)))
    *_, last = generation.generate(
        model,
        torch.tensor(labels) if labels else None,
        steps=steps,
        sampler=component(component.Options()),
        conditioner=conditioner,
        generators=generators(7, "sample", range(count)),
    )
    settings = {"count": count, "labels": labels, "steps": steps, "sampler": use, **noise}
    return last.images, settings | ({"guidance": guidance, "position": position} if position else {})


@pytest.mark.parametrize(
    ("steps", "use", "guidance", "position"),
    [(1, "decay", 1, "combo"), (4, "decay", 1.7, "combo"), (4, "fixed", 2.5, "pixel"), (3, "fixed", 3, "latent"),
     (2, "decay", 1, "none")],
)  # fmt: skip
def test_the_browsers_images_are_pytorchs(
    steps: int, use: str, guidance: float, position: str, sites: dict[str, Site], pages: dict[str, playwright.Page]
) -> None:
    model, page = sites["conditional"].model, pages["conditional"]
    expected, settings = expected_images(model, 3, [3, 9, 10], steps, use, guidance, position)
    found = torch.tensor(page.evaluate(FLOATS, settings)).view_as(expected)
    torch.testing.assert_close(found, expected, atol=PIXEL, rtol=0)
    if guidance != 1:
        unguided = torch.tensor(page.evaluate(FLOATS, settings | {"guidance": 1})).view_as(expected)
        assert (found - unguided).abs().max() > 100 * PIXEL  # the last image asks for no class: nothing to guide
        torch.testing.assert_close(found[2], unguided[2], atol=PIXEL, rtol=0)


@pytest.mark.parametrize("steps", [1, 3])
def test_the_browsers_images_are_pytorchs_without_classes(
    steps: int, sites: dict[str, Site], pages: dict[str, playwright.Page]
) -> None:
    expected, settings = expected_images(sites["unconditional"].model, 2, None, steps, "fixed", 1, None)
    found = torch.tensor(pages["unconditional"].evaluate(FLOATS, settings)).view_as(expected)
    assert expected.shape == (2, 3, 32, 32)
    assert expected.std() > 0.1
    torch.testing.assert_close(found, expected, atol=PIXEL, rtol=0)


def test_what_is_not_given_is_the_models(sites: dict[str, Site], pages: dict[str, playwright.Page]) -> None:
    info = json.loads((sites["conditional"].folder / "studio.json").read_text(encoding="utf-8"))
    assert info["defaults"] == {
        "steps": 2, "guidance": 1.7, "position": "combo",
        "sampler": {"use": "decay", "gamma": 1, "r": 1, "noise": "shared", "truncation": None},
    }  # fmt: skip
    given = {"steps": 2, "guidance": 1.7, "position": "combo", "sampler": "decay", "seed": 0}
    page = pages["conditional"]
    assert page.evaluate(FLOATS, {"labels": [4, 2]}) == page.evaluate(FLOATS, {"labels": [4, 2], **given})
    assert page.evaluate(FLOATS, {"labels": [4, 2]}) != page.evaluate(FLOATS, {"labels": [4, 2], "seed": 1})
    assert page.evaluate(FLOATS, {"labels": [4]}) == pytest.approx(
        page.evaluate(FLOATS, {"labels": [4, 2]})[:64], abs=1e-5
    )


# -- the page ----------------------------------------------------------------------------------------------------------

SHOWN = """() => [...document.querySelectorAll("#grid canvas")].map((canvas) =>
    [...canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data].filter((_, i) => i % 4 === 0))"""


def test_a_visit_by_keyboard(sites: dict[str, Site], browser: playwright.Browser) -> None:
    """The class by its name, the images step by step, the file they are downloaded as; no mouse."""
    with opened(browser, sites["conditional"].address) as page:
        status(page).to_have_text("4 images, 2 steps.")
        assert page.title() == "digits"
        assert "12,345 images seen" in page.inner_text("#facts")
        page.evaluate(TELLING)
        page.focus("#class")
        page.keyboard.type("7")
        page.keyboard.press("Tab")  # Images: 4
        page.keyboard.type("16")
        page.keyboard.press("Tab")
        page.keyboard.type("3")
        for _ in "guidance", "scale", "noise", "seed":
            page.keyboard.press("Tab")
        page.keyboard.type("12")
        page.keyboard.press("Enter")
        status(page).to_have_text("16 images, 3 steps.")
        assert page.evaluate("told") == [f"Step {t} of 3 …" for t in (1, 2, 3)] + ["16 images, 3 steps."]
        expected = page.evaluate(FLOATS, {"labels": [7] * 16, "steps": 3, "seed": 12})
        shown = np.array(page.evaluate(SHOWN))
        assert np.abs(shown.ravel() - 255 * np.array(expected)).max() <= 0.51
        assert page.locator("#grid figcaption").all_inner_texts() == ["7"] * 16

        with page.expect_download() as download:
            page.focus("#download")
            page.keyboard.press("Enter")
        assert download.value.suggested_filename == "digits-seed-12-steps-3.png"
        picture = Image.open(io.BytesIO(download.value.path().read_bytes()))
        assert picture.size == (512, 512)
        image = np.asarray(picture.convert("L"))[128:256:16, 256:384:16]  # second row, third column
        assert np.abs(image - shown[6].reshape(8, 8)).max() <= 1

        page.focus("#new-seed")
        page.keyboard.press("Enter")
        status(page).to_have_text("16 images, 3 steps.")
        assert page.input_value("#seed") != "12"
        playwright.expect(page.locator("#download")).to_be_visible()
        assert page.evaluate(SHOWN) != shown.tolist()


def test_generation_can_be_stopped(sites: dict[str, Site], browser: playwright.Browser) -> None:
    with opened(browser, sites["conditional"].address) as page:
        status(page).to_have_text("4 images, 2 steps.")
        page.fill("#steps", "8")
        page.evaluate('() => { document.getElementById("generate").click(); document.getElementById("stop").click(); }')
        status(page).to_have_text("Stopped.")
        page.click("#generate")
        status(page).to_have_text("4 images, 8 steps.")
        page.fill("#steps", "9")
        page.click("#generate")  # the browser refuses
        assert page.evaluate('document.getElementById("steps").validity.rangeOverflow')
        status(page).to_have_text("4 images, 8 steps.")


@pytest.mark.parametrize(("name", "scheme"), [("conditional", "dark"), ("unconditional", "light")])
def test_a_phone_shows_it_all(name: str, scheme: Any, sites: dict[str, Site], browser: playwright.Browser) -> None:
    size: Any = {"width": 360, "height": 740}
    with opened(browser, sites[name].address, viewport=size, color_scheme=scheme) as page:
        status(page).to_have_text(re.compile(r"^4 images, "))
        page.select_option("#count", "16")
        page.click("#generate")
        status(page).to_have_text(re.compile(r"^16 images, "))
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        background = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (sum(map(float, re.findall(r"[\d.]+", background)[:3])) < 200) == (scheme == "dark")
        conditional = name == "conditional"
        for field in ("#class", "#scale", "#position"):
            assert page.is_visible(field) == conditional


def test_without_webassembly_a_line_says_so(sites: dict[str, Site], browser: playwright.Browser) -> None:
    context = browser.new_context()
    context.add_init_script("delete globalThis.WebAssembly")
    page = context.new_page()
    page.goto(sites["conditional"].address)
    status(page).to_contain_text("This browser has no WebAssembly")
    assert page.is_disabled("#generate")
    context.close()


@pytest.mark.parametrize(
    ("file", "content", "told"),
    [
        ("model/encoder.onnx", None, "model/encoder.onnx cannot be fetched: the server answers 404"),
        ("model/decoder.onnx", b"short", "model/decoder.onnx has 5 bytes instead of"),
        ("runtime/ort-wasm-simd-threaded.wasm", None, "ort-wasm-simd-threaded.wasm cannot be fetched"),
        ("runtime/ort.wasm.min.js", None, "worker.js cannot run: a file of runtime/ is missing or damaged"),
        ("studio.json", None, "studio.json cannot be fetched"),
    ],
)
def test_a_folder_that_is_not_whole_is_told(
    file: str, content: bytes | None, told: str, sites: dict[str, Site], browser: playwright.Browser, tmp_path: Path
) -> None:
    folder = shutil.copytree(sites["conditional"].folder, tmp_path / "site")
    (folder / file).unlink()
    if content is not None:
        (folder / file).write_bytes(content)
    with serving(folder) as address, opened(browser, f"{address}/", quiet=False) as page:
        status(page).to_contain_text(told)
        playwright.expect(page.locator("#status")).to_have_class("notice error")
        assert page.is_disabled("#generate")


# -- the folder --------------------------------------------------------------------------------------------------------


def test_the_folder_is_whole(sites: dict[str, Site]) -> None:
    folder = sites["conditional"].folder
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    sums = (folder / "SHA256SUMS").read_text(encoding="utf-8").splitlines()
    assert names == {*(line.split("  ")[1] for line in sums), "SHA256SUMS"}
    assert {"index.html", "runtime/LICENSE", "runtime/ThirdPartyNotices.txt", "model/export.json"} <= names
    assert sorted(path.name for path in folder.parent.iterdir()) == sorted(MODELS)  # nothing is left beside them


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch, files: Path) -> None:
    """Export nothing: for tests of the folder alone."""

    def networks(model: SphereModel, out: Path) -> None:
        out.mkdir()
        for name in ("decoder", "encoder"):
            (out / f"{name}.onnx").write_bytes(b"onnx")

    monkeypatch.setattr(export, "export_networks", networks)


@pytest.mark.usefixtures("quick")
def test_a_former_build_is_replaced_and_nothing_else(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "site"
    out.mkdir()  # an empty folder is as good as none
    static.build(run, out)
    (out / "SHA256SUMS").touch()
    assert static.build(run, out) == out
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    (out / "mine.txt").write_text("mine")
    with pytest.raises(RunError, match=r"site: mine.txt was added or changed since the folder was built"):
        static.build(run, out)
    (out / "mine.txt").unlink()
    (out / "index.html").write_text("my own words")
    with pytest.raises(RunError, match=r"site: index.html was added or changed"):
        static.build(run, out)
    before[out / "index.html"] = b"my own words"
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    other = tmp_path / "other"
    other.mkdir()
    (other / "index.html").write_text("mine")
    with pytest.raises(RunError, match="other: exists already and is not a former build of the studio"):
        static.build(run, other)
    with pytest.raises(RunError, match=r"recipe.toml: exists already"):
        static.build(run, run / "recipe.toml")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "runs", "site"]


@pytest.mark.usefixtures("quick")
def test_the_command_writes_the_page(run: Path, files: Path, tmp_path: Path, invoke: Invoke) -> None:
    out = tmp_path / "site"
    code, printed, err = invoke("studio", "--static", out, "--runtime", files, run)
    assert code == 0, err
    assert f"page → {out}" in printed
    assert (out / "index.html").is_file()
    code, _, err = invoke("studio", "--static", out, "--runtime", tmp_path, run)
    assert code == 1
    assert f"{tmp_path / 'ort.wasm.min.mjs'}: no such file" in err
    code, _, err = invoke("studio", "--runtime", files, run)
    assert code == 1
    assert "--runtime: is for --static alone" in err


@pytest.mark.usefixtures("quick")
def test_a_failing_build_leaves_the_former(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = static.build(run, tmp_path / "site")

    def fail(model: SphereModel, out: Path) -> None:
        raise SpheregenError("decoder.onnx: these networks cannot be exported to ONNX: no")

    monkeypatch.setattr(export, "export_networks", fail)
    with pytest.raises(SpheregenError, match="cannot be exported"):
        static.build(run, out)
    with pytest.raises(SpheregenError, match="cannot be exported"):
        static.build(run, tmp_path / "new")
    assert (out / "index.html").is_file()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["runs", "site"]


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("SAMPLERS", ("fixed",), r"sampler: 'decay' of this model's recipe is not one that the page has .*\(fixed\)"),
        ("CONDITIONERS", ("none", "pixel"), r"conditioner: 'combo' .* \(none, pixel\)"),
        ("LARGEST", 1000, r"GB of weights are too many for a browser: at most 1e-06 GB"),
    ],
)
def test_what_the_page_cannot_run_is_refused(
    name: str, value: Any, told: str, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(static, name, value)
    with pytest.raises(SpheregenError, match=told):
        static.build(run, tmp_path / "site")
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]


# -- onnxruntime-web ---------------------------------------------------------------------------------------------------


def test_a_folder_of_the_runtime_is_checked(files: Path, tmp_path: Path) -> None:
    assert runtime.find(files) == files
    folder = shutil.copytree(files, tmp_path / "dist")
    (folder / "ort.wasm.min.mjs").write_text("another version")
    with pytest.raises(SpheregenError, match=r"ort.wasm.min.mjs: damaged, or of another version; expected dist/ of "):
        runtime.find(folder)
    (folder / "ort.wasm.min.mjs").unlink()
    with pytest.raises(SpheregenError, match=r"ort.wasm.min.mjs: no such file; expected dist/ of onnxruntime-web 1"):
        runtime.find(folder)


@pytest.mark.parametrize(
    ("script", "told"),
    [
        (None, r"cannot be had from npm \(npm is not installed\); place ort.wasm.min.mjs, .* \(--runtime\)$"),
        ("echo 'npm error code ENOTFOUND' >&2; exit 1", r"npm \(npm error code ENOTFOUND\); place "),
        ("echo nonsense", r"cannot be had from npm \(.*\); place "),
        ("""echo junk > p.tgz; echo '[{"version": "VERSION", "filename": "p.tgz", "integrity": "INTEGRITY"}]'""",
         r"from npm: sha512-\S+, expected \S+ and sha512-"),
    ],
)  # fmt: skip
def test_without_npm_a_line_says_what_to_do(
    script: str | None, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    if script is not None:
        script = script.replace("VERSION", runtime.VERSION).replace("INTEGRITY", runtime.INTEGRITY)
        (programs / "npm").write_text(f"#!/bin/sh\n{script}\n")
        (programs / "npm").chmod(0o755)
    monkeypatch.setenv("PATH", str(programs))
    monkeypatch.setenv("SPHEREGEN_CACHE", str(tmp_path / "cache"))
    with pytest.raises(SpheregenError, match=told) as refused:
        runtime.find()
    assert len(str(refused.value).splitlines()) == 1
    assert not (tmp_path / "cache").exists()
