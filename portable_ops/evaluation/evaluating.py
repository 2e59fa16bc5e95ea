"""Evaluating files: the scores of all images of two folders or two stacks, with what was wrong with any of them."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from functools import partial
from os import PathLike, fspath
from pathlib import Path

from portable_ops.backend import get_backend
from portable_ops.checks import complaint, require_choice, require_integer
from portable_ops.evaluation.checkpoint import Checkpoint, Keeper
from portable_ops.evaluation.evaluation import Evaluation
from portable_ops.evaluation.opening import MAX_PIXELS
from portable_ops.evaluation.pairing import Found, Pair, find_pairs
from portable_ops.evaluation.problems import BadFileError, BadFilesError, Problem
from portable_ops.evaluation.reading import ENDINGS, is_zarr, require_packages, suffix_of
from portable_ops.evaluation.running import in_processes, in_turn, on_cluster
from portable_ops.evaluation.sources import FileSource, Reading, Source, StackSource
from portable_ops.evaluation.tasks import Counted, Options, merged

Progress = Callable[[int, int], None]
STACKS = (".npy", ".npz")


def evaluate_files(
    pred: str | PathLike[str],
    target: str | PathLike[str],
    *,
    num_classes: int,
    ignore_index: int | None = None,
    class_names: Sequence[str] | None = None,
    pred_suffix: str = "",
    target_suffix: str = "",
    pred_key: str | None = None,
    target_key: str | None = None,
    per_image: bool = True,
    validate: bool = True,
    worst: int = 12,
    keep_going: bool = False,
    workers: int = 1,
    scheduler: str | None = None,
    backend: str = "numpy",
    device: str | None = None,
    checkpoint: str | PathLike[str] | None = None,
    resume: bool = False,
    max_pixels: int = MAX_PIXELS,
    progress: Progress | None = None,
    on_problems: Callable[[tuple[Problem, ...]], None] | None = None,
    on_unsaved: Callable[[str], None] | None = None,
) -> Evaluation:
    """Scores of the label maps in two folders, two files, or two stacks that may be larger than memory.

    Parameters
    ----------
    pred, target : path
        Two folders, whose files are matched by their paths below them, without endings: PNG, BMP, TIFF, NPY, NPZ. Or
        two stacks of images along the first axis, NPY, NPZ or Zarr. Or two files of one image each.
    num_classes : int
        How many classes there are, background included.
    ignore_index : int, optional
        Elements whose target is this do not count anywhere.
    class_names : sequence of str, optional
        A name for each class.
    pred_suffix, target_suffix : str
        What file names have before their ending beside the common name, such as ``"_gtFine_labelIds"``. Other files of
        that folder are left alone.
    pred_key, target_key : str, optional
        The name of the array in NPZ files and Zarr groups.
    per_image : bool
        Whether to keep the counts of each image, 24 bytes for each class. Scores that are averaged over images, and the
        list of the worst, need them.
    validate : bool
        Whether an image is bad if labels in it name no class and are not ignored; otherwise these elements are left out.
    worst : int
        How many of the worst images to remember.
    keep_going : bool
        Whether bad or missing files leave a result, of the others.
    workers : int
        How many processes count. They import the script that asks for several, which needs to be guarded by
        ``if __name__ == "__main__":``.
    scheduler : str, optional
        The address of a Dask scheduler, whose workers then count; they must see the files under the same paths.
    backend, device : str
        What counts: a backend's name, and one of its devices.
    checkpoint : path, optional
        A file that says where the run stands, replaced every few seconds and when the run ends or is stopped.
    resume : bool
        Whether to go on from the checkpoint. It must be one of the same files and options; where there is none yet, the
        run starts with the first image.
    max_pixels : int
        The most that is decoded at once: of an image, of an NPZ file, or of a chunk of Zarr. What holds more, or says that
        it does, is a bad file and is not decoded.
    progress : callable, optional
        Called with how many images have been looked at, and how many there are.
    on_problems : callable, optional
        Called with problems as they are found.
    on_unsaved : callable, optional
        Called with why the checkpoint could not be written, each time; a RuntimeWarning says so where it is not given. The
        run goes on: no count depends on the checkpoint.

    Returns
    -------
    Evaluation
        Its result does not depend on workers, scheduler, backend, or on stops in between.

    Raises
    ------
    BadFilesError
        Files are bad or missing and `keep_going` is False. All images were read nevertheless: it lists all problems.
    WorkerDiedError
        A process that counts dies over some images again and again.
    ValueError, TypeError, OSError, ImportError
        An option is not one of those described, does not fit the checkpoint, or needs what is not installed.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> import numpy as np
    >>> from portable_ops.evaluation import evaluate_files
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for kind, labels in (("pred", [[0, 1], [1, 1]]), ("target", [[0, 1], [0, 255]])):
    ...         (Path(folder) / kind).mkdir()
    ...         np.save(Path(folder) / kind / "first.npy", np.asarray(labels, np.uint8))
    ...     done = evaluate_files(f"{folder}/pred", f"{folder}/target", num_classes=2, ignore_index=255)
    >>> done.images, done.result.mean_iou()
    (1, 0.5)
    """
    started = time.monotonic()
    worst = require_integer("worst", worst, minimum=0)
    options = Options(
        num_classes=num_classes,
        ignore_index=ignore_index,
        per_image=per_image,
        validate=validate,
        worst=worst if per_image else 0,
        backend=backend,
        device=device,
        max_pixels=require_integer("max_pixels", max_pixels, minimum=1),
    )
    scores = options.scores()  # refuses what is unusable before a file is read
    named = scores.__class__(num_classes, class_names=class_names).class_names
    _require_backend(backend, device)
    workers = require_integer("workers", workers, minimum=1)
    if scheduler is not None and workers > 1:
        raise ValueError(complaint("workers", f"{workers} beside a scheduler", "one or the other"))
    if resume and checkpoint is None:
        raise ValueError(complaint("resume", "True without a checkpoint", "a checkpoint to go on from"))
    tell = on_problems or (lambda problems: None)
    pred, target = fspath(pred), fspath(target)
    source, found = _source(pred, target, pred_suffix, target_suffix, Reading(pred_key, target_key, options.max_pixels))
    tell(found.problems)
    kept = None if checkpoint is None else Checkpoint(Path(checkpoint), options, source)
    state = Counted(scores)
    if kept is not None and kept.path.exists():
        if not resume:
            got = f"{kept.path}, which exists"
            raise ValueError(
                complaint("checkpoint", got, "resume=True to go on from it, or a file that does not exist")
            )
        state = kept.load()
        tell(state.problems)
    elif kept is not None:
        kept.save(state)  # now, as a folder that cannot be written to should not be found out at the end
    keeper = None if kept is None else Keeper(kept, on_unsaved or _warn)
    state = _counted(source, options, state, workers, scheduler, keeper, progress or (lambda done, total: None), tell)
    problems = (*found.problems, *state.problems)
    if problems and not keep_going:
        raise BadFilesError(problems)
    state.scores.class_names = named
    return Evaluation(
        pred=pred,
        target=target,
        options=options,
        result=state.scores.compute(),
        source=source,
        images=state.seen - len(state.problems),
        problems=problems,
        left_alone=found.left_alone,
        worst=state.worst,
        seconds=time.monotonic() - started,
        unsaved="" if keeper is None else keeper.unsaved,
    )


def _warn(reason: str) -> None:
    warnings.warn(reason, RuntimeWarning, stacklevel=4)


def _counted(
    source: Source,
    options: Options,
    state: Counted,
    workers: int,
    scheduler: str | None,
    keeper: Keeper | None,
    progress: Progress,
    tell: Callable[[tuple[Problem, ...]], None],
) -> Counted:
    progress(state.seen, len(source))
    parts = closing(_parts(source, options, state.seen, workers, scheduler))
    try:
        with parts as found:
            for part in found:
                # One assignment: wherever a signal stops this, the state is that before a part, or that after it.
                state = merged(state, part, options.worst)
                progress(state.seen, len(source))
                tell(part.problems)
                if keeper is not None:
                    keeper.save_now_and_then(state)
    finally:
        if keeper is not None:
            keeper.save(state)
    return state


def _parts(
    source: Source, options: Options, start: int, workers: int, scheduler: str | None
) -> Generator[Counted, None, None]:
    if start < len(source):
        if scheduler is not None:
            yield from on_cluster(partial(source.tasks, start), options, scheduler)
        elif workers > 1:
            yield from in_processes(source.tasks(start, workers), options, workers)
        else:
            yield from in_turn(source.tasks(start, workers), options)


def _source(pred: str, target: str, pred_suffix: str, target_suffix: str, how: Reading) -> tuple[Source, Found]:
    """The images, and what is wrong with the names of files."""
    paths = {"pred": Path(pred), "target": Path(target)}
    for name, path in paths.items():
        if not path.exists():
            raise ValueError(complaint(name, f"{path}, which does not exist", "a folder or a file of label maps"))
    stacks = [is_zarr(str(path)) or (suffix_of(str(path)) in STACKS and not path.is_dir()) for path in paths.values()]
    # Absolute, as workers elsewhere have another working directory.
    ours, theirs = (str(path.absolute()) for path in paths.values())
    if all(stacks):
        require_packages([".zarr" for root in (ours, theirs) if is_zarr(root)])
        return _stacks(ours, theirs, how)
    folders = [path.is_dir() for path in paths.values()]
    if any(stacks) or folders[0] != folders[1]:
        kinds = [
            "stack" if stack else "folder" if folder else "file" for stack, folder in zip(stacks, folders, strict=True)
        ]
        raise ValueError(complaint("pred and target", f"a {kinds[0]} and a {kinds[1]}", "two of one kind"))
    if folders[0]:
        found = find_pairs(ours, theirs, pred_suffix, target_suffix)
    else:
        found = _single(paths["pred"], paths["target"])
        ours, theirs = (str(Path(path).parent) for path in (ours, theirs))
    if not found.pairs and not found.problems:
        got = f"{found.left_alone or 'no files'} in {pred} and {target}"
        raise ValueError(
            complaint("pred and target", got, f"label maps in files with the endings {', '.join(ENDINGS)}")
        )
    require_packages(sorted({suffix_of(path) for pair in found.pairs for path in pair[1:]}))
    return FileSource(ours, theirs, found.pairs, how), found


def _stacks(pred: str, target: str, how: Reading) -> tuple[Source, Found]:
    try:
        return StackSource.of(pred, target, how), Found((), (), {})
    except BadFileError as bad:
        return FileSource(pred, target, (), how), Found((), (Problem(Path(target).stem, bad.kind, str(bad)),), {})


def _single(pred: Path, target: Path) -> Found:
    for name, path in (("pred", pred), ("target", target)):
        if path.suffix.lower() not in ENDINGS:
            raise ValueError(complaint(name, path.name, f"a file with one of the endings {', '.join(ENDINGS)}"))
    return Found((Pair(target.stem, pred.name, target.name),), (), {})


def _require_backend(name: str, device: str | None) -> None:
    backend = get_backend(name)
    if backend.lazy:
        raise ValueError(
            complaint("backend", repr(name), "one that counts at once; scheduler= counts on a Dask cluster")
        )
    if device is not None:
        devices = list(backend.device_names())
        # "cuda" is the current one of "cuda:0", "cuda:1", ...
        require_choice("device", device, [*devices, *dict.fromkeys(one.partition(":")[0] for one in devices)])
