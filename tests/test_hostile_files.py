"""Files and checkpoints that lie, are no files, or are damaged: each is listed or refused in one line, and nothing is run."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import resource
import struct
import subprocess
import sys
import time
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from portable_ops.evaluation import BadFilesError, evaluate_files
from portable_ops.evaluation.classes import read_class_names
from portable_ops.evaluation.opening import MAX_PIXELS
from portable_ops.evaluation.problems import BadFileError
from portable_ops.evaluation.reading import ENDINGS, _codecs, open_stack, read_labels

Image = pytest.importorskip("PIL.Image", reason="the extra files is not installed")
tifffile = pytest.importorskip("tifffile", reason="the extra files is not installed")
zarr = pytest.importorskip("zarr", reason="the extra files is not installed")

K = 3
LABELS = np.arange(48, dtype=np.uint8).reshape(6, 8) % K


def npy(shape: tuple[int, ...], dtype: str = "|u1", content: bytes = b"") -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": dtype, "fortran_order": False, "shape": shape})
    return buffer.getvalue() + content


def png(width: int, height: int, content: bytes) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", content) + chunk(b"IEND", b"")


def npz(path: Path, content: bytes, claimed: int | None = None) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as kept:
        kept.writestr("labels.npy", content)
    if claimed is not None:
        raw = path.read_bytes()
        path.write_bytes(raw.replace(struct.pack("<I", len(content)), struct.pack("<I", claimed)))


def tiff_with_a_large_strip(path: Path) -> None:
    """An image of 48 pixels whose only strip unpacks to 64 MiB."""
    tifffile.imwrite(path, LABELS, compression="zlib")
    with tifffile.TiffFile(path) as file:
        tags = file.pages[0].tags
        places = {name: tags[name].valueoffset for name in ("StripOffsets", "StripByteCounts")}
        kinds = {name: tags[name].dtype for name in places}
    content, strip = bytearray(path.read_bytes()), zlib.compress(bytes(2**26))
    for name, value in (("StripOffsets", len(content)), ("StripByteCounts", len(strip))):
        size = 2 if int(kinds[name]) == 3 else 4
        if value >= 256**size:
            raise AssertionError("the strip does not fit")
        content[places[name] : places[name] + size] = value.to_bytes(size, "little")
    path.write_bytes(bytes(content) + strip)


BOMBS: dict[str, tuple[Callable[[Path], object], str]] = {
    "claims.npy": (lambda path: path.write_bytes(npy((10**9, 10**9))[:128]), "pixels"),
    "claims-little.npy": (lambda path: path.write_bytes(npy((2**14, 2**14), content=b"1")), "truncated"),
    "negative.npy": (lambda path: path.write_bytes(npy((-4, 4), content=bytes(16))), "sizes of at least 0"),
    "digits.npy": (lambda path: path.write_bytes(npy((10**4000, 2))), ""),
    "nested.npy": (lambda path: path.write_bytes(_nested_header()), ""),
    "claims.npz": (lambda path: npz(path, npy((10**9, 10**9))), "pixels"),
    "claims-little.npz": (lambda path: npz(path, npy((2**14, 2**14))), "truncated"),
    "claims-twice.npz": (lambda path: npz(path, npy((2**14, 2**14)), 2**28 + 128), "truncated"),
    "large.npz": (lambda path: npz(path, npy((2**14, 2**14), content=bytes(2**28))), "max_pixels (--max-pixels)"),
    "claims.png": (lambda path: path.write_bytes(png(2**30, 2**30, b"")), "max_pixels (--max-pixels)"),
    "claims-little.png": (lambda path: path.write_bytes(png(2**13, 2**13, zlib.compress(b"1"))), "truncated"),
    "large.png": (lambda path: path.write_bytes(png(2**14, 2**14, zlib.compress(bytes(2**22)))), "max_pixels"),
    "large.tif": (
        lambda path: tifffile.imwrite(path, np.zeros((2**11, 2**11), np.uint8), compression="zlib"),
        "max_pixels",
    ),
    "strip.tif": (tiff_with_a_large_strip, "a strip or tile"),
}  # fmt: skip


def _nested_header() -> bytes:
    header = b"(" * 9000
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header


@pytest.mark.parametrize("name", BOMBS)
def test_what_files_claim_is_checked_before_it_is_decoded(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    BOMBS[name][0](path)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    most = {"large.npz": 2**27, "large.png": 2**27, "large.tif": 2**21, "strip.tif": 2**16}.get(name, MAX_PIXELS)
    with pytest.raises(BadFileError) as caught:
        read_labels(str(path), max_pixels=most)
    assert name in str(caught.value) and BOMBS[name][1] in str(caught.value), caught.value
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**16, "64 MiB were taken"


def test_a_limit_is_an_option(tmp_path: Path) -> None:
    for kind in ("pred", "target"):
        (tmp_path / kind).mkdir()
        np.save(tmp_path / kind / "small.npy", LABELS)
        np.save(tmp_path / kind / "large.npy", np.zeros((7, 8), np.uint8))
    done = evaluate_files(tmp_path / "pred", tmp_path / "target", num_classes=K, keep_going=True, max_pixels=48)
    assert [problem.name for problem in done.problems] == ["large"] and done.images == 1
    assert "56 pixels (7 × 8); expected at most 48" in done.problems[0].reason
    with pytest.raises(ValueError, match="max_pixels: got 0"):
        evaluate_files(tmp_path / "pred", tmp_path / "target", num_classes=K, max_pixels=0)


def special(folder: Path) -> dict[str, str]:
    """Files that are none, by name, and what is said of them."""
    said = {}
    if hasattr(os, "mkfifo"):
        os.mkfifo(folder / "pipe.npy")
        os.mkfifo(folder / "pipe.png")
        said |= {"pipe.npy": "a named pipe", "pipe.png": "a named pipe"}
    for name, leads_to in (("zero.npy", "/dev/zero"), ("zero.tif", "/dev/zero"), ("gone.npz", "/nowhere")):
        (folder / name).symlink_to(leads_to)
        said[name] = "a device" if leads_to == "/dev/zero" else "No such file"
    return said


@pytest.mark.skipif(os.name == "nt", reason="Windows has neither named pipes in folders nor /dev")
def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    for kind in ("pred", "target"):
        (tmp_path / kind).mkdir()
    said = special(tmp_path / "pred")
    said = {name: text for name, text in said.items() if name not in ("pipe.png", "zero.tif")}
    for name in ("pipe.png", "zero.tif"):
        with pytest.raises(BadFileError, match="expected a regular file"):
            read_labels(str(tmp_path / "pred" / name))
        (tmp_path / "pred" / name).unlink()
    for name in said:
        np.save(tmp_path / "target" / f"{Path(name).stem}.npy", LABELS)
    np.save(tmp_path / "elsewhere.npy", LABELS)
    (tmp_path / "pred" / "linked.npy").symlink_to(tmp_path / "elsewhere.npy")
    np.save(tmp_path / "target" / "linked.npy", LABELS)
    kept = tmp_path / "checkpoint"
    done = evaluate_files(tmp_path / "pred", tmp_path / "target", num_classes=K, keep_going=True, checkpoint=kept)
    found = {Path(problem.name).name: problem for problem in done.problems}
    assert done.images == 1 and done.result.mean_iou() == 1.0
    assert {
        name: found[Path(name).stem].reason for name in said if said[name] in found[Path(name).stem].reason
    }.keys() == said.keys()
    assert all(problem.kind == "unreadable" for problem in done.problems)
    # As stacks, and as a checkpoint.
    for pred in ("pipe.npy", "zero.npy"):
        with pytest.raises(BadFilesError, match="expected a regular file"):
            evaluate_files(tmp_path / "pred" / pred, tmp_path / "elsewhere.npy", num_classes=K)
    with pytest.raises(ValueError, match=r"checkpoint: .*pipe.npy: got a named pipe; expected a regular file"):
        evaluate_files(
            tmp_path / "elsewhere.npy", tmp_path / "elsewhere.npy", num_classes=K, checkpoint=tmp_path / "pred" / "pipe.npy",
            resume=True,
        )  # fmt: skip


class Runs:
    """Something that leaves a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    ran, bad = tmp_path / "ran", []
    content = pickle.dumps(np.asarray([Runs(ran)], object))
    for name in ("array.npy", "array.npz"):
        bad.append(tmp_path / name)
        with bad[-1].open("wb") as file:
            (np.save if name.endswith("npy") else np.savez)(file, np.asarray([Runs(ran)], object))
    bad += [tmp_path / "pure.npy", tmp_path / "pure.npz"]
    bad[-2].write_bytes(content)
    bad[-1].write_bytes(content)
    for path in bad:
        for read in (read_labels, open_stack):
            with pytest.raises(BadFileError):
                read(str(path), None)
    assert not ran.exists()


