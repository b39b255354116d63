"""Without a GPU, kernels run under Triton's interpreter: to be said before anything imports it."""

import os

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
