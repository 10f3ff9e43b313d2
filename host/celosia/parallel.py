"""`DevicePool`: one attention or product spread over several devices."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Any

from celosia_hw.config import AcceleratorConfig

from .device import Device, DeviceError, RunReport, enter_default, leave_default, open_device

__all__ = ["DevicePool"]


class DevicePool:
    """Several devices of one configuration that share the heads or rows of each call.

    `run_attention` and `run_matmul` take it as their `device`, with the results of one device, bit
    for bit. What is checked and quantized is so once, by the caller. In a ``with`` block it is the
    default device, as a `Device` is, and it is closed at the end.

    Parameters
    ----------
    devices : sequence of Device or str
        Open devices, or what to open where a part runs, as in `open_device`: each worker of the
        executor opens a device once and keeps it. A call has at most as many parts as there are
        devices; a name may be there several times.
    executor : concurrent.futures.Executor, optional
        Or what has its `submit`: ``distributed.Client(...).get_executor()`` of Dask spreads the
        parts over machines. Threads of this process if absent. Open devices need threads of
        this process; other processes and machines need names, and celosia installed.

    Attributes
    ----------
    config : AcceleratorConfig
        Of all the devices.
    report : RunReport or None
        Of the last call: clocks and seconds of the device that took longest, sums of the rest, and
        the utilization of all devices that took part, for as long as that.

    Raises
    ------
    TypeError
        If a device is neither open nor a name, or the executor none.
    ValueError
        If there is no device, one is there twice, or their configurations differ.
    """

    def __init__(self, devices: Sequence[Device | str], *, executor: Any = None) -> None:
        if isinstance(devices, str) or not isinstance(devices, Sequence):
            raise TypeError(f"devices must be a sequence of devices or names, not {devices!r}")
        for device in devices:
            if not isinstance(device, (Device, str)):
                raise TypeError(f"a device is a Device or a str like 'sim:small', not {device!r}")
        if not devices:
            raise ValueError("a pool needs at least one device")
        opened = [id(device) for device in devices if isinstance(device, Device)]
        if len(set(opened)) < len(opened):
            raise ValueError("an open device can be in a pool only once")
        if executor is not None and not callable(getattr(executor, "submit", None)):
            raise TypeError(f"executor must have submit(), as in concurrent.futures: {executor!r}")
        self.devices = tuple(devices)
        self.report: RunReport | None = None
        self._own = ThreadPoolExecutor(len(devices)) if executor is None else None
        self._executor: Executor | None = self._own if executor is None else executor
        self._lock = threading.Lock()
        try:
            self.config = self._common_config()
        except BaseException:
            self.close()
            raise

    @property
    def free_banks(self) -> int:
        """Key banks that are free in all open devices."""
        banks = [device.free_banks for device in self.devices if isinstance(device, Device)]
        return min(banks, default=self.config.key_banks)

    def run_parts(
        self, function: Callable[..., Any], parts: Iterable[tuple[Any, ...]]
    ) -> list[Any]:
        """Call ``function(device, *part)`` for each part, with a device of its own.

        Parameters
        ----------
        function : callable
            Of a module, so that other processes find it. It runs something on the device.
        parts : iterable of tuple
            No more than devices.

        Returns
        -------
        list
            What the calls return.

        Raises
        ------
        DeviceError
            If the pool is closed.
        """
        with self._lock:
            if self._executor is None:
                raise DeviceError("the pool is closed")
            futures = [
                self._executor.submit(_run_part, device, function, part)
                for device, part in zip(self.devices, parts, strict=False)
            ]
            # Before an error is raised all have ended: the devices are free again.
            for error in [future.exception() for future in futures]:
                if error is not None:
                    raise error
            results = [future.result() for future in futures]
            self.report = _together([report for _, report in results if report is not None])
        return [result for result, _ in results]

    def close(self) -> None:
        """Let the pool's own threads go, and what they opened; the rest is the caller's."""
        self._executor = None
        if self._own is not None:
            self._own.shutdown()

    def __enter__(self) -> DevicePool:
        enter_default(self)
        return self

    def __exit__(self, *exception: object) -> None:
        leave_default(self)
        self.close()

    def _common_config(self) -> AcceleratorConfig:
        assert self._executor is not None
        configs: dict[str, AcceleratorConfig] = {}
        for number, device in enumerate(self.devices):
            if isinstance(device, Device):
                configs[f"device {number}"] = device.config
            elif device not in configs:
                configs[device] = self._executor.submit(_config, device).result()
        first = next(iter(configs))
        for name, config in configs.items():
            if config != configs[first]:
                raise ValueError(f"the configurations of {first} and {name} differ")
        return configs[first]


_devices = threading.local()


def _kept(name: str) -> Device:
    """The device of this name, which stays open as long as this thread lives."""
    opened: dict[str, Device] = _devices.__dict__.setdefault("opened", {})
    if name not in opened or opened[name].is_closed:
        opened[name] = open_device(name)
    return opened[name]


def _config(name: str) -> AcceleratorConfig:
    return _kept(name).config


def _run_part(
    device: Device | str, function: Callable[..., Any], part: tuple[Any, ...]
) -> tuple[Any, RunReport | None]:
    if isinstance(device, str):
        device = _kept(device)
    device.report = None
    result = function(device, *part)
    return result, device.report


def _together(reports: Sequence[RunReport]) -> RunReport | None:
    """One report of runs that went on side by side."""
    if not reports:
        return None
    clocks = max(report.clocks for report in reports)
    useful = sum(report.useful_macs for report in reports)
    # Multiply-accumulates a clock, of each device.
    peaks = [r.useful_macs / (r.utilization * r.clocks) for r in reports if r.utilization]
    sums = ("bytes_sent", "bytes_received", "busy", "stalled_input", "stalled_output")
    return dataclasses.replace(
        reports[0],
        clocks=clocks,
        useful_macs=useful,
        utilization=useful / (clocks * sum(peaks)) if peaks else None,
        seconds=max(report.seconds for report in reports),
        **{name: sum(getattr(report, name) for report in reports) for name in sums},
    )
