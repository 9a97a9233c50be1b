"""onnxruntime-web, which runs ONNX in browsers: one version, from npm or a folder, checked and kept in the cache."""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import json
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path
from typing import NoReturn

from spheregen.checkpoint import new_folder
from spheregen.errors import SpheregenError
from spheregen.reference import cache_folder

PACKAGE, VERSION = "onnxruntime-web", "1.30.0"
# What npm's registry tells of the package, and the SHA-256 of the files that are taken from its dist/: the build for
# WebAssembly alone, without WebGPU.
INTEGRITY = "sha512-q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
FILES = {
    "ort.wasm.min.mjs": "219e6a1fc8a9938268d18efca3c91d310bd2f4a59bbd13744df5b2b7fc6cee3b",
    "ort-wasm-simd-threaded.mjs": "e13f7f94fc51b4ca72b12faeb1ee95f4ace6dfbc8939bc718aabdc0a27c4299b",
    "ort-wasm-simd-threaded.wasm": "3398c10d07d229bd91b364548e130e0e51a8e5704b88c7c083ebbeb78842dee2",
}
COPIES = {name: name.replace(".mjs", ".js") for name in FILES}  # not every server knows .mjs for JavaScript
WASM = COPIES["ort-wasm-simd-threaded.wasm"]
LICENSES = ("LICENSE", "ThirdPartyNotices.txt")
PATIENCE = 300  # seconds for the download of 33 MB


def find(given: Path | None = None) -> Path:
    """The folder that holds FILES: `given`, or the cache's, filled from npm where it is not there yet.

    Raises SpheregenError where a file is missing or is not of this version, or the package cannot be had; the message
    says what to do.
    """
    if given is not None:
        if fault := _fault(given):
            raise SpheregenError(f"{fault}; expected dist/ of {PACKAGE} {VERSION}: {', '.join(FILES)}")
        return given
    folder = cache_folder() / PACKAGE / VERSION
    if folder.is_dir() and not _fault(folder):
        return folder
    with tempfile.TemporaryDirectory() as scratch:
        package = _download(Path(scratch))
        shutil.rmtree(folder, ignore_errors=True)
        with new_folder(folder) as aside, tarfile.open(package) as archive:
            for name in FILES:
                member = archive.extractfile(f"package/dist/{name}")
                assert member is not None
                (aside / name).write_bytes(member.read())
    return folder


def copy(source: Path, target: Path) -> None:
    """Copy FILES, as COPIES, and onnxruntime's licences, which its Python package carries, into a new folder."""
    target.mkdir()
    for name, renamed in COPIES.items():
        shutil.copyfile(source / name, target / renamed)
    spec = importlib.util.find_spec("onnxruntime")
    assert spec is not None  # the export has used it
    assert spec.origin is not None
    for name in LICENSES:
        try:
            shutil.copyfile(Path(spec.origin).parent / name, target / name)
        except FileNotFoundError as error:
            raise SpheregenError(
                f"{error.filename}: missing; its licence goes along: install onnxruntime anew"
            ) from None


def _fault(folder: Path) -> str:
    """What is wrong with a folder of FILES, "" where nothing is."""
    for name, expected in FILES.items():
        path = folder / name
        if not path.is_file():
            return f"{path}: no such file"
        with open(path, "rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != expected:
                return f"{path}: damaged, or of another version"
    return ""


def _download(folder: Path) -> Path:
    """The package as npm packs it, its version and hash checked. Nothing in it is run."""
    npm = shutil.which("npm")
    if npm is None:
        _missing("npm is not installed")
    command = [npm, "pack", f"{PACKAGE}@{VERSION}", "--json", "--ignore-scripts", "--fetch-retries=0"]
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=PATIENCE, check=True)
        (told,) = json.loads(done.stdout)
        package = folder / str(told["filename"])
        digest = hashlib.sha512(package.read_bytes()).digest()
    except subprocess.CalledProcessError as error:
        lines = [line for line in error.stderr.splitlines() if line.startswith("npm error")] or [str(error)]
        _missing(lines[0])
    except (OSError, ValueError, TypeError, KeyError, subprocess.TimeoutExpired) as error:
        _missing(" ".join(str(error).split()) or type(error).__name__)
    found = "sha512-" + base64.b64encode(digest).decode()
    if told["version"] != VERSION or not found == told["integrity"] == INTEGRITY:
        raise SpheregenError(f"{PACKAGE} {told['version']} from npm: {found}, expected {VERSION} and {INTEGRITY}")
    return package


def _missing(reason: str) -> NoReturn:
    folder = cache_folder() / PACKAGE / VERSION
    raise SpheregenError(
        f"{PACKAGE} {VERSION} cannot be had from npm ({reason}); place {', '.join(FILES)} of its dist/ in {folder}, "
        "or name a folder that has them (--runtime)"
    )
