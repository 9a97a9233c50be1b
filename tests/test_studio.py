"""The studio: its requests and what they promise, the server's manners, and the page in a real browser."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import types
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
import torch
import uvicorn
from conftest import TINY, Invoke, scramble
from PIL import Image
from playwright.sync_api import Browser, Page, expect, sync_playwright
from starlette.testclient import TestClient
from torch import Tensor

import spheregen
from spheregen import Recipe, SphereModel, pictures
from spheregen.checkpoint import RunFolder
from spheregen.cli import studio as command
from spheregen.studio import server, worker
from spheregen.studio.requests import STEPS, toml
from spheregen.studio.server import PAGE, create_app

Event = dict[str, Any]
SEAMS = ["left-right", "top-bottom", "falling", "rising"]


@pytest.fixture
def client(model: SphereModel, run: Path) -> Iterator[TestClient]:
    with TestClient(create_app(model, run), base_url="http://127.0.0.1:8765") as found:
        yield found


@contextmanager
def serving(app: Any) -> Iterator[str]:
    """The application behind a real server in another thread; yields its address."""
    listener = command.listening("127.0.0.1", 0)
    config = uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=1)
    running = uvicorn.Server(config)
    thread = threading.Thread(target=running.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        running.should_exit = True
        thread.join(20)
        listener.close()
        assert not thread.is_alive()


class Gate:
    """Stands before a model's decoder: closed, it lets a call through for each `let`."""

    def __init__(self, model: SphereModel) -> None:
        self.calls, self.closed = 0, False
        self._permits = threading.Semaphore(0)
        self._reached = threading.Semaphore(0)
        decode = model.decode

        def held(latents: Tensor, labels: Tensor | None) -> Tensor:
            self.calls += 1
            self._reached.release()
            if self.closed:
                assert self._permits.acquire(timeout=30)
            return decode(latents, labels)

        model.decode = held  # type: ignore[method-assign]

    def close(self) -> None:
        self._permits = threading.Semaphore(0)  # none is left from before
        self.closed = True

    def let(self, calls: int = 1) -> None:
        self._permits.release(calls)

    def open(self) -> None:
        self.closed = False
        self._permits.release(100)

    def wait(self) -> None:
        """Until a further call has come."""
        assert self._reached.acquire(timeout=30)


def ask(client: TestClient, name: str, **body: Any) -> list[Event]:
    """A request that is answered: its events."""
    response = client.post(f"/api/{name}", json=body)
    assert response.status_code == 200, response.text
    return [json.loads(line) for line in response.text.splitlines()]


def pixels(png: str) -> Tensor:
    """A PNG as base64 -> [C, H, W] from 0 to 255."""
    return levels(Image.open(io.BytesIO(base64.b64decode(png))))


def levels(image: Image.Image) -> Tensor:
    return torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(image.height, image.width, -1).long()


def source(image: Image.Image, file: str = "a.png") -> dict[str, str]:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return {"png": base64.b64encode(buffer.getvalue()).decode(), "file": file}


