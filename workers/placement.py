"""Gives a worker the GPUs that its model needs: chosen, locked, said, before any engine is imported.

A worker that nobody told which GPU to use takes the one of its node with the most left, and waits while none has
enough. `CUDA_VISIBLE_DEVICES` set by the user is obeyed and locks nothing; `--device` names devices and locks them.
"""

from __future__ import annotations

import asyncio
import importlib.util
import logging
import os
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from common.catalogue import Model
from common.errors import JarvisError, SettingsInvalid
from common.settings import Settings
from workers.device_locks import DeviceLocks, GateBusy, Hold, Holder, fits
from workers.devices import Device, list_devices
from workers.engines.memory import advice, not_free, too_small, utilization

log = logging.getLogger("jarvis.devices")

VISIBLE = "CUDA_VISIBLE_DEVICES"
ORDER = "CUDA_DEVICE_ORDER"
CPU_BIND = "VLLM_CPU_OMP_THREADS_BIND"  # read on CPU only
LOOK_EVERY_S = 0.25
GATE_PAUSE_S = 0.01
SAY_AGAIN_S = 60.0
#: How long a dead worker's engine may take to give its memory back.
SETTLE_S = 10.0
SETTLE_LOOK_S = 0.5


@dataclass
class Placement:
    """Where a worker's model runs; `leave` gives it back."""

    device: str = "cpu"
    share: float = 0.0
    devices: list[Device] = field(default_factory=list)
    hold: Hold | None = None
    _before: dict[str, str | None] = field(default_factory=dict)

    def show_engine(self, variables: Mapping[str, str]) -> None:
        """Set what the engine's libraries read when they are imported."""
        for name, value in variables.items():
            self._before.setdefault(name, os.environ.get(name))
            os.environ[name] = value

    def leave(self) -> None:
        """Let the devices go, and put the environment back as it was."""
        for name, value in self._before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        self._before.clear()
        if self.hold is not None:
            self.hold.release()


async def settle(ctx: dict[str, Any], model: Model, settings: Settings) -> Model:
    """Place a worker's model, note it in `ctx` for the worker's entry, and return the model as its engine needs it."""
    placement = await place(model, settings)
    if model.gpu_count > 1 and all(device.simulated for device in placement.devices):
        placement.show_engine({CPU_BIND: os.environ.get(CPU_BIND) or _cpus_for(model.gpu_count)})
    ctx.update(placement=placement, device=placement.device, gpu_share=placement.share)
    return for_engine(model, placement)


@asynccontextmanager
async def loading(ctx: dict[str, Any], model: Model, settings: Settings) -> AsyncIterator[None]:
    """Load the model inside: alone on a card that several share, and with the key to turn if memory runs out."""
    # vLLM measures what its model takes from the card's free memory: another that loads meanwhile would be counted in.
    shared = [device.index for device in ctx["placement"].devices] if model.share < 1 else []
    async with AsyncExitStack() as alone:
        for index in shared:
            await _alone_on(alone, index, model, settings)
        try:
            yield
        except JarvisError:
            raise
        except Exception as error:
            if (what := advice(f"{type(error).__name__}: {error}", model)) is None:
                raise
            raise SettingsInvalid(f"{model.place}: {model.alias}: {what}. The engine said: {error}") from error


async def _alone_on(alone: AsyncExitStack, index: int, model: Model, settings: Settings) -> None:
    locks = DeviceLocks(settings.device_lock_dir)
    said = False
    while True:
        try:
            alone.enter_context(locks.loading(index))
        except GateBusy:
            if not said:
                log.info("%s waits while another model is loaded on GPU %d", model.queue, index)
            said = True
            await asyncio.sleep(LOOK_EVERY_S)
        else:
            return


def leave(ctx: dict[str, Any]) -> None:
    """Let go what `settle` took, once the engine has ended."""
    if "placement" in ctx:
        ctx["placement"].leave()


