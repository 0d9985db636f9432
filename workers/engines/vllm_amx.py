"""Ask the kernel for the AMX tiles in the process that computes.

Linux gives a process the tile registers only when it asks (`arch_prctl(ARCH_REQ_XCOMP_PERM)`), and forgets it at
exec. On a CPU that has them vLLM's attention (seen with 0.32.0) uses them without asking: unless a large
matrix product made oneDNN ask before, as a long first prompt does, the first job dies of SIGILL and takes the
engine's process with it.
"""

from __future__ import annotations

import torch

ALLOWED: bool = torch.cpu._init_amx()  # false where there is no AMX, or no right to it: then it is not used


class AmxAllowed:
    """vLLM imports its `worker_extension_cls` in every worker process, before the model: that is all it is for."""
