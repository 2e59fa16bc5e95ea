"""Cross-entropy of torch tensors in host memory, which the kernels read without a copy, with its gradient."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import array_api_compat.torch as xp
from portable_ops.labels import ignored_labels, require_in_range
from portable_ops.targets import class_axis_of
from portable_ops_backends.cpu.cross_entropy import BAD, WEIGHT, problem, reduced, solve
from portable_ops_backends.cpu.cross_entropy_gradient import gradient
from portable_ops_backends.cpu.torch_arrays import as_array, as_tensor