SECOND = {
    "zarr_format": 2, "shape": [4, 6, 8], "chunks": [4, 6, 8], "dtype": "|u1", "fill_value": 0, "order": "C",
    "compressor": None, "filters": None,
}  # fmt: skip
PICKLE = {"id": "pickle", "protocol": 5}
THIRD = {
    "zarr_format": 3, "node_type": "array", "shape": [4, 6, 8], "data_type": "uint8", "fill_value": 0, "attributes": {},
    "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [4, 6, 8]}},
    "chunk_key_encoding": {"name": "v2", "configuration": {"separator": "."}},
    "codecs": [{"name": "numcodecs.pickle", "configuration": {}}],
}  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("name", "metadata"),
    [
        pytest.param(".zarray", SECOND | {"compressor": PICKLE}, id="compressor"),
        pytest.param(".zarray", SECOND | {"filters": [PICKLE]}, id="filter"),
        pytest.param(".zarray", SECOND | {"filters": [PICKLE], "dtype": "|O"}, id="objects"),
        pytest.param("zarr.json", THIRD, id="third"),
    ],
)
def test_no_codec_of_zarr_unpickles(name: str, metadata: dict[str, Any], tmp_path: Path) -> None:
    ran, path = tmp_path / "ran", tmp_path / "labels.zarr"
    path.mkdir()
    (path / name).write_text(json.dumps(metadata))
    (path / "0.0.0").write_bytes(pickle.dumps(Runs(ran)))
    with pytest.raises(BadFilesError, match=r"labels\.zarr"):
        evaluate_files(path, path, num_classes=K)
    assert not ran.exists()


