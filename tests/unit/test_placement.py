"""Which GPUs a worker chooses and what it shows its engine; `nvidia-smi` is a script that says what it is told."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import pytest

from common.errors import SettingsInvalid
from common.model import Model
from common.settings import Settings
from workers.devices import GIB, Device, list_devices
from workers.placement import Placement, for_engine, leave, loading, place, settle

TWO = "0, NVIDIA L4, 23034, 22500\n1, NVIDIA L4, 23034, 22000\n"


@pytest.fixture
def smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fake nvidia-smi that prints this file, or fails when there is none; no variable of ours or CUDA's is set."""
    program = tmp_path / "bin" / "nvidia-smi"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\ncat {tmp_path}/smi.csv || exit 9\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    for name in list(os.environ):
        if name.startswith(("CUDA_", "JARVIS_")):
            monkeypatch.delenv(name)
    (tmp_path / "smi.csv").write_text(TWO)
    return tmp_path / "smi.csv"


def settings(folder: Path, **values: Any) -> Settings:
    return Settings(device_lock_dir=folder / "locks", **values)


def model(engine: str = "vllm", **values: Any) -> Model:
    return Model("m", "generation", engine, "lab/m", 100, 8, **values)


def refusal(model: Model, settings: Settings) -> str:
    with pytest.raises(SettingsInvalid) as caught:
        asyncio.run(place(model, settings))
    return str(caught.value)


def test_the_devices_are_those_of_nvidia_smi(smi: Path, tmp_path: Path) -> None:
    first, second = list_devices(settings(tmp_path))
    assert (first.index, first.name, first.total_bytes, first.free_bytes) == (0, "NVIDIA L4", 23034 << 20, 22500 << 20)
    assert str(second) == "GPU 1 (NVIDIA L4)"


def test_a_card_that_does_not_say_its_memory_is_still_one(smi: Path, tmp_path: Path) -> None:
    smi.write_text("0, NVIDIA GB10, [N/A], [N/A]\n")
    assert list_devices(settings(tmp_path)) == [Device(0, "NVIDIA GB10", None, None)]


