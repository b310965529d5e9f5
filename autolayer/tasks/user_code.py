"""Undoes what a user's code changes in the process, such as the working directory."""

import contextlib
import os
import signal
import sys
import warnings
from collections.abc import Iterator
from typing import Any, cast

_AUTOCAST_DEVICES = ("cpu", "cuda")


@contextlib.contextmanager
def keeping_process_state() -> Iterator[None]:
    """Restores the working directory, the streams and torch's modes when the block ends.

    It also cancels an alarm, and no longer turns warnings into errors.

    Rewards and environments are called in the middle of training. One that calls `os.chdir` would move the run folder,
    one that leaves autocast on would train in another precision, and one that does not cancel its alarm would end it.

    Raises:
        RuntimeError: The block leaves `torch.inference_mode` on, which nobody else can end.
    """
    folder, streams = os.open(".", os.O_RDONLY), (sys.stdout, sys.stderr)
    torch = sys.modules.get("torch")  # this module does not load it
    before = _modes(torch) if torch else {}
    filters = list(warnings.filters)
    has_alarm = signal.getitimer(signal.ITIMER_REAL)[0] > 0
    try:
        yield
    finally:
        if not has_alarm:
            signal.setitimer(signal.ITIMER_REAL, 0)
        sys.stdout, sys.stderr = streams
        if any(each[0] == "error" and each not in filters for each in warnings.filters):
            warnings.resetwarnings()
            cast("list[Any]", warnings.filters).extend(filters)
        os.fchdir(folder)  # the user's code may have deleted the folder where it is now
        os.close(folder)
        if torch and before and (now := _modes(torch)) != before:
            _restore(torch, before, now)


def _modes(torch: Any) -> dict[str, Any]:
    return {
        "dtype": torch.get_default_dtype(),
        "device": torch.get_default_device(),
        "grad": torch.is_grad_enabled(),
        "inference": torch.is_inference_mode_enabled(),
        "autocast": [torch.is_autocast_enabled(device) for device in _AUTOCAST_DEVICES],
    }


def _restore(torch: Any, before: dict[str, Any], now: dict[str, Any]) -> None:
    if now["inference"] and not before["inference"]:
        raise RuntimeError("it leaves torch.inference_mode on, in which nothing can be trained; use it in a with block")
    torch.set_default_dtype(before["dtype"])
    if now["device"] != before["device"]:  # each call slows torch down
        torch.set_default_device(before["device"])
    torch.set_grad_enabled(before["grad"])
    for device, is_on in zip(_AUTOCAST_DEVICES, before["autocast"], strict=True):
        torch.set_autocast_enabled(device, is_on)