def test_zarr_that_claims_too_much(tmp_path: Path) -> None:
    for name, shape, chunks, said in (
        ("chunk", (2, 2**20, 2**20), (1, 2**20, 2**20), "pixels in a chunk"),
        ("row", (2, 2**20, 2**40), (1, 1, 2**10), "pixels in a row"),
    ):
        path = tmp_path / f"{name}.zarr"
        zarr.create_array(path, shape=shape, chunks=chunks, dtype="uint8")
        with pytest.raises(BadFilesError, match=said):
            evaluate_files(path, path, num_classes=K)
    if hasattr(os, "mkfifo"):
        path = tmp_path / "pipe.zarr"
        zarr.create_array(path, shape=(2, 4, 4), chunks=(1, 4, 4), dtype="uint8")
        (path / "c" / "0" / "0").mkdir(parents=True)
        os.mkfifo(path / "c" / "0" / "0" / "0")
        with pytest.raises(BadFilesError, match="a named pipe"):
            evaluate_files(path, path, num_classes=K)


def test_a_stack_of_endlessly_many_empty_images(tmp_path: Path) -> None:
    path = tmp_path / "labels.npy"
    path.write_bytes(npy((10**18, 0, 4)))
    with pytest.raises(BadFilesError, match="empty images"):
        evaluate_files(path, path, num_classes=K)


def corrupted(content: bytes, rng: np.random.Generator) -> bytes:
    """Some bytes changed, a part cut off, doubled, or put to 0 or 255."""
    changed = bytearray(content)
    start, stop = np.sort(rng.integers(0, len(content) + 1, 2)).tolist()
    match rng.integers(5):
        case 0:
            del changed[stop:]
        case 1:
            changed[start : min(stop, start + 8)] = bytes([rng.choice([0, 255, 127])]) * (min(stop, start + 8) - start)
        case 2:
            changed[start:start] = changed[start : start + 16]
        case _:
            for place in rng.integers(0, len(content), rng.integers(1, 9)):
                changed[place] = rng.integers(256)
    return bytes(changed)