async def place(model: Model, settings: Settings) -> Placement:
    """Hold the devices that a model needs, waiting for them; raises SettingsInvalid when that cannot succeed."""
    if model.engine_options.get("distributed_executor_backend") == "ray":
        return _placed_by_ray(model)
    if settings.device == "cpu" or not model.share:
        placement = Placement()
        if settings.device == "cpu" or VISIBLE not in os.environ:
            placement.show_engine({VISIBLE: ""})  # torch would make itself a context on GPU 0
        return placement
    if VISIBLE in os.environ and settings.device is None:
        return await _placed_by_user(model, settings)
    devices = await asyncio.to_thread(list_devices, settings)
    if not devices:
        return _without_gpus(settings)
    _say_simulated(devices)
    candidates = _candidates(devices, settings.device)
    if len(candidates) < model.gpu_count:
        raise SettingsInvalid(f"{_need(model)}; {_these(candidates)} at hand. {_OVER_NODES}")
    hold = await _with_memory(candidates, model, settings)
    held = [device for device in devices if device.index in hold.devices]
    placement = Placement(", ".join(map(str, held)), model.share, held, hold)
    placement.show_engine({ORDER: "PCI_BUS_ID", VISIBLE: ",".join(str(device.index) for device in held)})
    log.info("%s runs on %s and holds a share of %g", model.queue, placement.device, model.share)
    return placement


def for_engine(model: Model, placement: Placement) -> Model:
    """The model with the options by which vLLM keeps to its placement; what the catalogue says wins."""
    if model.engine != "vllm":
        return model
    options: dict[str, Any] = {}
    if model.tensor_parallel > 1:
        options["tensor_parallel_size"] = model.tensor_parallel
    if model.pipeline_parallel > 1:
        options["pipeline_parallel_size"] = model.pipeline_parallel
    if placement.devices and not any(device.simulated for device in placement.devices):
        options["gpu_memory_utilization"] = utilization(model)
    return replace(model, options={**options, **model.options})


_OVER_NODES = (
    'A model over several nodes needs options.distributed_executor_backend = "ray"; '
    "else lower tensor_parallel or pipeline_parallel"
)


async def _with_memory(candidates: list[Device], model: Model, settings: Settings) -> Hold:
    """Hold devices that have the memory; raises SettingsInvalid with the numbers when none has."""
    locks = DeviceLocks(settings.device_lock_dir)
    large = [device for device in candidates if not too_small(model, device)]
    if len(large) < model.gpu_count:
        raise SettingsInvalid(too_small(model, max(candidates, key=lambda device: device.total_bytes or 0)))
    wait, refusal = settings.device_wait, ""
    while len(large) >= model.gpu_count:
        try:
            hold = await _held(locks, large, model, wait)
        except SettingsInvalid as taken:
            raise SettingsInvalid(refusal or str(taken)) from None
        short = await _short_of_memory(hold.devices, model, settings)
        if not short:
            return hold
        # Somebody without a lock of ours is on that card: another may do.
        hold.release()
        large = [device for device in large if device.index not in short]
        wait, refusal = False, refusal or next(iter(short.values()))
    raise SettingsInvalid(refusal)


async def _short_of_memory(indices: Sequence[int], model: Model, settings: Settings) -> dict[int, str]:
    """The devices with too little free memory, and why; asked until a dead worker's engine must have let go."""
    until = time.monotonic() + SETTLE_S
    while True:
        devices = [one for one in await asyncio.to_thread(list_devices, settings) if one.index in indices]
        short = {device.index: why for device in devices if (why := not_free(model, device))}
        if not short or time.monotonic() > until:
            return short
        await asyncio.sleep(SETTLE_LOOK_S)


async def _held(locks: DeviceLocks, candidates: list[Device], model: Model, wait: bool) -> Hold:
    indices = [device.index for device in candidates]
    said, said_at = "", 0.0
    while True:
        try:
            taken = locks.take(indices, model.gpu_count, model.share, model.queue)
        except GateBusy:
            await asyncio.sleep(GATE_PAUSE_S)
            continue
        if isinstance(taken, Hold):
            return taken
        why = f"{_need(model)}; {_taken(candidates, taken, model.share)}"
        if not wait:
            raise SettingsInvalid(f"{why}. It was not to wait for them")
        if why != said or time.monotonic() - said_at > SAY_AGAIN_S:
            said, said_at = why, time.monotonic()
            log.warning("waiting for a GPU: %s", why)
        await asyncio.sleep(LOOK_EVERY_S)


