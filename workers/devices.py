"""The GPUs of this node, asked of `nvidia-smi`: no CUDA context is made, and nothing is imported that could make one.

`JARVIS_DEVICES` puts simulated ones in their place, for tests and for trying a formation on a laptop: the locks,
the waiting and the memory check are then real, the cards are not, and every worker says so.
"""

from __future__ import annotations

import logging
import re
import subprocess
from dataclasses import dataclass

from common.errors import SettingsInvalid, shown
from common.settings import Settings

log = logging.getLogger("jarvis.devices")

QUERY = ("nvidia-smi", "--query-gpu=index,name,memory.total,memory.free", "--format=csv,noheader,nounits")
QUERY_TIMEOUT_S = 30.0  # without the persistence daemon the driver wakes every card first
MIB = 1024**2
GIB = 1024**3
SIMULATED = re.compile(r"^(\d+):(\d+(?:\.\d+)?)GiB$")


@dataclass(frozen=True, slots=True)
class Device:
    """One GPU, by the index that `nvidia-smi` gives it; sizes in bytes, None where the driver does not say."""

    index: int
    name: str
    total_bytes: int | None
    free_bytes: int | None
    simulated: bool = False

    def __str__(self) -> str:
        return f"GPU {self.index} ({'simulated' if self.simulated else self.name})"


def list_devices(settings: Settings) -> list[Device]:
    """The node's GPUs; none on a node without an NVIDIA driver. Raises SettingsInvalid for wrong simulated ones."""
    if settings.devices:
        return simulated(settings.devices)
    try:
        done = subprocess.run(QUERY, capture_output=True, text=True, timeout=QUERY_TIMEOUT_S, check=False)
    except FileNotFoundError:
        return []
    except subprocess.TimeoutExpired:
        raise SettingsInvalid(f"nvidia-smi did not answer in {QUERY_TIMEOUT_S:g} s; name a device to go on") from None
    if done.returncode != 0:
        reason = (done.stdout + done.stderr).strip()
        log.warning("nvidia-smi is here but fails, so this node counts as one without GPUs: %s", reason)
        return []
    return [_device(line) for line in done.stdout.splitlines() if line.strip()]


def simulated(text: str) -> list[Device]:
    """The devices that `JARVIS_DEVICES` describes, e.g. `0:24GiB,1:24GiB`."""
    devices = []
    for part in text.split(","):
        match = SIMULATED.match(part.strip())
        if match is None:
            raise SettingsInvalid(f"JARVIS_DEVICES has {shown(part)}; allowed: index:size, e.g. 0:24GiB,1:24GiB")
        size = int(float(match[2]) * GIB)
        devices.append(Device(int(match[1]), "simulated", size, size, simulated=True))
    if len({device.index for device in devices}) < len(devices):
        raise SettingsInvalid(f"JARVIS_DEVICES is {shown(text)}; every index may stand in it once")
    return devices


def _device(line: str) -> Device:
    index, name, total, free = (part.strip() for part in line.split(", "))
    return Device(int(index), name, _bytes(total), _bytes(free))


def _bytes(mebibytes: str) -> int | None:
    # Cards that share the memory of their host answer "[N/A]".
    return int(mebibytes) * MIB if mebibytes.isdigit() else None