def originals(folder: Path) -> dict[str, bytes]:
    """A good file of each kind."""
    picture = Image.fromarray(LABELS)
    picture.putpalette(list(range(9)))
    for name in ("p.png", "p.bmp"):
        picture.save(folder / name)
    picture.save(folder / "lzw.tif", compression="tiff_lzw")
    tifffile.imwrite(folder / "zlib.tif", LABELS, compression="zlib")
    tifffile.imwrite(folder / "plain.tiff", LABELS)
    np.save(folder / "p.npy", LABELS)
    np.savez_compressed(folder / "p.npz", LABELS)
    assert {path.suffix for path in folder.iterdir()} == set(ENDINGS)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.filterwarnings("ignore")  # decoders tell of what they pass over
def test_damaged_files_are_listed_and_nothing_else_happens(tmp_path: Path) -> None:
    rng = np.random.default_rng(19)
    for kind in ("good", "pred", "target"):
        (tmp_path / kind).mkdir()
    known, number = originals(tmp_path / "good"), 0
    for name, content in known.items():
        for _ in range(60):
            (tmp_path / "pred" / f"{number:04}{Path(name).suffix}").write_bytes(corrupted(content, rng))
            np.save(tmp_path / "target" / f"{number:04}.npy", LABELS)
            number += 1
    started = time.monotonic()
    done = evaluate_files(
        tmp_path / "pred", tmp_path / "target", num_classes=K, keep_going=True, validate=False, max_pixels=2**22
    )
    assert time.monotonic() - started < 60
    assert done.images + len(done.problems) == number
    assert len(done.problems) > number / 4 and done.images > number / 20
    assert {problem.kind for problem in done.problems} <= {"unreadable", "different sizes", "labels out of range"}
    assert all("/pred/" in problem.reason for problem in done.problems)


@pytest.fixture
def checkpointed(tmp_path: Path) -> tuple[Callable[[], Any], Path]:
    """Goes on from a checkpoint of four images, one of which is bad; and where that is."""
    for kind in ("pred", "target"):
        (tmp_path / kind).mkdir()
        for number in range(4):
            np.save(tmp_path / kind / f"{number}.npy", LABELS if kind == "target" else (LABELS + (number == 2)) % K)
    (tmp_path / "pred" / "3.npy").write_bytes(b"nothing")
    kept = tmp_path / "run.checkpoint"

    def go_on() -> Any:
        return evaluate_files(
            tmp_path / "pred", tmp_path / "target", num_classes=K, keep_going=True, checkpoint=kept, resume=True
        )

    assert go_on().images == 3
    return go_on, kept


def test_damaged_checkpoints_are_refused(checkpointed: tuple[Callable[[], Any], Path]) -> None:
    go_on, kept = checkpointed
    content, rng, refused = kept.read_bytes(), np.random.default_rng(18), 0
    expected = go_on().to_dict() | {"seconds": 0}
    for _ in range(200):
        kept.write_bytes(changed := corrupted(content, rng))
        try:
            found, text = go_on(), ""
        except ValueError as error:
            found, text = None, str(error)
        if found is None:
            refused += 1
            assert str(kept) in text and "\n" not in text, text
        else:  # what was changed says nothing, such as a time in the archive
            assert found.to_dict() | {"seconds": 0} == expected, changed
    assert refused > 100


