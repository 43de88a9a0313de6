"""Batches shared out over the machines of a Ray cluster: workers that hold the model, answers merged in order."""

from __future__ import annotations

import socket
import warnings
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..core.arguments import checked
from ..errors import ClusterWarning, ModelError, ScaleInterpError
from ..vlm.vlm import VLM, ChoiceSpace
from .execution import block
from .memory import working_bytes

ATTEMPTS = 3
"""How many workers may die over one batch before it is held to be the cause."""
AHEAD = 4
"""Batches that may lie ready for each worker at work before the one that is waited for arrives."""
Keep = Callable[[int, dict[str, Tensor]], dict[str, Tensor]]


@checked
@contextmanager
def cluster(address: str | None = None, *, workers: int | None = None, gpus: int | None = None) -> Iterator[Cluster]:
    """Every sweep, evaluation and suite inside the block shares its batches out over a Ray cluster; the numbers stay the same.

    address: of a running cluster, "auto" for the one this machine belongs to, None for a local one that is started here. workers: how
    many processes hold the model; default: as many as the cluster has GPUs for, or cores at this process's number of torch threads.
    gpus: GPUs a worker; default: as many as this process's model lies on. Fits run here. Pictures given as paths must be
    readable on every machine.

    A worker or a machine that dies costs the batches it was at, which others do again, with a ClusterWarning.
    Raises ModelError where Ray is not installed or cannot be reached, and for a model that workers cannot load: one that was
    given alive, or whose weights were changed since it was loaded.

        with si.cluster("auto"):
            m = si.patch(vlm, pairs)

    >>> import scale_interp as si
    >>> si.cluster(workers="many")
    Traceback (most recent call last):
    scale_interp.errors.ArgumentError: cluster(workers='many'): a str; give a whole number, or None
    """
    try:
        import ray
    except ImportError as error:
        raise ModelError("running on a cluster needs Ray: pip install 'scale-interp[ray]'") from error
    started = not ray.is_initialized()
    if not started and address not in (None, "auto", ray.get_runtime_context().gcs_address):
        there = ray.get_runtime_context().gcs_address
        raise ModelError(f"this process is connected to the Ray cluster at {there}, not to {address}: call ray.shutdown() first")
    if started:
        try:
            _reach(address)
            ray.init(address=address, log_to_driver=False, include_dashboard=False if address is None else None)
        except (OSError, RuntimeError, ValueError) as error:
            raise ModelError(f"no Ray cluster at {address!r} ({error}): start one with `ray start --head`, or give no address") from error
    here = Cluster(ray, workers, gpus)
    try:
        with block(workers=here):
            yield here
    finally:
        here.close()
        if started:
            ray.shutdown()


def _reach(address: str | None) -> None:
    """Raise OSError where nobody listens; Ray itself goes on trying for minutes."""
    host, colon, port = (address or "").rpartition(":")
    if colon and port.isdigit() and "/" not in host:
        socket.create_connection((host, int(port)), timeout=10).close()


class Worker:
    """One process of the cluster: a model, and the batches it was last asked about."""

    def __init__(self, ray: Any):
        self.ray = ray
        self.known: dict[Any, Any] = {}

    def open(self, reopen: Callable[[], VLM], threads: int, memory: int, choice_space: ChoiceSpace) -> str:
        """Load the model; its fingerprint."""
        torch.set_num_threads(threads)
        self.vlm = reopen()
        self.vlm.memory, self.vlm.choice_space = memory, choice_space
        return self.vlm.fingerprint

    def run(self, plan: list[Any], work: list[Any], index: int) -> dict[str, Tensor]:
        """One batch. plan and work come as references, fetched once."""
        if plan[0] not in self.known:
            self.known = {plan[0]: self.ray.get(plan[0])(self.vlm), work[0]: self.ray.get(work[0])}
        found = self.known[work[0]](self.vlm, self.known[plan[0]][index])
        return {name: t.cpu() for name, t in found.items()}


@dataclass
class Team:
    """The workers that hold one model: at work on a batch, free, or still loading."""

    fingerprint: str
    start: Callable[[], tuple[Any, Any]]
    starting: dict[Any, Any] = field(default_factory=dict)
    free: list[Any] = field(default_factory=list)
    lost: int = 0


