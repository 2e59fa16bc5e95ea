"""The command ``portable-ops evaluate``: exit statuses, what it prints and writes, and its page in a real browser."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browsing import opened

from portable_ops.evaluation import evaluate_files

typer = pytest.importorskip("typer", reason="the extra cli is not installed")
Image = pytest.importorskip("PIL.Image", reason="the extra files is not installed")
pytest.importorskip("tifffile", reason="the extra files is not installed")

from typer.testing import CliRunner

from portable_ops.evaluation.commands import evaluate as command

K = 4
NAMES = ["sky", "<b>road</b>", "a | b", "never"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fourteen pairs of pictures; those with high numbers are the worst."""
    root = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for kind in ("pred", "target"):
        (root / kind / "town").mkdir(parents=True)
    for number in range(14):
        target = np.kron(rng.integers(0, 3, (6, 8), dtype=np.uint8), np.ones((16, 16), np.uint8))
        pred = np.where(rng.random(target.shape) < number / 30, (target + 1) % 3, target).astype(np.uint8)
        target[:4] = 255
        for kind, labels in (("pred", pred), ("target", target)):
            Image.fromarray(labels).save(root / kind / "town" / f"{number:02}.png")
    (root / "names.txt").write_text("\n".join(NAMES) + "\n", encoding="utf-8")
    return root


def run(root: Path, *arguments: Any) -> tuple[int, str, str]:
    app = typer.Typer()
    app.command()(command)
    asked = [root / "pred", root / "target", "--num-classes", K, "--ignore-index", 255, *arguments]
    done = CliRunner().invoke(app, list(map(str, asked)), env={"COLUMNS": "160"})
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.stdout, done.stderr


def test_a_good_run(folders: Path, tmp_path: Path) -> None:
    written = [tmp_path / name for name in ("x.json", "x.html", "x.md")]
    options = [text for pair in zip(("--json", "--html", "--markdown"), written, strict=True) for text in pair]
    code, out, err = run(
        folders, "--class-names", folders / "names.txt", "--convention", "monai", "--convention", "kornia",
        "--compare-conventions", *options,
    )  # fmt: skip
    assert code == 0, out + err
    done = evaluate_files(folders / "pred", folders / "target", num_classes=K, ignore_index=255, class_names=NAMES)
    result = done.result
    assert (
        f"monai: mean IoU {result.mean_iou(convention='monai'):.4f}, mean Dice {result.mean_dice(convention='monai'):.4f}"
        in out
    )
    assert f"kornia: mean IoU {result.mean_iou(convention='kornia'):.4f}, no mean Dice" in out
    assert f"{result.iou()[1]:.4f}" in out
    assert out.count("torchmetrics-jaccard") == 2
    assert "14 images" in out
    found, expected = json.loads(written[0].read_text()), json.loads(json.dumps(done.to_dict()))
    for everything in (found, expected):
        del everything["seconds"]
    assert found == expected
    assert found["scores"]["classes"][3]["iou"] is None
    assert result.to_markdown() in written[2].read_text()


def test_bad_files(folders: Path, tmp_path: Path) -> None:
    for kind in ("pred", "target"):
        (tmp_path / kind).mkdir()
        for number in range(3):
            content = (folders / kind / "town" / f"0{number}.png").read_bytes()
            (tmp_path / kind / f"{number}.png").write_bytes(
                content[:200] if kind == "pred" and number == 1 else content
            )
    (tmp_path / "target" / "2.png").unlink()
    for more, shown in (((), False), (("--keep-going",), True)):
        html = tmp_path / "x.html"
        code, out, err = run(tmp_path, *more, "--html", html)
        assert code == 1
        assert "1: unreadable" in err and "2: no partner" in err
        assert ("mean" in out) == shown == html.exists()
        assert "2 bad or missing" in err
    assert "2 bad or missing, and not counted" in html.read_text()


