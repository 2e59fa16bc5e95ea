"""Evaluating label maps in files: folders of images, or stacks larger than memory. The command is ``portable-ops evaluate``."""

from portable_ops.evaluation.evaluating import evaluate_files
from portable_ops.evaluation.evaluation import Evaluation
from portable_ops.evaluation.problems import BadFilesError, Problem

__all__ = ["BadFilesError", "Evaluation", "Problem", "evaluate_files"]