def rewritten(kept: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the state in a checkpoint, and its checksums with it."""
    with zipfile.ZipFile(kept) as file:
        state, scores = json.loads(file.read("state.json")), file.read("scores.npz")
    changed = change(state)
    content = json.dumps(state if changed is None else changed).encode()
    with zipfile.ZipFile(kept, "w") as file:
        file.writestr("scores.npz", scores)
        file.writestr("state.json", content)
        file.writestr("checksum.txt", hashlib.sha256(content).hexdigest())


STATES: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "list": (lambda state: [state], "state.json holds list"),
    "version": (lambda state: state.update(version="2"), "version is '2'"),
    "options": (lambda state: state.update(options=None), "options are None"),
    "classes": (lambda state: state["options"].update(num_classes=10**6), "num_classes=1000000"),
    "flag": (lambda state: state["options"].update(per_image=1), "per_image=1"),
    "limit": (lambda state: state["options"].update(max_pixels=5), "max_pixels=5"),
    "seen": (lambda state: state.update(seen=10**30), "seen is 1000000"),
    "seen-negative": (lambda state: state.update(seen=-1), "seen is -1"),
    "seen-text": (lambda state: state.update(seen="4"), "seen is '4'"),
    "seen-fewer": (lambda state: state.update(seen=2, problems=[]), "scores are of 3 images; expected 2"),
    "problems": (lambda state: state.update(problems={"name": "3"}), "problems[0]"),
    "problems-none": (lambda state: state.update(problems=[]), "scores are of 3 images; expected 4"),
    "problems-kind": (lambda state: state["problems"][0].update(kind=5), "problems[0]"),
    "problems-name": (lambda state: state["problems"][0].update(name=["3"]), "problems[0]"),
    "problems-twice": (lambda state: state["problems"].append(state["problems"][0]), "problems[1]"),
    "worst-number": (lambda state: state["worst"][0].__setitem__(1, 9), "worst[0]"),
    "worst-name": (lambda state: state["worst"][0].__setitem__(2, "1"), "worst[0]"),
    "worst-mean": (lambda state: state["worst"][0].__setitem__(0, float("nan")), "worst[0]"),
    "worst-huge": (lambda state: state["worst"][0].__setitem__(0, 10**400), "worst[0]"),
    "worst-order": (lambda state: state["worst"].reverse(), "the lowest first"),
    "files": (lambda state: state.update(files=3), "files have changed"),
    "scores": (lambda state: state.update(scores=None), "scores.npz was changed"),
    "empty": (lambda state: state.clear(), "scores.npz was changed"),
}  # fmt: skip


@pytest.mark.parametrize("name", STATES)
def test_a_tampered_state_is_refused_by_its_field(name: str, checkpointed: tuple[Callable[[], Any], Path]) -> None:
    go_on, kept = checkpointed
    rewritten(kept, STATES[name][0])
    with pytest.raises(ValueError) as caught:
        go_on()
    assert str(kept) in str(caught.value) and STATES[name][1] in str(caught.value), caught.value


def test_a_checkpoint_is_not_unpacked(checkpointed: tuple[Callable[[], Any], Path]) -> None:
    go_on, kept = checkpointed
    with zipfile.ZipFile(kept, "w", zipfile.ZIP_DEFLATED) as file:
        for name in ("checksum.txt", "state.json", "scores.npz"):
            file.writestr(name, bytes(2**24))
    with pytest.raises(ValueError, match=r"checksum.txt is compressed"):
        go_on()
    with zipfile.ZipFile(kept, "w") as file:
        content = b"[" * 10**6
        file.writestr("scores.npz", b"")
        file.writestr("state.json", content)
        file.writestr("checksum.txt", hashlib.sha256(content).hexdigest())
    with pytest.raises(ValueError, match="RecursionError"):
        go_on()


def test_the_command_says_what_memory_cannot_hold(tmp_path: Path) -> None:
    pytest.importorskip("typer", reason="the extra cli is not installed")
    np.save(tmp_path / "labels.npy", LABELS)
    code = "from portable_ops.cli import main; main()"
    asked = ["evaluate", str(tmp_path / "labels.npy"), str(tmp_path / "labels.npy"), "--num-classes", "100000000"]
    done = subprocess.run([sys.executable, "-c", code, *asked], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert done.stderr.count("\n") == 1 and "100000000 classes" in done.stderr


@pytest.mark.parametrize("content", [b"\xff\xfe", b"{", b"[" * 10**5, b'{"a": 1}', b'["a", 1]'])
def test_names_of_classes_that_are_none(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "names.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"class_names: got names\.json"):
        read_class_names(path)


def test_codecs_are_found_wherever_metadata_names_them() -> None:
    inner = {"name": "sharding_indexed", "configuration": {"codecs": [{"name": "numcodecs.pickle"}]}}
    for metadata in (SECOND | {"filters": [PICKLE]}, SECOND | {"compressor": PICKLE}, THIRD, {"codecs": (inner,)}):
        assert any(name.endswith("pickle") for name in _codecs(metadata))
    assert not any(name.endswith("pickle") for name in _codecs(SECOND | {"compressor": {"id": "zlib"}}))
