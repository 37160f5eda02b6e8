"""Who holds which accelerator slot."""

from __future__ import annotations

from pathlib import Path

from services.trainer.slots import Slots, default_slots, visible_devices


def test_gpus_are_counted_by_their_device_files(tmp_path: Path) -> None:
    for name in ("nvidia10", "nvidia2", "nvidiactl", "nvidia-uvm", "null"):
        (tmp_path / name).touch()
    assert visible_devices({}, tmp_path) == ("2", "10")


def test_the_environment_limits_the_gpus(tmp_path: Path) -> None:
    (tmp_path / "nvidia0").touch()
    assert visible_devices({"CUDA_VISIBLE_DEVICES": "1, GPU-a"}, tmp_path) == ("1", "GPU-a")
    assert visible_devices({"CUDA_VISIBLE_DEVICES": ""}, tmp_path) == ()


def test_a_machine_without_a_gpu_runs_two_jobs_at_a_time(tmp_path: Path) -> None:
    assert default_slots(visible_devices({}, tmp_path / "nowhere")) == 2
    assert default_slots(("0",)) == 1


def test_a_slot_is_held_by_one_only() -> None:
    released: list[bool] = []
    slots = Slots(3, lambda: released.append(True))
    assert slots.take(2) == (0, 1)
    assert slots.take(2) is None
    assert slots.free == 1
    slots.release((0, 1))
    assert slots.take(3) == (0, 1, 2)
    assert released == [True]


def test_slots_that_a_smaller_trainer_does_not_have_are_not_given_out() -> None:
    slots = Slots(1, lambda: None)
    slots.hold((0, 5))
    assert slots.take(1) is None
    slots.release((0, 5))
    assert (slots.free, slots.take(1)) == (1, (0,))