def _candidates(devices: list[Device], wanted: str | None) -> list[Device]:
    """The devices to choose from: the named ones, else those that CUDA_VISIBLE_DEVICES leaves, else all."""
    by_index = {device.index: device for device in devices}
    visible = os.environ.get(VISIBLE)
    named = visible if wanted in (None, "auto") else wanted
    if named is None:
        return devices
    source = VISIBLE if named is visible else "JARVIS_DEVICE"
    indices = [part.strip() for part in named.split(",")]
    for index in indices:
        if not index.isdigit() or int(index) not in by_index:
            raise SettingsInvalid(f"{source} is {named}: this node has GPU {', '.join(map(str, by_index))}")
        if visible is not None and index not in visible.split(","):
            raise SettingsInvalid(f"JARVIS_DEVICE is {named}, but {VISIBLE} is {visible}")
    return [by_index[int(index)] for index in dict.fromkeys(indices)]


async def _placed_by_user(model: Model, settings: Settings) -> Placement:
    visible = os.environ[VISIBLE]
    if visible in ("", "-1", "NoDevFiles"):
        return Placement()
    if len(visible.split(",")) < model.gpu_count:
        raise SettingsInvalid(f"{_need(model)}; {VISIBLE} is {visible}. {_OVER_NODES}")
    for device in await asyncio.to_thread(list_devices, settings):
        refusal = too_small(model, device) or not_free(model, device)
        if str(device.index) in visible.split(",") and refusal:
            raise SettingsInvalid(refusal)
    log.info("%s runs on GPU %s, which %s names; nothing is locked", model.queue, visible, VISIBLE)
    return Placement(f"GPU {visible} ({VISIBLE})", model.share)


def _placed_by_ray(model: Model) -> Placement:
    if importlib.util.find_spec("ray") is None:
        raise SettingsInvalid(
            f"{model.place}: options of {model.alias}: distributed_executor_backend is ray, which is not installed: "
            "pip install -e '.[ray]'"
        )
    log.info("%s runs on %d GPUs that Ray chooses; nothing is locked here", model.queue, model.gpu_count)
    return Placement(f"{model.gpu_count} GPUs by Ray", model.share)


def _without_gpus(settings: Settings) -> Placement:
    if settings.device is not None and settings.device != "auto":
        raise SettingsInvalid(f"JARVIS_DEVICE is {settings.device}: this node has no GPU (nvidia-smi shows none)")
    return Placement()


def _say_simulated(devices: list[Device]) -> None:
    if any(device.simulated for device in devices):
        log.warning("SIMULATED GPUs (JARVIS_DEVICES): no worker's model is on a real one")


def _cpus_for(parts: int) -> str:
    """This process' CPUs in so many parts, as vLLM reads them: by itself it needs a NUMA node for each part."""
    cpus = sorted(os.sched_getaffinity(0))
    size = max(1, len(cpus) // parts)
    return "|".join(",".join(map(str, cpus[part * size : (part + 1) * size] or cpus)) for part in range(parts))


def _need(model: Model) -> str:
    return f"{model.queue} needs {_amount(model)}"


def _amount(model: Model) -> str:
    each = "a whole GPU" if model.share == 1 else f"{model.share:g} of a GPU"
    return each if model.gpu_count == 1 else f"{model.gpu_count} times {each}"


def _these(devices: list[Device]) -> str:
    return f"{len(devices)} GPU{'s are' if len(devices) != 1 else ' is'}"


def _taken(devices: list[Device], holders: list[Holder], share: float) -> str:
    by = {device.index: [one for one in holders if device.index in one.devices] for device in devices}
    fit = [index for index, ones in by.items() if fits(sum(one.share for one in ones), share)]
    whose = "; ".join(f"GPU {index} by {', '.join(map(str, ones))}" for index, ones in by.items() if ones)
    number = len(devices)
    if fit:
        return f"only {len(fit)} of {number} GPUs {'is' if len(fit) == 1 else 'are'} that free: {whose}"
    named = {1: f"GPU {devices[0].index} is", 2: "both GPUs of this node are"}
    return f"{named.get(number, f'all {number} GPUs of this node are')} taken: {whose}"