def test_nothing_could_be_counted(tmp_path: Path) -> None:
    for kind in ("pred", "target"):
        (tmp_path / kind).mkdir()
        Image.new("RGB", (4, 4)).save(tmp_path / kind / "0.png")
    html = tmp_path / "x.html"
    code, out, _ = run(tmp_path, "--keep-going", "--html", html)
    assert code == 1
    assert "0 images" in out
    assert "1 bad or missing" in html.read_text()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--convention", "monay"), "monay"),
        (("--backend", "numpi"), "numpi"),
        (("--device", "cuda"), "cuda"),
        (("--resume",), "without a checkpoint"),
        (("--class-names", "gone.txt"), "gone.txt"),
        (("--target-suffix", "_labels"), "no target"),
        (("--workers", "0"), "--workers"),
        (("--json", "/dev/null/x"), "/dev/null"),
        (("--html", "/"), "cannot be written"),
    ],
)
def test_what_is_of_no_use(arguments: tuple[str, ...], said: str, folders: Path) -> None:
    code, out, err = run(folders, *arguments)
    assert code == (1 if said == "no target" else 2)
    assert said in out + err
    assert "Traceback" not in err


def test_a_page_without_counts_of_images(folders: Path, tmp_path: Path) -> None:
    html = tmp_path / "x.html"
    code, out, err = run(folders, "--no-per-image", "--compare-conventions", "--html", html)
    assert code == 0, err
    assert "needs per_image=True" in out
    text = html.read_text()
    assert "needs counts of images" in text and 'id="worst"' not in text
    code, out, err = run(folders, "--no-per-image", "--convention", "monai")
    assert code == 2 and "needs per_image=True" in err


def test_a_missing_reader_is_told_once(folders: Path) -> None:
    code = (
        "import importlib.util as u; find = u.find_spec\n"
        "u.find_spec = lambda name, *rest: None if name == 'PIL' else find(name, *rest)\n"
        f"import sys; sys.argv = ['portable-ops', 'evaluate', {str(folders / 'pred')!r}, {str(folders / 'target')!r}, "
        "'--num-classes', '4']\nfrom portable_ops.cli import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert '.png files need pillow; try `pip install "portable-ops[files]"`' in done.stderr


@pytest.fixture(scope="module")
def page(folders: Path) -> str:
    pytest.importorskip("altair", reason="the extra files is not installed")
    done = evaluate_files(folders / "pred", folders / "target", num_classes=K, ignore_index=255, class_names=NAMES)
    return done.to_html()


def test_page_is_one_small_file(page: str) -> None:
    assert len(page.encode()) < 2_000_000
    assert not re.search(r"""(src|href)=["']?(https?:)?//""", page)
    assert "<b>road" not in page.partition("<script>")[0] + page.partition("<noscript>")[2].partition("<script>")[0]
    assert "&lt;b&gt;road" in page
    assert page.count("data:image/png") == 36


@pytest.mark.browser
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_page_in_a_browser(page: str, tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_text(page, encoding="utf-8")
    with opened(path, color_scheme="dark", viewport={"width": 420, "height": 800}) as (shown, wrong):
        for name, least in (("classes", 3), ("confusion", 9), ("images", 3)):
            shown.wait_for_selector(f"#{name}[data-drawn=dark] svg", timeout=20_000)
            assert shown.locator(f"#{name} svg g.mark-rect path").count() >= least, name
        # Nothing is wider than the window but what scrolls on its own.
        assert shown.evaluate("document.documentElement.scrollWidth") == 420
        captions = shown.locator(".worst figcaption").all_inner_texts()
        assert len(captions) == 12
        assert captions[0].startswith("1. town/1")
        assert shown.evaluate("[...document.images].every(image => image.naturalWidth > 100)")

        # By keys alone: the theme, then the table, sorted by IoU in both directions.
        shown.locator("#theme").press("Enter")
        shown.wait_for_selector("#confusion[data-drawn=light] svg")
        assert shown.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        values = "[...document.querySelectorAll('#table tbody tr')].map(row => row.cells[1].textContent)"
        head = shown.locator("#table thead button", has_text="IoU")
        head.press("Enter")
        rising = shown.evaluate(values)
        head.press("Enter")
        falling = shown.evaluate(values)
        assert rising[:3] == sorted(rising[:3]) == falling[2::-1]
        assert rising[3] == falling[3] == "–"
        assert shown.locator("#table th[aria-sort=descending]").count() == 1
        assert not wrong