class Cluster:
    """Workers by model, kept for the whole `si.cluster` block."""

    def __init__(self, ray: Any, workers: int | None, gpus: int | None):
        self.ray, self.workers, self.gpus = ray, workers, gpus
        self.teams: dict[tuple[str, ChoiceSpace], Team] = {}

    def close(self) -> None:
        for team in self.teams.values():
            for worker in [*team.free, *team.starting.values()]:
                self.ray.kill(worker)

    def run(self, vlm: VLM, plan: Any, work: Any, todo: Sequence[int], keep: Keep) -> Iterator[dict[str, Tensor]]:
        """The batches of these numbers, in order; `keep` is called as soon as one arrives."""
        if not todo:
            return
        team, ray = self._team(vlm), self.ray
        told = [ray.put(plan)], [ray.put(work)]
        waiting = deque(todo)
        running: dict[Any, tuple[Any, int]] = {}
        arrived: dict[int, dict[str, Tensor]] = {}
        deaths: Counter[int] = Counter()
        try:
            for wanted in todo:
                while wanted not in arrived:
                    while waiting and team.free and (not running or len(arrived) < AHEAD * len(running)):
                        worker, i = team.free.pop(), waiting.popleft()
                        running[worker.run.remote(*told, i)] = worker, i
                    (ready,), _ = ray.wait([*running, *team.starting], num_returns=1)
                    if ready in team.starting:
                        self._joined(team, ready)
                        continue
                    worker, i = running[ready]
                    try:
                        arrived[i] = keep(i, ray.get(ready))
                    except ray.exceptions.RayActorError as error:
                        del running[ready]
                        deaths[i] += 1
                        self._died(team, f"a worker died at batch {i}", error, deaths[i])
                        waiting.appendleft(i)
                        continue
                    except ray.exceptions.RayTaskError as error:
                        raise _cause(error) from None
                    del running[ready]
                    team.free.append(worker)
                yield arrived.pop(wanted)
        finally:
            # Whoever is still at work finishes that first, and then has the next thing that is asked.
            team.free.extend(worker for worker, _ in running.values())

    def _team(self, vlm: VLM) -> Team:
        mark = vlm.fingerprint
        of = (mark, vlm.choice_space)
        if of not in self.teams:
            reopen = vlm.reopen
            if reopen is None:
                raise ModelError(f"{vlm.name} was given alive, and workers load a model by its name: save it to a folder that all see")
            threads, memory = torch.get_num_threads(), working_bytes(vlm)
            gpus = (self.gpus or len(set(_devices(vlm)))) if vlm.device.type == "cuda" else 0
            has = self.ray.cluster_resources()
            room = int(has.get("GPU", 0) // gpus if gpus else has.get("CPU", 0) // threads)
            if room < 1:
                needed = f"{gpus} GPU(s)" if gpus else f"{threads} cores (this process's torch threads)"
                raise ModelError(f"the cluster has no room for one worker, which takes {needed}: it has {has}")
            remote = self.ray.remote(num_cpus=1 if gpus else threads, num_gpus=gpus, max_restarts=0)(Worker)

            def start() -> tuple[Any, Any]:
                worker = remote.remote(self.ray)
                return worker.open.remote(reopen, threads, memory, vlm.choice_space), worker

            team = self.teams[of] = Team(mark, start)
            team.starting = dict(start() for _ in range(self.workers or room))
        return self.teams[of]

    def _joined(self, team: Team, ready: Any) -> None:
        worker = team.starting.pop(ready)
        try:
            mark = self.ray.get(ready)
        except self.ray.exceptions.RayTaskError as error:
            raise _cause(error) from None
        except self.ray.exceptions.RayActorError as error:
            team.lost += 1
            self._died(team, "a worker died while it loaded the model", error, team.lost)
            return
        if mark != team.fingerprint:
            raise ModelError(
                "the weights in this process are not those that workers load, they were changed since: save_pretrained the model to a "
                "folder that all machines see, and load that"
            )
        team.free.append(worker)

    def _died(self, team: Team, what: str, error: Exception, times: int) -> None:
        why = str(error).strip().splitlines()[0]
        if times >= ATTEMPTS:
            raise ModelError(f"{what}, for the {times}rd time: {why}; give workers more memory, or fewer questions a batch") from error
        warnings.warn(f"{what} ({why}): others do it again, and a new worker starts where there is room", ClusterWarning, stacklevel=4)
        team.starting.update([team.start()])


def _devices(vlm: VLM) -> list[Any]:
    placed = getattr(vlm.hf_model, "hf_device_map", None)
    return list(placed.values()) if placed else [vlm.device]


def _cause(error: Any) -> Exception:
    """What went wrong on the worker, as it would have been raised here."""
    cause = error.cause
    return cause if isinstance(cause, ScaleInterpError) else error
