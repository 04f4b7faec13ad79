"""Which workers share a training, from TF_CONFIG or Slurm's variables, and their meeting before it begins.

TensorFlow waits for missing workers, too, but with Python locked: no line, no Ctrl-C. So they first meet here.
"""

import contextlib
import faulthandler
import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

from maml.errors import UserError

JOBS = ("chief", "worker")  # of TF_CONFIG, that train; the first of these is the chief
GREETING = "maml-worker"
FIRST_PORT, PORTS = 20_000, 10_000  # of a Slurm job, by its number
EXAMPLE = '{"cluster": {"worker": ["host0:port", "host1:port"]}, "task": {"type": "worker", "index": 0}}'
LONGEST_LINE = 1_000_000
STARTS_WITHIN = 60.0  # seconds from the meeting: of TensorFlow's devices and connections
# Says a line after so many seconds, unless it hears something before.
WATCH = """
import sys, threading
timer = threading.Timer(float(sys.argv[1]), lambda: print(sys.argv[2], file=sys.stderr, flush=True))
timer.daemon = True
timer.start()
sys.stdin.read(1)
timer.cancel()
"""
PATIENCE = 10.0  # seconds before the first line about who is missing; then twice as long, and so on


class Cluster(NamedTuple):
    """The workers of a training.

    addresses: host:port of each, the chief's first.
    number: of this process among them.
    """

    addresses: tuple[str, ...]
    number: int

    @property
    def port(self) -> int:
        """This worker's."""
        return int(self.addresses[self.number].rpartition(":")[2])

    def name(self, index: int) -> str:
        """A worker as it is named to the user."""
        return f"worker {index} ({self.addresses[index]})"


def from_environment(environment: Mapping[str, str] = os.environ) -> Cluster | None:
    """The workers that TF_CONFIG or Slurm describes; None: this process is alone.

    Raises:
        UserError: what is described is none.
    """
    if environment.get("TF_CONFIG"):
        return _from_tf_config(environment["TF_CONFIG"])
    if environment.get("SLURM_STEP_NUM_TASKS", "1") != "1" and "SLURM_PROCID" in environment:
        return _from_slurm(environment)
    return None


def _from_tf_config(text: str) -> Cluster | None:
    try:
        values = json.loads(text)
        jobs = {job: [str(address) for address in addresses] for job, addresses in values.get("cluster", {}).items()}
        task = values.get("task", {})
        job, index = str(task.get("type", "worker")), int(task.get("index", 0))
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(f"TF_CONFIG: cannot be read ({error}); write {EXAMPLE}") from error
    others = sorted(name for name, addresses in jobs.items() if addresses and name not in JOBS)
    if others or (jobs and job not in JOBS):
        raise UserError(f"TF_CONFIG: a job called {(others or [job])[0]} has no part in a training; use worker alone")
    addresses = [address for name in JOBS for address in jobs.get(name, [])]
    bad = [address for address in addresses if not _is_address(address)]
    if bad:
        raise UserError(f"TF_CONFIG: {bad[0]!r} is no address of host and port (1 to 65535); write {EXAMPLE}")
    twice = [address for address in addresses if addresses.count(address) > 1]
    if twice:
        raise UserError(f"TF_CONFIG: {twice[0]} is given to {addresses.count(twice[0])} workers; each needs its own")
    if len(addresses) < 2:
        return None
    if not 0 <= index < len(jobs.get(job, [])):
        raise UserError(f"TF_CONFIG: there is no {job} {index} among the {len(jobs.get(job, []))} of its cluster")
    return Cluster(tuple(addresses), index + (len(jobs.get("chief", [])) if job == "worker" else 0))


def _is_address(text: str) -> bool:
    found = re.fullmatch(r".+:(\d{1,5})", text)
    return found is not None and 0 < int(found[1]) < 2**16


def _from_slurm(environment: Mapping[str, str]) -> Cluster:
    """A worker for each task of the job step: those of a node have neighboring numbers, as srun starts them."""
    try:
        hosts = expanded_hosts(environment["SLURM_STEP_NODELIST"])
        counts = [
            int(tasks)
            for tasks, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", environment["SLURM_STEP_TASKS_PER_NODE"])
            for _ in range(int(times or 1))
        ]
        first = FIRST_PORT + int(environment.get("SLURM_JOB_ID", "0")) % PORTS
        each = zip(hosts, counts, strict=True)
        addresses = tuple(f"{host}:{first + place}" for host, count in each for place in range(count))
        return Cluster(addresses, range(len(addresses))[int(environment["SLURM_PROCID"])])
    except (KeyError, ValueError, IndexError) as error:
        names = "SLURM_STEP_NODELIST, SLURM_STEP_TASKS_PER_NODE and SLURM_PROCID"
        raise UserError(f"{names} do not describe a job step ({error}); start with srun, or set TF_CONFIG") from error


def expanded_hosts(text: str) -> list[str]:
    """`node[2,10-11],other` → node2, node10, node11, other: in that order, which is that of the tasks."""
    hosts = []
    for prefix, ranges, suffix in re.findall(r"([^,\[\]]+)(?:\[([^\]]*)\])?([^,\[\]]*)", text):
        for part in ranges.split(",") if ranges else [""]:
            first, _, last = part.partition("-")
            numbers = range(int(first), int(last or first) + 1) if first else [None]
            hosts += [f"{prefix}{'' if n is None else str(n).zfill(len(first))}{suffix}" for n in numbers]
    return hosts