def noise_image(seed: int, size: tuple[int, int] = (8, 8), mode: str = "L") -> Image.Image:
    count = size[0] * size[1] * len(mode)
    values = torch.randint(0, 256, (count,), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    return Image.frombytes(mode, size, values.numpy().tobytes())


# -- the requests ------------------------------------------------------------------------------------------------------


def test_images_come_step_by_step_and_are_the_librarys(client: TestClient, model: SphereModel) -> None:
    first, *steps, last = ask(
        client, "sample", classes=[3, 7], count=2, steps=3, guidance=1.5, position="latent", seed=5
    )
    assert first == {"step": 0, "steps": 3}
    assert [event["step"] for event in steps] == [1, 2]
    walk: list[spheregen.Step] = []
    images = spheregen.sample(
        model, [3, 3, 7, 7], steps=3, guidance=1.5, position="latent", seed=5, on_step=walk.append
    )
    expected = [*(step.images for step in walk[:-1]), images]
    for event, found in zip([*steps, last], expected, strict=True):
        assert len(event["images"]) == 4
        for png, image in zip(event["images"], found, strict=True):
            assert torch.equal(pixels(png), levels(pictures.to_pil(image)))
    assert not torch.equal(pixels(steps[0]["images"][0]), pixels(last["images"][0]))
    assert last["labels"] == [3, 3, 7, 7]
    assert [Path(file).name for file in last["files"]] == ["00000-3.png", "00001-3.png", "00002-7.png", "00003-7.png"]


REQUESTS: dict[str, tuple[str, Callable[[dict[str, str], dict[str, str]], dict[str, Any]], int]] = {
    "sample": ("sample", lambda a, b: {"classes": [8, 1], "count": 2, "steps": 3, "guidance": 1.7, "position": "pixel",
                                       "sampler": "fixed", "sampler_options": {"r": 0.5, "noise": "independent"},
                                       "seed": 9}, 4),
    "reconstruct": ("reconstruct", lambda a, b: {"image": a}, 1),
    "vary": ("vary", lambda a, b: {"image": a, "label": 3, "degrees": 62.5, "count": 3, "steps": 2, "guidance": 1.4,
                                   "seed": 4}, 3),
    "vary plainly": ("vary", lambda a, b: {"image": a}, 8),
    "interpolate": ("interpolate", lambda a, b: {"images": [a, b], "labels": [3, 8], "at": [0.1, 0.37],
                                                 "path": "great-circle", "steps": 2, "seed": 2}, 2),
    "interpolate plainly": ("interpolate", lambda a, b: {"images": [a, b], "at": [0.5]}, 1),
    "crossover": ("crossover", lambda a, b: {"images": [a, b], "seams": SEAMS[1:], "label": 2, "steps": 3,
                                             "guidance": 2, "seed": 3}, 3),
    "restyle": ("restyle", lambda a, b: {"image": b, "classes": [0, 5], "steps": 2, "strength": 0.8, "gamma": 0.5,
                                         "guidance": 1.3, "seed": 6}, 2),
}  # fmt: skip


@pytest.mark.parametrize("name", REQUESTS)
def test_every_command_line_makes_the_images_again(
    name: str, model: SphereModel, run: Path, invoke: Invoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From a sample of the studio and a file of any kind, by the names that the page knows them by."""
    run = run.rename(run.parent / "my run")  # a name that must be quoted
    monkeypatch.chdir(tmp_path)
    noise_image(1, (30, 20), "RGB").save("-x photo.jpg", exif=_turned())
    kind, body, count = REQUESTS[name]
    with TestClient(create_app(model, run), base_url="http://localhost") as client:
        sampled = ask(client, "sample", classes=[4], count=2, steps=2)[-1]
        a = {"png": sampled["images"][1], "file": sampled["files"][1]}
        b = client.post("/api/image?name=-x photo.jpg", content=Path("-x photo.jpg").read_bytes()).json()
        made = ask(client, kind, **body(a, b))[-1]
    assert len(made["images"]) == len(made["files"]) == len(made["titles"]) == count
    for line in (sampled["command"], made["command"]):
        program, *words = shlex.split(line)
        assert program == "spheregen"
        code, _, err = invoke(*words)
        assert code == 0, err
    for png, file in zip(made["images"], made["files"], strict=True):
        with Image.open(file) as again:
            assert (levels(again) - pixels(png)).abs().max() <= 1  # but for rounding
    assert len(list(Path(made["files"][0]).parent.glob("*[0-9]*.png"))) == count


def _turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


def test_command_lines_name_plugins_devices_and_classes(tiny: Callable[..., Recipe], tmp_path: Path) -> None:
    names = ["tabby cat", "crane", "Crane", *map(str, range(7))]
    model = SphereModel.from_recipe(tiny(), names).eval()
    app = create_app(model, "hf://me/it", options=["--plugin", "a b.py", "--device", "cpu"])
    with TestClient(app, base_url="http://localhost") as client:
        made = ask(client, "sample", classes=[0, 1, 2], count=1, steps=1)[-1]
    words = shlex.split(made["command"])
    assert words[:3] == ["spheregen", "sample", "hf://me/it"]
    # One name of two classes tells neither: numbers do. The name "0" is the fourth class's.
    assert [words[i + 1] for i, word in enumerate(words) if word == "--class"] == ["tabby cat", "1", "2"]
    assert "--plugin 'a b.py' --device cpu" in made["command"]
    assert Path(made["files"][0]).name == "00000-tabby-cat.png"


def test_sampler_settings_are_read_back_as_they_were(model: SphereModel) -> None:
    assert [toml(value) for value in (True, 3, 0.25, "shared", "true", "1")] == [
        "true", "3", "0.25", "shared", '"true"', '"1"'
    ]  # fmt: skip


def test_unconditional_models_have_a_studio_too(tiny: Callable[..., Recipe], run: Path) -> None:
    torch.manual_seed(0)
    model = scramble(SphereModel.from_recipe(tiny("conditioner.use=unconditional"))).eval()
    with TestClient(create_app(model, run), base_url="http://localhost") as client:
        facts = client.get("/api/model").json()
        assert facts["classes"] == facts["positions"] == []
        made = ask(client, "sample", count=3, steps=2)[-1]
        assert len(made["images"]) == 3
        assert "--class" not in made["command"]
        a = {"png": made["images"][0], "file": made["files"][0]}
        works: dict[str, dict[str, Any]] = {
            "vary": {"image": a},
            "reconstruct": {"image": a},
            "crossover": {"images": [a, a], "seams": ["rising"]},
            "interpolate": {"images": [a, a], "at": [0.5]},
        }
        for name, body in works.items():
            assert "images" in ask(client, name, **body)[-1]
        refused: list[tuple[str, dict[str, Any], str]] = [
            ("sample", {"classes": [1]}, "unconditional"),
            ("restyle", {"image": a, "classes": [1]}, "unconditional"),
            ("vary", {"image": a, "label": 0}, "unconditional"),
            ("vary", {"image": a, "guidance": 2}, "unconditional"),
        ]
        for name, body, message in refused:
            response = client.post(f"/api/{name}", json=body)
            assert (response.status_code, message in response.json()["error"]) == (400, True)


A = source(noise_image(0))


@pytest.mark.parametrize(
    ("name", "body", "status", "message"),
    [
        ("sample", {"classes": []}, 400, "classes: choose at least one"),
        ("sample", {"classes": [10]}, 400, "classes: 10: this model knows 0 to 9"),
        ("sample", {"classes": [1, 2, 3], "count": 40}, 400, "120; expected at most 64 in all"),
        ("sample", {"classes": [1], "count": 65}, 422, "count: Input should be less than or equal to 64, got 65"),
        ("sample", {"classes": [1], "steps": STEPS + 1}, 422, "steps: Input should be less than or equal to 50"),
        ("sample", {"classes": [1], "steps": 0}, 422, "steps"),
        ("sample", {"classes": [1], "seed": -1}, 422, "seed"),
        ("sample", {"classes": [1], "guidance": 1e9}, 422, "guidance"),
        ("sample", {"classes": [1], "position": "latnt"}, 400, "did you mean 'latent'?"),
        ("sample", {"classes": [1], "sampler": "fixd"}, 400, "did you mean 'fixed'?"),
        ("sample", {"classes": [1], "sampler_options": {"gama": 1}}, 400, "did you mean 'gamma'?"),
        ("sample", {"classes": [1], "sampler_options": {"r": -1}}, 400, "--sampler-set r"),
        ("sample", {"classes": [1], "step": 3}, 422, "step: Extra inputs are not permitted"),
        ("sample", "not JSON", 422, "request: Invalid JSON"),
        ("sampl", {}, 404, "did you mean 'sample'?"),
        ("vary", {}, 422, "image: Field required"),
        ("vary", {"image": A, "degrees": 181}, 422, "degrees"),
        ("vary", {"image": {"png": "bm8=", "file": "b.png"}}, 400, "b.png: not an image that can be read"),
        ("vary", {"image": source(Image.new("1", (2000, 2000)))}, 400, "a.png: has 4 megapixels"),
        ("interpolate", {"images": [A], "at": [0.5]}, 422, "images"),
        ("interpolate", {"images": [A, A], "at": [1.5]}, 422, "at.0"),
        ("interpolate", {"images": [A, A], "at": []}, 422, "at"),
        ("crossover", {"images": [A, A], "seams": ["wavy"]}, 422, "seams.0"),
        ("restyle", {"image": A, "classes": [99]}, 400, "classes: 99"),
    ],
)
def test_bad_requests_get_one_line(client: TestClient, name: str, body: Any, status: int, message: str) -> None:
    text = body if isinstance(body, str) else json.dumps(body)
    response = client.post(f"/api/{name}", content=text)
    assert response.status_code == status, response.text
    assert message in response.json()["error"]
    assert "\n" not in response.json()["error"]
    assert len(response.json()["error"]) < 250


def test_numbers_that_are_none_are_refused(client: TestClient) -> None:
    response = client.post("/api/sample", content='{"classes": [1], "guidance": NaN}')
    assert response.status_code == 422
    assert "guidance: Input should be a finite number" in response.json()["error"]


# -- the server --------------------------------------------------------------------------------------------------------


def test_the_page_is_whole_and_asks_nothing_of_others(client: TestClient) -> None:
    page = client.get("/")
    assert "default-src 'self'" in page.headers["content-security-policy"]
    wanted = set(re.findall(r'(?:href|src)="([^"#]+)"', page.text))
    for file in PAGE.iterdir():
        text = file.read_text(encoding="utf-8")
        assert not re.search(r"https?:|//\w+\.\w", text.replace("http://www.w3.org/2000/svg", "")), file
        wanted |= set(re.findall(r'from "\./([^"]+)"', text))
    assert {"style.css", "app.js", "api.js", "icon.svg"} <= wanted
    for name in wanted:
        assert client.get(f"/{name}").status_code == 200, name
    assert client.get("/../server.py").status_code == 404


def test_only_its_own_names_and_pages_are_answered(model: SphereModel, run: Path) -> None:
    app = create_app(model, run, hosts=["192.168.1.5", "studio.lan"])
    good, bad = ["127.0.0.1:8765", "localhost:1", "[::1]:8765", "192.168.1.5:8765", "studio.lan"], ["evil.example", ""]
    with TestClient(app) as client:
        for host in good:
            response = client.get("/api/model", headers={"Host": host, "Origin": "http://evil.example"})
            assert response.status_code == 200, host
            assert not [name for name in response.headers if name.startswith("access-control")]
            body = {"classes": [1], "count": 1, "steps": 1}
            for origin, status in [(f"http://{host}", 200), ("http://evil.example", 403), ("null", 403)]:
                for path in ("sample", "image?name=a.png"):
                    headers = {"Host": host, "Origin": origin}
                    response = client.post(f"/api/{path}", json=body, headers=headers)
                    wanted = 400 if status == 200 and path != "sample" else status  # JSON is no image
                    assert response.status_code == wanted, (host, origin, path)
        for host in [*bad, "localhost.evil.example"]:
            for method in ("GET", "POST"):
                assert client.request(method, "/api/model", headers={"Host": host}).status_code == 400


def test_files_of_any_kind_are_shown_as_the_model_sees_them(client: TestClient, tmp_path: Path) -> None:
    noise_image(3, (40, 30), "RGB").save(tmp_path / "photo.jpg", exif=_turned())
    answer = client.post("/api/image?name=photo.jpg", content=(tmp_path / "photo.jpg").read_bytes())
    assert answer.json()["file"] == "photo.jpg"
    expected = spheregen.read_image(tmp_path / "photo.jpg", 8, 1)
    assert torch.equal(pixels(answer.json()["png"])[..., 0], expected[0].long())


def test_files_that_cannot_be_taken_get_one_line_and_the_server_goes_on(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    buffer = io.BytesIO()
    Image.new("1", (10_000, 5_000)).save(buffer, "PNG")
    monkeypatch.setattr(server, "MEGABYTES", 0.1)
    with TestClient(create_app(client_model(client), "run"), base_url="http://localhost") as small:
        for sender, data, status, message in [
            (client, b"some notes", 400, "notes.png: not an image that can be read"),
            (client, b"", 400, "notes.png: not an image that can be read"),
            (client, buffer.getvalue(), 400, "notes.png: has 50 megapixels; expected at most 32, make it smaller"),
            (small, bytes(200_000), 413, "too large: expected at most 0 MB"),
            (small, iter([bytes(60_000)] * 3), 413, "too large"),  # of a length that was not told
        ]:
            response = sender.post("/api/image?name=notes.png", content=data)  # type: ignore[arg-type]
            assert response.status_code == status
            assert response.json()["error"].startswith(message)
            assert "images" in ask(sender, "sample", classes=[1], count=1, steps=1)[-1]


def client_model(client: TestClient) -> SphereModel:
    """A model like the client's."""
    return scramble(SphereModel.from_recipe(Recipe.read("digits", TINY))).eval()


def test_two_requests_at_once_are_both_answered(model: SphereModel, run: Path) -> None:
    gate = Gate(model)
    gate.close()

    with serving(create_app(model, run)) as address, ThreadPoolExecutor(1) as pool:
        body = {"classes": [1], "count": 1, "steps": 2}
        first = pool.submit(httpx2.post, f"{address}/api/sample", json=body, timeout=30)
        gate.wait()  # its first step is under way
        body["classes"] = [2]
        with httpx2.stream("POST", f"{address}/api/sample", json=body, timeout=30) as second:
            lines = second.iter_lines()
            assert json.loads(next(lines)) == {"waiting": 1}
            assert httpx2.get(f"{address}/").status_code == 200  # the page comes meanwhile
            assert gate.calls == 1
            gate.let(4)
            events = [json.loads(line) for line in lines]
        assert json.loads(first.result(30).text.splitlines()[-1])["labels"] == [1]
    assert [event.get("step") for event in events] == [0, 1, None]
    assert events[-1]["labels"] == [2]
    assert gate.calls == 4


def test_a_closed_tab_ends_the_work_between_two_steps(model: SphereModel, run: Path) -> None:
    gate = Gate(model)
    gate.close()
    body = {"classes": [1], "count": 1, "steps": 50}
    with serving(create_app(model, run)) as address:
        with httpx2.stream("POST", f"{address}/api/sample", json=body, timeout=30) as response:
            lines = response.iter_lines()
            assert json.loads(next(lines))["step"] == 0
            gate.let()
            assert json.loads(next(lines))["step"] == 1
            gate.wait()
            gate.wait()  # the second step is under way
        gate.let()
        # The server may learn of it a moment later: a step or two more, but not fifty.
        body = {"classes": [2], "count": 1, "steps": 1}
        with ThreadPoolExecutor(1) as pool:
            other = pool.submit(httpx2.post, f"{address}/api/sample", json=body, timeout=30)
            while not other.done():
                gate.let()
                threading.Event().wait(0.05)
        assert json.loads(other.result().text.splitlines()[-1])["labels"] == [2]
    assert gate.calls < 20
    assert model.training is False


def test_requests_behind_a_closed_tab_are_never_begun(model: SphereModel, run: Path) -> None:
    gate = Gate(model)
    gate.close()
    with serving(create_app(model, run)) as address, ThreadPoolExecutor(1) as pool:
        body = {"classes": [1], "count": 1, "steps": 1}
        first = pool.submit(httpx2.post, f"{address}/api/sample", json=body, timeout=30)
        gate.wait()
        with httpx2.stream("POST", f"{address}/api/sample", json=body, timeout=30) as response:
            assert json.loads(next(response.iter_lines())) == {"waiting": 1}
        threading.Event().wait(0.5)  # for the server to see that it is closed
        gate.open()
        assert first.result(30).status_code == 200
        httpx2.post(f"{address}/api/sample", json=body, timeout=30)
    assert gate.calls == 2


def test_a_long_queue_is_refused(model: SphereModel, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "WAITING", 1)
    gate = Gate(model)
    gate.close()
    body = {"classes": [1], "count": 1, "steps": 1}
    with serving(create_app(model, run)) as address, ThreadPoolExecutor(1) as pool:
        first = pool.submit(httpx2.post, f"{address}/api/sample", json=body, timeout=30)
        gate.wait()
        refused = httpx2.post(f"{address}/api/sample", json=body)
        assert (refused.status_code, refused.json()["error"][:5]) == (503, "busy:")
        gate.open()
        assert first.result(30).status_code == 200
        assert httpx2.post(f"{address}/api/sample", json=body, timeout=30).status_code == 200


def test_what_a_plugin_raises_is_told_and_the_next_request_is_answered(
    client: TestClient, model: SphereModel, capsys: pytest.CaptureFixture[str]
) -> None:
    decode = model.decode

    def broken(*_: Any) -> Tensor:
        raise RuntimeError("out of memory")

    model.decode = broken  # type: ignore[assignment, method-assign]
    *_, last = ask(client, "sample", classes=[1], count=1, steps=2)
    assert last == {"error": "RuntimeError: out of memory"}
    assert "Traceback" in capsys.readouterr().err
    model.decode = decode  # type: ignore[method-assign]
    assert "images" in ask(client, "sample", classes=[1], count=1, steps=2)[-1]


# -- the command -------------------------------------------------------------------------------------------------------


PLUGIN = """
import spheregen

class Quiet(spheregen.Sampler, name="quiet"):
    "No noise at all."

    def strength(self, step, steps):
        return 0.0

    def noise(self, shape, generators, previous, first):
        return spheregen.rng.normal(shape, generators)

@spheregen.hookimpl
def spheregen_components():
    return [Quiet]
"""


def test_the_command_serves_and_ends_well(run: Path, tmp_path: Path) -> None:
    (tmp_path / "quiet.py").write_text(PLUGIN)
    words = [sys.executable, "-m", "spheregen", "studio", str(run), "--port", "0", "--no-open", "--device", "cpu",
             "--plugin", "./quiet.py"]  # fmt: skip
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        found = re.search(r"http://127\.0\.0\.1:\d+/", line)
        assert found, line
        assert "spheregen studio" in httpx2.get(found[0]).text
        body = {"classes": [1], "count": 1, "steps": 2, "sampler": "quiet"}
        made = httpx2.post(f"{found[0]}api/sample", json=body, timeout=30).text.splitlines()[-1]
        assert "--plugin ./quiet.py --device cpu" in json.loads(made)["command"]
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
    finally:
        process.kill()
    assert (process.returncode, err) == (0, "")


def test_the_command_refuses_in_one_line(invoke: Invoke, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with command.listening("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        code, _, err = invoke("studio", run, "--port", str(port))
        assert (code, len(err.splitlines())) == (1, 1)
        assert f"--host 127.0.0.1 --port {port}: " in err
        assert "in use" in err
    code, _, err = invoke("studio", "nowhere")
    assert (code, "nowhere: not a run folder" in err) == (1, True)
    code, _, err = invoke("studio", run, "--host", "no.such.host.invalid")
    assert (code, "--host no.such.host.invalid" in err, len(err.splitlines())) == (1, True, 1)
    monkeypatch.setattr(command, "PACKAGES", ("starlette", "no_such_package"))
    code, _, err = invoke("studio", run)
    assert (code, err) == (1, "error: the studio needs no_such_package: pip install 'spheregen[studio]'\n")


def test_static_calls_its_builder_alone(
    invoke: Invoke, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Any] = []

    def build(folder: Path, out: Path, *, runtime: Path | None = None, trust_plugins: bool = False) -> Path:
        calls.append((folder, out, trust_plugins))
        return out

    fake = types.ModuleType("spheregen.studio.static")
    fake.build = build  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "spheregen.studio.static", fake)
    monkeypatch.setattr(command, "PACKAGES", ("no_such_package",))  # none of them is needed
    code, out, err = invoke("studio", run, "--static", tmp_path / "site", "--trust-plugins")
    assert code == 0, err
    assert calls == [(run, tmp_path / "site", True)]
    assert str(tmp_path / "site") in out


# -- the page ----------------------------------------------------------------------------------------------------------

FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync"]  # fmt: skip


expect.set_options(timeout=20_000)  # a busy machine is no failure


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    path = shutil.which("chromium")
    if path is None:
        if os.environ.get("CI"):
            pytest.fail("chromium is not installed: apt-get install chromium")
        pytest.skip("needs chromium (Debian: apt-get install chromium)")
    with sync_playwright() as driver:
        found = driver.chromium.launch(executable_path=path, args=FLAGS)
        yield found
        found.close()


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Gate]]:
    """A studio's address, and the gate before its model."""
    torch.manual_seed(0)
    model = scramble(SphereModel.from_recipe(Recipe.read("digits", TINY))).eval()
    folder = RunFolder(tmp_path_factory.mktemp("studio") / "run")
    gate = Gate(model)
    with serving(create_app(model, folder.path)) as address:
        yield address, gate


@pytest.fixture
def page(browser: Browser, studio: tuple[str, Gate]) -> Iterator[Page]:
    """The page, opened, in a window of its own. Whatever it complains of fails the test."""
    context = browser.new_context(viewport={"width": 1280, "height": 800}, accept_downloads=True)
    context.set_default_timeout(20_000)
    found = context.new_page()
    complaints: list[str] = []
    found.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    found.on("pageerror", lambda error: complaints.append(str(error)))
    found.goto(studio[0])
    expect(found.locator("body")).to_have_attribute("data-ready", "yes")
    yield found
    context.close()
    assert [text for text in complaints if "status of 4" not in text] == []


def sampled(page: Page, images: int = 40) -> None:
    page.get_by_role("button", name="Sample", exact=True).click()
    expect(page.get_by_role("status")).to_contain_text(f"{images} images")


def test_page_samples_and_shows_the_steps_as_they_come(page: Page, studio: tuple[str, Gate]) -> None:
    gate = studio[1]
    for label in range(10):
        if label not in (3, 7):
            page.locator("#classes").get_by_label(str(label), exact=True).uncheck()
    page.get_by_label("Images a class").fill("2")
    page.get_by_label("Steps", exact=True).first.fill("3")
    tiles = page.locator("#newest .picture")
    gate.close()
    try:
        page.get_by_role("button", name="Sample", exact=True).click()
        gate.let()
        expect(page.get_by_role("status")).to_contain_text("step 1 of 3")
        expect(tiles).to_have_count(4)
        expect(tiles.first).to_be_disabled()
        first = page.locator("#newest img").first.get_attribute("src")
        gate.let()
        expect(page.get_by_role("status")).to_contain_text("step 2 of 3")
        second = page.locator("#newest img").first.get_attribute("src")
        gate.let()
        expect(page.get_by_role("status")).to_contain_text("4 images")
    finally:
        gate.open()
    third = page.locator("#newest img").first.get_attribute("src")
    assert len({first, second, third}) == 3
    line = page.locator("#newest .command").inner_text()
    assert "--class 3" in line
    assert "--class 7" in line
    assert "--count 2" in line
    assert "--steps 3" in line
    expect(page.locator("#newest figcaption").first).to_contain_text("3")


def test_page_stops(page: Page, studio: tuple[str, Gate]) -> None:
    gate = studio[1]
    page.get_by_label("Steps", exact=True).first.fill("50")
    gate.close()
    before = gate.calls
    try:
        page.get_by_role("button", name="Sample", exact=True).click()
        gate.let()
        expect(page.get_by_role("status")).to_contain_text("step 1 of 50")
        page.get_by_role("button", name="Stop").click()
        expect(page.get_by_role("status")).to_contain_text("stopped")
    finally:
        gate.open()
    page.get_by_label("Steps", exact=True).first.fill("1")
    sampled(page)
    assert gate.calls - before < 20


def test_page_slides_between_kept_images_and_edits_them(page: Page) -> None:
    sampled(page)
    page.get_by_role("button", name="Keep image 2, 0", exact=True).click()
    page.get_by_role("button", name="Keep image 40, 9", exact=True).click()
    expect(page.locator("#tray .badge")).to_have_text(["A", "B"])
    page.get_by_label("Between", exact=True).check()
    slider, preview = page.get_by_label("Place between A and B"), page.get_by_alt_text("The image at this place")
    slider.fill("20")
    expect(page.locator("#newest [data-file*=interpolate]")).to_be_enabled()
    expect(page.locator("#newest figcaption")).to_contain_text("20%")
    before = preview.get_attribute("src")
    slider.press("ArrowRight")
    expect(page.locator("#newest figcaption")).to_contain_text("21%")
    slider.fill("90")
    expect(page.locator("#newest figcaption")).to_contain_text("90%")
    assert preview.get_attribute("src") != before
    assert page.locator("#newest .command code").count() == 2  # the sample's line, and the way's
    for label, button, images in [("Re-encode", "Re-encode", 1), ("Vary", "Vary", 8), ("Restyle", "Restyle", 10),
                                  ("Between", "Show the whole way", 9), ("Cross", "Cross", 4)]:  # fmt: skip
        page.get_by_label(label, exact=True).check()
        page.get_by_role("button", name=button, exact=True).click()
        expect(page.locator("#newest .picture:enabled")).to_have_count(images)
    expect(page.get_by_role("alert")).to_be_empty()
    page.reload()  # kept images outlive it
    expect(page.locator("#tray .badge")).to_have_text(["A", "B"])
    page.get_by_role("button", name="Remove kept image 1, 0").click()
    expect(page.locator("#tray li")).to_have_count(1)
    expect(page.get_by_label("Between", exact=True)).to_be_disabled()


DROP = """([name, base64]) => {
  const bytes = Uint8Array.from(atob(base64), (c) => c.charCodeAt(0));
  const data = new DataTransfer();
  data.items.add(new File([bytes], name));
  for (const type of ["dragover", "drop"]) {
    document.body.dispatchEvent(new DragEvent(type, { dataTransfer: data, bubbles: true, cancelable: true }));
  }
}"""


def test_page_takes_images_that_are_dropped_or_picked(page: Page, tmp_path: Path) -> None:
    dropped = source(noise_image(1, (20, 30)), "photo.png")
    page.evaluate(DROP, [dropped["file"], dropped["png"]])
    expect(page.locator("#tray li")).to_have_count(1)
    expect(page.locator("#drop")).to_be_hidden()
    page.get_by_label("Restyle").check()
    page.get_by_role("button", name="Restyle", exact=True).click()
    expect(page.locator("#newest .picture:enabled")).to_have_count(10)
    assert page.locator("#newest .command").inner_text().startswith("spheregen restyle photo.png")
    noise_image(2).save(tmp_path / "other.png")
    page.get_by_label("Add an image").set_input_files(tmp_path / "other.png")
    expect(page.locator("#tray li")).to_have_count(2)
    page.get_by_label("Cross").check()
    page.get_by_role("button", name="Cross", exact=True).click()
    expect(page.locator("#newest .picture:enabled")).to_have_count(4)
    page.evaluate(DROP, ["notes.png", base64.b64encode(b"only text").decode()])
    expect(page.get_by_role("alert")).to_have_text("notes.png: not an image that can be read")
    expect(page.locator("#tray li")).to_have_count(2)


def test_page_finds_classes_among_many(page: Page) -> None:
    facts = page.request.get(f"{page.url}api/model").json()
    names = [f"kind {label}" for label in range(5)] + ["Tabby cat"] + [f"other {label}" for label in range(90)]
    page.route("**/api/model", lambda route: route.fulfill(json={**facts, "classes": names}))
    page.reload()
    chips, field = page.locator("#classes input[type=checkbox]"), page.locator("#classes").get_by_label("Add a class")
    expect(chips).to_have_count(4)  # to begin with
    for label in range(4):
        page.locator("#classes").get_by_label(f"kind {label}", exact=True).uncheck()
    field.fill("nonsense")
    field.press("Enter")
    expect(chips).to_have_count(4)
    field.fill("tabby")
    field.press("Enter")
    expect(page.locator("#classes").get_by_label("Tabby cat")).to_be_checked()
    field.fill("7")
    page.locator("#classes").get_by_role("button", name="Add").click()
    expect(page.locator("#classes").get_by_label("other 1", exact=True)).to_be_checked()
    sampled(page, 8)
    line = page.locator("#newest .command").inner_text()
    assert re.findall(r"--class (\d)", line) == ["5", "7"]


def test_page_downloads_png(page: Page, tmp_path: Path) -> None:
    sampled(page)
    with page.expect_download() as waiting:
        page.get_by_role("link", name="Download image 3, 0 as PNG").click()
    assert re.fullmatch(r"sample-\w{8}-00002-0\.png", waiting.value.suggested_filename)
    waiting.value.save_as(tmp_path / "image.png")
    with Image.open(tmp_path / "image.png") as image:
        assert (image.format, image.size, image.mode) == ("PNG", (8, 8), "L")
        shown = page.locator("#newest img").nth(2).get_attribute("src")
        assert shown is not None
        assert torch.equal(levels(image), pixels(shown.partition(",")[2]))


def test_page_works_with_the_keyboard_alone(page: Page) -> None:
    def focused(what: str) -> Any:
        return page.evaluate(f"document.activeElement.{what}")

    def tab_to(selector: str, most: int = 60) -> None:
        for _ in range(most):
            page.keyboard.press("Tab")
            if page.evaluate("(s) => document.activeElement.matches(s)", selector):
                return
        pytest.fail(f"no way to {selector} by Tab")

    page.keyboard.press("Tab")
    assert focused("textContent") == "Skip to the images"
    tab_to("#classes input")
    for _ in range(9):  # all classes but the last go
        page.keyboard.press("Space")
        page.keyboard.press("Tab")
    tab_to("#count")
    page.keyboard.type("3")
    tab_to("#sample-button")
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"  # the focus is to be seen
    page.keyboard.press("Enter")
    expect(page.get_by_role("status")).to_contain_text("3 images")
    assert focused("id") == "sample-button"
    for _ in range(2):
        tab_to("#newest .picture")
        page.keyboard.press("Space")
        assert focused("ariaPressed") == "true"
        page.keyboard.press("Tab")  # past its download
    expect(page.locator("#kept-count")).to_have_text("2")
    tab_to("#tray .picture")
    tab_to("#file")
    tab_to("input[name=action]")
    page.keyboard.press("ArrowRight")
    expect(page.get_by_label("Vary")).to_be_checked()
    tab_to("#degrees")
    page.keyboard.press("ArrowRight")
    tab_to("#edit-button")
    page.keyboard.press("Enter")
    expect(page.locator("#newest .picture:enabled")).to_have_count(8)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page_fits_a_phone(browser: Browser, studio: tuple[str, Gate], scheme: Any) -> None:
    context = browser.new_context(viewport={"width": 360, "height": 640}, color_scheme=scheme, has_touch=True)
    context.set_default_timeout(20_000)
    page = context.new_page()
    page.goto(studio[0])
    sampled(page)
    page.get_by_role("button", name="Keep image 2, 0", exact=True).click()
    page.get_by_role("button", name="Keep image 40, 9", exact=True).click()
    for label in ("Re-encode", "Vary", "Restyle", "Between", "Cross"):
        page.get_by_label(label, exact=True).check()
        assert page.evaluate("document.documentElement.scrollWidth") == 360, label
    back = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (back == "rgb(18, 19, 22)") == (scheme == "dark")
    context.close()


def test_page_has_a_name_for_everything_that_is_operated(page: Page) -> None:
    sampled(page)
    page.get_by_role("button", name="Keep image 1, 0", exact=True).click()
    nameless = page.evaluate("""[...document.querySelectorAll("button, input, select, a, summary")].filter((e) =>
        !(e.ariaLabel || e.textContent.trim() || [...(e.labels ?? [])].some((l) => l.textContent.trim())))
        .map((e) => e.outerHTML)""")
    assert nameless == []
    assert page.evaluate("[...document.querySelectorAll('[onclick], div[tabindex]')].length") == 0
    assert page.evaluate("""document.querySelectorAll("[role=status], [role=alert], [aria-live]").length""") == 2
