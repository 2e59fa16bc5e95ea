"""Evaluating files: what is read, what is bad, and that the scores are those of the labels."""

from __future__ import annotations

import json
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import portable_ops as po
from portable_ops.evaluation import BadFilesError, Evaluation, evaluate_files
from portable_ops.evaluation import sources as sources_module
from portable_ops.evaluation.pairing import find_pairs
from portable_ops.evaluation.problems import BadFileError
from portable_ops.evaluation.reading import read_labels

Image = pytest.importorskip("PIL.Image", reason="the extra files is not installed")
tifffile = pytest.importorskip("tifffile", reason="the extra files is not installed")
zarr = pytest.importorskip("zarr", reason="the extra files is not installed")

K = 5
RNG = np.random.default_rng(0)
Host = np.ndarray[Any, Any]


def drawn(images: int = 7, shape: tuple[int, ...] = (20, 30)) -> tuple[Host, Host]:
    target = RNG.integers(0, K, (images, *shape), dtype=np.uint8)
    pred = np.where(RNG.random(target.shape) < 0.7, target, RNG.integers(0, K, target.shape, dtype=np.uint8))
    target[:, :2] = 255
    return pred, target


def expected(pred: Host, target: Host) -> dict[str, Any]:
    scores = po.SegmentationScores(K, ignore_index=255, per_image=True)
    scores.update(pred, target)
    return scores.compute().to_dict()


def write_png(path: Path, labels: Host) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(labels)
    image.putpalette([255 - value // 3 for value in range(768)])
    image.save(path)


def folders(root: Path, pred: Host, target: Host) -> tuple[Path, Path]:
    for kind, stack in (("pred", pred), ("target", target)):
        for number, labels in enumerate(stack):
            write_png(root / kind / "town" / f"{number:03}.png", labels)
    return root / "pred", root / "target"


def evaluate(pred: Path, target: Path, **options: Any) -> Evaluation:
    return evaluate_files(pred, target, num_classes=K, ignore_index=255, **options)


LABELS = RNG.integers(0, 4, (9, 12), dtype=np.uint8)


def _saved(save: Callable[[Path], object], ending: str) -> Any:
    return pytest.param(save, ending, id=f"{ending} {save.__name__}")


def palette(path: Path) -> None:
    write_png(path, LABELS)


def grey(path: Path) -> None:
    Image.fromarray(LABELS).save(path)


def grey_of_16_bits(path: Path) -> None:
    Image.fromarray(LABELS.astype(np.uint16)).save(path)


def palette_of_2_bits(path: Path) -> None:
    image = Image.fromarray(LABELS)
    image.putpalette(list(range(12)))
    image.save(path, bits=2)


def grey_of_4_bits(path: Path) -> None:
    # Pillow writes none. Two pixels in a byte, each row after a byte of its filter, which is none.
    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4) + kind + data + zlib.crc32(kind + data).to_bytes(4)

    header = LABELS.shape[1].to_bytes(4) + LABELS.shape[0].to_bytes(4) + bytes((4, 0, 0, 0, 0))
    rows = b"".join(b"\0" + (row[::2] << 4 | row[1::2]).tobytes() for row in LABELS)
    parts = [chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))


def plain(path: Path) -> None:
    tifffile.imwrite(path, LABELS)


def wide(path: Path) -> None:
    tifffile.imwrite(path, LABELS.astype(np.uint32), byteorder=">")


def signed(path: Path) -> None:
    tifffile.imwrite(path, LABELS.astype(np.int16), tile=(16, 16))


def deflated(path: Path) -> None:
    Image.fromarray(LABELS.astype(np.uint16)).save(path, compression="tiff_adobe_deflate")


