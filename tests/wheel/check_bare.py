"""Check an installed wheel with the hard dependencies alone: every operation on NumPy, and what the command says."""

import subprocess
import sys
from importlib import metadata
from pathlib import Path

import numpy as np

import portable_ops as po

HEAVY = {"torch", "cupy", "jax", "dask", "numba", "pytest", "rich", "typer", "scipy"}

rng = np.random.default_rng(0)
logits = rng.normal(size=(2, 3, 8, 8)).astype(np.float32)
labels = rng.integers(0, 3, (2, 8, 8), dtype=np.uint8)
tokens = rng.normal(size=(2, 4, 16, 8)).astype(np.float32)
scores = po.softmax(logits, axis=1)
layer = po.MultiHeadAttention(8, 2).init(0)

results = {
    "softmax": scores,
    "log_softmax": po.log_softmax(logits, axis=1),
    "logsumexp": po.logsumexp(logits, axis=1),
    "sigmoid": po.sigmoid(logits),
    "log_sigmoid": po.log_sigmoid(logits),
    "cross_entropy": po.cross_entropy(logits, labels),
    "binary_cross_entropy": po.binary_cross_entropy(logits, np.round(scores)),
    "dice_coefficient": po.dice_coefficient(scores, np.round(scores)),
    "dice_loss": po.dice_loss(logits, labels, activation="softmax"),
    "jaccard_loss": po.jaccard_loss(logits, labels, activation="softmax"),
    "tversky_loss": po.tversky_loss(logits, labels, activation="softmax"),
    "focal_loss": po.focal_loss(logits, labels),
    "confusion_matrix": po.confusion_matrix(labels, labels, 3),
    "intersection_and_union": po.intersection_and_union(labels, labels, 3).union,
    "class_iou": po.class_iou(labels, labels, 3),
    "mean_iou": po.mean_iou(labels, labels, 3),
    "scaled_dot_product_attention": po.scaled_dot_product_attention(tokens, tokens, tokens),
    "MultiHeadAttention": layer(tokens, tokens, tokens),
}
# Large enough for the Numba kernels, which are not there: bincount serves.
many = rng.integers(0, 19, (1024, 1024), dtype=np.uint8)
results["mean_iou, large"] = po.mean_iou(many, many, 19)

for name, result in results.items():
    if not np.all(np.isfinite(result)):
        sys.exit(f"{name}: not finite")
    print(f"{name}: {np.shape(result)}")

loaded = HEAVY & set(sys.modules)
if loaded:
    sys.exit(f"loaded without need: {sorted(loaded)}")
installed = HEAVY & {dist.metadata["Name"].lower() for dist in metadata.distributions()}
if installed:
    sys.exit(f"not a bare environment: {sorted(installed)}")

command = Path(sys.executable).parent / "portable-ops"
said = subprocess.run([str(command)], capture_output=True, text=True, check=False)
if said.returncode != 2 or "portable-ops[cli]" not in said.stderr + said.stdout or "Traceback" in said.stderr:
    sys.exit(f"portable-ops: exit code {said.returncode}, said {said.stdout!r} {said.stderr!r}")
print(f"portable-ops: {(said.stderr + said.stdout).strip()}")