def test_a_node_without_a_driver_runs_on_the_cpu_and_one_whose_driver_fails_says_so(
    smi: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    smi.unlink()
    assert asyncio.run(place(model(), settings(tmp_path))).device == "cpu"
    assert "nvidia-smi is here but fails" in caplog.text
    monkeypatch.setenv("PATH", str(tmp_path))
    caplog.clear()
    assert asyncio.run(place(model(), settings(tmp_path))).device == "cpu"
    assert not caplog.text
    assert "JARVIS_DEVICE is 1: this node has no GPU" in refusal(model(), settings(tmp_path, device="1"))


async def test_the_engine_sees_the_chosen_gpu_only_and_the_environment_is_put_back(smi: Path, tmp_path: Path) -> None:
    ctx: dict[str, Any] = {}
    await settle(ctx, model(), settings(tmp_path))
    assert (ctx["device"], ctx["gpu_share"]) == ("GPU 0 (NVIDIA L4)", 1.0)
    assert (os.environ["CUDA_VISIBLE_DEVICES"], os.environ["CUDA_DEVICE_ORDER"]) == ("0", "PCI_BUS_ID")
    leave(ctx)
    assert "CUDA_VISIBLE_DEVICES" not in os.environ
    second = await place(model(), settings(tmp_path, device="1"))
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "1"
    second.leave()


async def test_what_the_user_made_visible_is_obeyed_and_not_locked_unless_asked(
    smi: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    obeyed = await place(model(), settings(tmp_path))
    assert (obeyed.device, obeyed.hold) == ("GPU 1 (CUDA_VISIBLE_DEVICES)", None)
    locked = await place(model(), settings(tmp_path, device="auto"))
    assert locked.hold is not None
    assert locked.hold.devices == (1,)
    locked.leave()
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "1"
    assert "JARVIS_DEVICE is 0, but CUDA_VISIBLE_DEVICES is 1" in await asyncio.to_thread(
        refusal, model(), settings(tmp_path, device="0")
    )
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert (await place(model(), settings(tmp_path))).device == "cpu"


async def test_a_gpu_that_others_have_filled_is_passed_over_and_refused_with_numbers_when_there_is_no_other(
    smi: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.placement.SETTLE_S", 0.0)
    smi.write_text("0, NVIDIA L4, 23034, 1024\n1, NVIDIA L4, 23034, 22000\n")  # noqa: ASYNC240
    placement = await place(model(), settings(tmp_path))
    assert placement.device == "GPU 1 (NVIDIA L4)"
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    async with asyncio.timeout(10):  # GPU 1 is held: it does not wait for it with a full card at hand
        with pytest.raises(SettingsInvalid, match=r"of GPU 0 \(NVIDIA L4\), which has 1.0 GiB"):
            await place(model(), settings(tmp_path))
    placement.leave()
    message = await asyncio.to_thread(refusal, model(), settings(tmp_path, device="0"))
    assert "m needs 20.7 GiB (gpu_memory_utilization 0.92 (gpu_share 1)) of GPU 0 (NVIDIA L4)" in message
    assert "which has 1.0 GiB of 22.5 GiB free" in message
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert "1.0 GiB of 22.5 GiB free" in await asyncio.to_thread(refusal, model(), settings(tmp_path))


async def test_the_memory_of_a_dead_workers_engine_is_waited_for(
    smi: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = iter([1, 1, 20])

    def nvidia_smi(_: Settings) -> list[Device]:
        return [Device(0, "L4", 22 * GIB, next(answers, 21) * GIB)]

    monkeypatch.setattr("workers.placement.list_devices", nvidia_smi)
    monkeypatch.setattr("workers.placement.SETTLE_LOOK_S", 0.001)
    placement = await place(model(), settings(tmp_path))
    assert next(answers, "all were asked for") == "all were asked for"
    placement.leave()


async def test_a_model_that_needs_no_gpu_sees_none(smi: Path, tmp_path: Path) -> None:
    placement = await place(model(gpu_share=0), settings(tmp_path))
    assert (placement.device, os.environ["CUDA_VISIBLE_DEVICES"]) == ("cpu", "")
    placement.leave()


def test_a_device_that_the_node_has_not_is_refused_with_those_it_has(smi: Path, tmp_path: Path) -> None:
    assert refusal(model(), settings(tmp_path, device="2")) == "JARVIS_DEVICE is 2: this node has GPU 0, 1"


def test_more_gpus_than_the_node_has_are_refused_unless_ray_places_them(smi: Path, tmp_path: Path) -> None:
    wide = model(tensor_parallel=2, pipeline_parallel=2)
    message = refusal(wide, settings(tmp_path))
    assert "generation:m needs 4 times a whole GPU; 2 GPUs are at hand" in message
    assert 'distributed_executor_backend = "ray"' in message
    over_ray = model(tensor_parallel=4, options={"distributed_executor_backend": "ray"})
    assert "ray, which is not installed: pip install -e '.[ray]'" in refusal(over_ray, settings(tmp_path))


@pytest.mark.parametrize("text", ["0", "0:24", "a:24GiB", "0:24GiB,0:24GiB"])
def test_simulated_devices_that_nobody_can_read_are_refused(text: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsInvalid, match="JARVIS_DEVICES"):
        list_devices(settings(tmp_path, devices=text))


async def test_simulated_devices_say_so_loudly(smi: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    placement = await place(model(), settings(tmp_path, devices="3:0.5GiB"))
    assert placement.device == "GPU 3 (simulated)"
    assert placement.devices[0].total_bytes == GIB // 2
    assert "SIMULATED" in caplog.text
    placement.leave()


async def test_memory_that_runs_out_at_the_load_stops_the_start_with_the_key_to_turn(smi: Path, tmp_path: Path) -> None:
    ctx: dict[str, Any] = {}
    asked = await settle(ctx, model("sentence-transformers", place="models.toml:3"), settings(tmp_path))
    with pytest.raises(SettingsInvalid, match=r"models.toml:3: m: out of memory .* lower options.batch_tokens"):
        async with loading(ctx, asked, settings(tmp_path)):
            raise RuntimeError("CUDA out of memory. Tried to allocate 20.00 MiB")
    with pytest.raises(RuntimeError, match="anything else"):
        async with loading(ctx, asked, settings(tmp_path)):
            raise RuntimeError("anything else")
    leave(ctx)


async def test_a_model_over_several_processes_on_a_cpu_gives_each_its_own_cores(
    smi: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("VLLM_CPU_OMP_THREADS_BIND", raising=False)
    for cpus, parts in (({0, 1, 2, 5}, "0,1|2,5"), ({3}, "3|3")):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _, cpus=cpus: cpus)
        ctx: dict[str, Any] = {}
        await settle(ctx, model(tensor_parallel=2), settings(tmp_path, device="cpu"))
        assert os.environ["VLLM_CPU_OMP_THREADS_BIND"] == parts
        leave(ctx)
    ctx = {}
    await settle(ctx, model(tensor_parallel=2), settings(tmp_path))
    assert "VLLM_CPU_OMP_THREADS_BIND" not in os.environ
    leave(ctx)


def test_vllm_is_told_its_share_and_its_gpus_and_what_the_catalogue_says_wins() -> None:
    def options(simulated: bool = False, **values: Any) -> dict[str, Any]:
        asked = model(**values)
        held = [Device(0, "L4", GIB, GIB, simulated)]
        fitted = for_engine(asked, Placement("GPU 0", asked.share, held))
        assert fitted.engine_options.items() >= fitted.options.items()
        return fitted.options

    assert options() == {"gpu_memory_utilization": 0.92}
    assert options(gpu_share=0.4) == {"gpu_memory_utilization": 0.368}
    assert options(gpu_share=0.5, preset="small-gpu") == {"gpu_memory_utilization": 0.425}
    assert options(gpu_share=0.5, options={"gpu_memory_utilization": 0.3}) == {"gpu_memory_utilization": 0.3}
    assert options(gpu_share=0.5, preset="latency", options={"kv_cache_memory_bytes": GIB}) == {
        "gpu_memory_utilization": 0.46,
        "kv_cache_memory_bytes": GIB,
    }
    assert options(simulated=True, tensor_parallel=2, pipeline_parallel=3) == {
        "tensor_parallel_size": 2,
        "pipeline_parallel_size": 3,
    }
    assert for_engine(model("fake", tensor_parallel=2), Placement()).options == {}