def lzw_with_palette(path: Path) -> None:
    image = Image.fromarray(LABELS)
    image.putpalette([255 - value // 3 for value in range(768)])
    image.save(path, compression="tiff_lzw")


def array(path: Path) -> None:
    np.save(path, LABELS.astype(">i4"))


def only_array(path: Path) -> None:
    np.savez_compressed(path, LABELS)


@pytest.mark.parametrize(
    ("save", "ending"),
    [
        *(_saved(save, ".png") for save in (palette, grey, grey_of_16_bits, palette_of_2_bits, grey_of_4_bits)),
        _saved(palette, ".bmp"),
        *(_saved(save, ".tif") for save in (plain, wide, signed, deflated, lzw_with_palette)),
        _saved(plain, ".TIFF"),
        _saved(array, ".npy"),
        _saved(only_array, ".npz"),
    ],
)
def test_labels_are_read_as_they_are_stored(save: Callable[[Path], object], ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"x{ending}"
    save(path)
    read = read_labels(str(path))
    np.testing.assert_array_equal(read, LABELS)
    assert read.dtype.kind in "iu" and read.dtype.isnative


def test_one_bit_is_two_classes(tmp_path: Path) -> None:
    mask = LABELS > 1
    Image.fromarray(mask).save(tmp_path / "x.png")
    np.save(tmp_path / "x.npy", mask)
    for name in ("x.png", "x.npy"):
        np.testing.assert_array_equal(read_labels(str(tmp_path / name)), mask)


def cut(path: Path, save: Callable[[Path], object], share: float = 0.6) -> None:
    save(path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])


BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "rgb.png": (lambda path: Image.new("RGB", (12, 9)).save(path), "RGB of 3 channels"),
    "alpha.png": (lambda path: Image.new("LA", (12, 9)).save(path), "LA of 2 channels"),
    "rgb.tif": (lambda path: tifffile.imwrite(path, np.zeros((9, 12, 3), np.uint8), photometric="rgb"), "3 channels"),
    "pages.tif": (
        lambda path: tifffile.imwrite(path, np.zeros((2, 9, 12), np.uint8), photometric="minisblack"),
        "2 pages",
    ),
    "rgb.npy": (lambda path: np.save(path, np.zeros((9, 12, 3), np.uint8)), "that of RGB"),
    "scores.npy": (lambda path: np.save(path, np.zeros((4, 9, 12), np.float32)), "argmax"),
    "scores.tif": (lambda path: tifffile.imwrite(path, np.zeros((9, 12), np.float32)), "argmax"),
    "pickle.npy": (lambda path: np.save(path, np.asarray([{}]), allow_pickle=True), "allow_pickle"),
    "several.npz": (lambda path: np.savez(path, a=LABELS, b=LABELS), "arrays a, b; expected one array, or a key"),
    "cut.png": (lambda path: cut(path, palette), ""),
    "cut.tif": (lambda path: cut(path, plain), "truncated"),
    "cut.lzw.tif": (lambda path: cut(path, lzw_with_palette, 0.1), ""),
    "cut.npy": (lambda path: cut(path, array, 0.8), ""),
    "cut.npz": (lambda path: cut(path, only_array), ""),
    "empty.png": (lambda path: path.write_bytes(b""), ""),
    "jpeg.png": (lambda path: Image.new("L", (12, 9)).save(path, format="JPEG"), "PNG"),
    "text.tif": (lambda path: path.write_text("labels"), "TIFF"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files_say_what_they_are(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    BAD[name][0](path)
    with pytest.raises(BadFileError) as caught:
        read_labels(str(path))
    assert name in str(caught.value)
    assert BAD[name][1] in str(caught.value)


def test_folders_give_the_scores_of_their_labels(tmp_path: Path) -> None:
    pred, target = drawn()
    done = evaluate(*folders(tmp_path, pred, target))
    assert done.is_good and done.images == 7
    assert done.result.to_dict() == expected(pred, target)
    assert done.image_names == tuple(f"town/{number:03}" for number in range(7))
    means = {one["name"]: one["mean_iou"] for one in done.per_image()}
    assert [one.name for one in done.worst] == sorted(means, key=means.__getitem__)
    for number in range(7):
        alone = po.mean_iou(pred[number], target[number], K, ignore_index=255)
        assert means[f"town/{number:03}"] == pytest.approx(float(alone), abs=1e-12)
    content = json.loads(json.dumps(done.to_dict(), allow_nan=False))
    assert content["scores"]["mean_iou"] == done.result.mean_iou()
    assert content["conventions"]["iou"]["monai"] == done.result.mean_iou(convention="monai")


def test_names_match_below_folders_and_by_suffixes(tmp_path: Path) -> None:
    pred, target = drawn(1)
    for name in ("a/1_leftImg8bit.png", "b/1_leftImg8bit.png", "b/notes.png"):
        write_png(tmp_path / "pred" / name, pred[0])
    for name in ("a/1_gtFine_labelIds.png", "b/1_gtFine_labelIds.png", "b/1_gtFine_color.png", ".hidden.png"):
        write_png(tmp_path / "target" / name, target[0])
    (tmp_path / "target" / "a" / "1_gtFine_polygons.json").write_text("{}")
    for suffixes in (("_leftImg8bit", "_gtFine_labelIds"), ("_leftImg8bit.png", "_gtFine_labelIds.png")):
        found = find_pairs(str(tmp_path / "pred"), str(tmp_path / "target"), *suffixes)
        assert [pair.name for pair in found.pairs] == ["a/1", "b/1"]
        assert not found.problems
        assert found.left_alone == {".png": 2, ".json": 1}


def spoilt(root: Path) -> tuple[Path, Path, set[str], Host, Host]:
    """Folders with one file of each kind of problem, the names of these, and the labels of the others."""
    pred, target = drawn(12)
    ours, theirs = (folder / "town" for folder in folders(root, pred, target))
    (ours / "001.png").unlink()
    (theirs / "002.png").unlink()
    shutil.copy(ours / "003.png", ours / "003.bmp")
    cut(ours / "004.png", lambda path: None)
    write_png(theirs / "005.png", target[5][:, :-1])
    write_png(ours / "006.png", np.full_like(pred[6], K))
    Image.new("RGB", (30, 20)).save(theirs / "007.png")
    good = [0, 8, 9, 10, 11]
    return root / "pred", root / "target", {f"town/{n:03}" for n in range(1, 8)}, pred[good], target[good]


@pytest.mark.parametrize("workers", [1, 2])
def test_all_that_is_wrong_is_listed_and_the_rest_counted(workers: int, tmp_path: Path) -> None:
    ours, theirs, bad, pred, target = spoilt(tmp_path)
    with pytest.raises(BadFilesError) as caught:
        evaluate(ours, theirs, workers=workers)
    assert {problem.name for problem in caught.value.problems} == bad
    assert all(name in str(caught.value) for name in bad)
    told: list[Any] = []
    done = evaluate(ours, theirs, keep_going=True, on_problems=told.extend)
    assert not done.is_good
    assert done.images == 5
    assert done.result.to_dict() == expected(pred, target)
    assert tuple(told) == done.problems == caught.value.problems
    assert [problem.kind for problem in sorted(done.problems, key=lambda one: one.name)] == [
        "no partner", "no partner", "several files of one name", "unreadable", "different sizes", "labels out of range",
        "unreadable",
    ]  # fmt: skip
    assert len(done.image_names) == 5


def test_labels_that_name_no_class_can_be_left_out(tmp_path: Path) -> None:
    pred, target = drawn(2)
    pred[1, 5:8] = K
    ours, theirs = folders(tmp_path, pred, target)
    done = evaluate(ours, theirs, validate=False)
    assert done.is_good
    assert done.result.out_of_range == 3 * 30


STACKS: dict[str, Callable[[Path, Host], Path]] = {}


def stack(function: Callable[[Path, Host], Path]) -> Callable[[Path, Host], Path]:
    STACKS[function.__name__] = function
    return function


@stack
def npy(path: Path, labels: Host) -> Path:
    np.save(path.with_suffix(".npy"), labels)
    return path.with_suffix(".npy")


@stack
def fortran(path: Path, labels: Host) -> Path:
    np.save(path.with_suffix(".npy"), np.asfortranarray(labels))
    return path.with_suffix(".npy")


@stack
def npz(path: Path, labels: Host) -> Path:
    np.savez(path.with_suffix(".npz"), labels)
    return path.with_suffix(".npz")


@stack
def zarr_array(path: Path, labels: Host) -> Path:
    made = zarr.create_array(path.with_suffix(".zarr"), shape=labels.shape, chunks=(3, 16, 16), dtype=labels.dtype)
    made[:] = labels
    return path.with_suffix(".zarr")


@stack
def zarr_in_a_zip_file(path: Path, labels: Host) -> Path:
    path = path.with_suffix(".zarr.zip")
    with zarr.storage.ZipStore(path, mode="w") as store:
        zarr.create_array(store, shape=labels.shape, chunks=(4, 20, 30), dtype=labels.dtype)[:] = labels
    return path


@pytest.mark.parametrize("block", [100, 2000, 2**24], ids=lambda size: f"blocks of {size} bytes")
@pytest.mark.parametrize("kind", STACKS)
def test_stacks_are_read_in_blocks(kind: str, block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources_module, "BLOCK_BYTES", block)
    pred, target = drawn(11)
    write = STACKS[kind]
    paths = write(tmp_path / "pred", pred.astype(np.int16)), write(tmp_path / "target", target)
    done = evaluate(*paths)
    assert done.is_good and done.images == 11
    assert done.result.to_dict() == expected(pred, target)
    plain = evaluate(*paths, per_image=False)
    assert plain.result.mean_iou() == done.result.mean_iou() and plain.result.rows is None


def zarr_array_of_one(path: Path, labels: Host) -> Path:
    zarr.create_array(path.with_suffix(".zarr"), shape=labels.shape, chunks=(16, 16), dtype=labels.dtype)[:] = labels
    return path.with_suffix(".zarr")


def test_an_array_of_one_map_is_one_image(tmp_path: Path) -> None:
    pred, target = drawn(1)
    for write in (npy, zarr_array_of_one):
        done = evaluate(write(tmp_path / "pred", pred[0]), write(tmp_path / "target", target[0]))
        assert done.images == 1 and done.result.to_dict() == expected(pred, target)
    write_png(tmp_path / "p.png", pred[0])
    write_png(tmp_path / "t.png", target[0])
    assert evaluate(tmp_path / "p.png", tmp_path / "t.png").result.to_dict() == expected(pred, target)


def test_bad_images_of_a_stack_are_named(tmp_path: Path) -> None:
    pred, target = drawn(11)
    pred[4, 7, 7] = K
    done = evaluate(npy(tmp_path / "pred", pred), npy(tmp_path / "target", target), keep_going=True)
    assert [(problem.name, problem.kind) for problem in done.problems] == [("4", "labels out of range")]
    rest = [number for number in range(11) if number != 4]
    assert done.result.to_dict() == expected(pred[rest], target[rest])


def test_stacks_that_do_not_fit(tmp_path: Path) -> None:
    pred, target = drawn(4)
    theirs = npy(tmp_path / "target", target)
    for name, make, said in (
        ("short", lambda path: np.save(path, pred[:3]), "3 × 20 × 30"),
        ("cut", lambda path: cut(path, lambda path: np.save(path, pred)), "cut.npy"),
        ("scores", lambda path: np.save(path, pred.astype(np.float32)), "argmax"),
    ):
        make(tmp_path / f"{name}.npy")
        with pytest.raises(BadFilesError, match=said):
            evaluate(tmp_path / f"{name}.npy", theirs)


def test_a_key_names_an_array(tmp_path: Path) -> None:
    pred, target = drawn(3)
    np.savez(tmp_path / "both.npz", pred=pred, target=target)
    group = zarr.create_group(tmp_path / "both.zarr")
    for name, labels in (("pred", pred), ("target", target)):
        group.create_array(name, shape=labels.shape, dtype=labels.dtype)[:] = labels
    for name in ("both.npz", "both.zarr"):
        path = tmp_path / name
        assert evaluate(path, path, pred_key="pred", target_key="target").result.to_dict() == expected(pred, target)
        with pytest.raises(BadFilesError, match="pred, target; expected one array, or a key"):
            evaluate(path, path)


@pytest.mark.parametrize("name", [name for name in po.list_backends() if name != "dask"])
def test_every_backend_counts_the_same(name: str, tmp_path: Path) -> None:
    pred, target = drawn(3)
    ours, theirs = (tmp_path / name for name in ("pred.npy", "target.npy"))
    np.save(ours, pred.astype(np.uint16))
    np.save(theirs, target.astype(np.uint32))
    backend = po.get_backend(name)
    with pytest.MonkeyPatch.context() as patched:
        if name == "jax":
            patched.setenv("JAX_PLATFORMS", "cpu")
        if "cpu" not in str(backend.devices()[0]).lower():
            pytest.skip(f"no CPU device of {name}")
        assert evaluate(ours, theirs, backend=name).result.to_dict() == expected(pred, target)


def test_unusable_arguments(tmp_path: Path) -> None:
    pred, target = drawn(1)
    ours, theirs = folders(tmp_path, pred, target)
    (tmp_path / "none").mkdir()
    for options, said in (
        ({"backend": "numpi"}, "numpi"),
        ({"device": "cuda:7"}, "cuda:7"),
        ({"workers": 0}, "workers"),
        ({"resume": True}, "without a checkpoint"),
        ({"workers": 2, "scheduler": "tcp://x:1"}, "beside a scheduler"),
        ({"class_names": ["a"]}, "5 different strings"),
    ):
        with pytest.raises(ValueError, match=said):
            evaluate(ours, theirs, **options)
    for paths, said in (
        ((tmp_path / "gone", theirs), "does not exist"),
        ((ours, theirs / "town" / "000.png"), "a folder and a file"),
        ((tmp_path / "none", tmp_path / "none"), "no files"),
    ):
        with pytest.raises(ValueError, match=said):
            evaluate(*paths)
    if "dask" in po.list_backends():
        with pytest.raises(ValueError, match="Dask cluster"):
            evaluate(ours, theirs, backend="dask")