def agreed(cluster: Cluster, facts: Mapping[str, str], decide: Callable[[], dict]) -> dict:
    """Waits until all workers are there, and returns on each of them what the chief decides.

    Args:
        facts: about this worker, which must be the same on all.
        decide: called by the chief alone; what it returns is sent as JSON.

    Raises:
        UserError: workers differ, the chief could not decide, or this worker's port is taken.
    """
    with _listening(cluster) as listening:
        if cluster.number == 0:
            return _lead(cluster, facts, decide, listening)
    return _follow(cluster, facts)


@contextlib.contextmanager
def together(cluster: Cluster | None):
    """What all workers begin together after they have met: ends this process with one line if one does not come.

    TensorFlow would wait for it with Python locked, and hear neither Ctrl-C nor SIGTERM: so another process
    says it, and a thread of C ends this one.
    """
    if not cluster:
        yield
        return
    line = f"another worker is gone: after {STARTS_WITHIN:.0f} s not all that met have started; start all of them again"
    command = [sys.executable, "-S", "-c", WATCH, str(STARTS_WITHIN), line]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as watch, open(os.devnull, "w") as nowhere:
        faulthandler.dump_traceback_later(STARTS_WITHIN + 1, exit=True, file=nowhere)
        try:
            yield
        finally:
            faulthandler.cancel_dump_traceback_later()
            watch.communicate(b"started")


@contextlib.contextmanager
def _listening(cluster: Cluster):
    with socket.socket() as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind(("", cluster.port))
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or error
            raise UserError(
                f"{cluster.name(cluster.number)}: port {cluster.port} cannot be used ({reason}); take another one"
            ) from error
        listening.listen(2 * len(cluster.addresses))
        listening.settimeout(0.5)
        yield listening


class _Waiting:
    """Says now and then who is missing."""

    def __init__(self) -> None:
        self.begin, self.next = time.monotonic(), PATIENCE

    def say(self, missing: list[str]) -> None:
        waited = time.monotonic() - self.begin
        if waited >= self.next:
            self.next *= 2
            print(f"Waited {waited:.0f} s for {', '.join(missing)}", file=sys.stderr, flush=True)


def _lead(cluster: Cluster, facts: Mapping[str, str], decide: Callable, listening: socket.socket) -> dict:
    waiting = _Waiting()
    met: dict[int, tuple[socket.socket | None, dict]] = {0: (None, dict(facts))}
    try:
        while len(met := _still_there(met)) < len(cluster.addresses):
            waiting.say([cluster.name(index) for index in range(len(cluster.addresses)) if index not in met])
            with contextlib.suppress(TimeoutError):
                connection = listening.accept()[0]
                hello = _received(connection)
                if (
                    hello
                    and hello.get("greeting") == GREETING
                    and hello.get("index") in range(1, len(cluster.addresses))
                ):
                    met[hello["index"]] = (connection, hello.get("facts") or {})
                else:
                    connection.close()  # of somebody else
        try:
            _check_alike(met)
            word = {"decided": decide()}
        except UserError as error:
            _tell(met, {"error": str(error)})
            raise
        _tell(met, word)
        return word["decided"]
    finally:
        for open_connection, _ in met.values():
            if open_connection:
                open_connection.close()


def _still_there(met: dict) -> dict:
    """The workers that have not gone away while others were waited for."""

    def gone(connection: socket.socket) -> bool:
        connection.setblocking(False)
        try:
            return connection.recv(1, socket.MSG_PEEK) == b""
        except BlockingIOError:
            return False
        except OSError:
            return True

    return {index: each for index, each in met.items() if each[0] is None or not gone(each[0])}


def _follow(cluster: Cluster, facts: Mapping[str, str]) -> dict:
    waiting, (host, _, port) = _Waiting(), cluster.addresses[0].rpartition(":")
    hello = {"greeting": GREETING, "index": cluster.number, "facts": dict(facts)}
    while True:
        waiting.say([cluster.name(0)])
        word = None
        with contextlib.suppress(OSError), socket.create_connection((host, int(port)), 2) as connection:
            connection.sendall(json.dumps(hello).encode() + b"\n")
            word = _received(connection, lambda: waiting.say(["the others, or the chief's answer"]))
        if word and "error" in word:
            raise UserError(str(word["error"]))
        if word and "decided" in word:
            return word["decided"]
        time.sleep(0.2)


def _received(connection: socket.socket, patient: Callable[[], None] | None = None) -> dict | None:
    """A line of JSON; None if it is something else, or the other side is gone.

    Args:
        patient: called every half second; None: a second is waited.
    """
    line, begin = b"", time.monotonic()
    connection.settimeout(0.5)
    with contextlib.suppress(OSError, ValueError):
        while not line.endswith(b"\n") and len(line) < LONGEST_LINE:
            try:
                received = connection.recv(65536)
                if not received:
                    return None
                line += received
            except TimeoutError:
                if patient is None and time.monotonic() - begin > 1:
                    return None
                if patient:
                    patient()
        found = json.loads(line)
        return found if isinstance(found, dict) else None
    return None


def _tell(met: dict, word: dict) -> None:
    for connection, _ in met.values():
        if connection:
            with contextlib.suppress(OSError):
                connection.settimeout(5)
                connection.sendall(json.dumps(word).encode() + b"\n")


def _check_alike(met: dict) -> None:
    """Raises UserError that names what the first other worker has otherwise."""
    chief = met[0][1]
    for index in sorted(met):
        other = met[index][1]
        for name in sorted(chief.keys() | other.keys()):
            if other.get(name) != chief.get(name):
                there, here = (each.get(name, "nothing") for each in (other, chief))
                raise UserError(
                    f"worker {index} has {name} {there}, and worker 0 has {here}: start all workers with the same "
                    "command and the same versions"
                )
