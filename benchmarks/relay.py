"""The floor under a round: plain sockets that move the same bytes, through one relay process or directly.

    python benchmarks/relay.py --clients 4 --elements 25000000 --rounds 6 [--direct]

A server sends one model to each client and takes one update from each, both of `elements` float32 numbers.
With a relay the server sends the model once, and the relay gives it to all, as a broker does. Nothing is
added up, checked, named or stored: this is what no system can beat on the machine, not a system.

The relay knows every connection by its first byte, and all lengths are known, so that there is no protocol.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import socket
import subprocess
import sys
import time
from asyncio import AbstractEventLoop
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedbus.runtime.tied import Lifeline
from usage import Process, snapshot

MODEL, UPDATE, CLIENT = b"m", b"u", b"c"
BUFFER = 1 << 20


@dataclass(frozen=True, slots=True)
class Floor:
    """What a run took: seconds of each round that counts, peaks in bytes, all else per round.

    Attributes:
        relay_written: bytes that the relay had written to disk.
    """

    seconds: list[float]
    cpu_s: float
    relay_cpu_s: float | None
    relay_written: float | None
    server_bytes: int
    client_bytes: int


def measure(clients: int, elements: int, warm_ups: int, rounds: int, *, direct: bool) -> Floor:
    """Run all processes on this machine, one after the other started and all stopped at the end.

    Raises:
        OSError: a process ended too early.
    """
    lifelines: list[Lifeline] = []
    processes: list[subprocess.Popen[bytes]] = []

    def start(role: str, *more: int) -> subprocess.Popen[bytes]:
        lifeline = Lifeline()
        numbers = map(str, (clients, elements * 4, *more))
        process = subprocess.Popen(
            lifeline.wrap([sys.executable, __file__, "--role", role, *numbers]),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=lifeline.pass_fds,
            start_new_session=True,
        )
        lifeline.handed_over()
        lifelines.append(lifeline)
        processes.append(process)
        return process

    def heard(process: subprocess.Popen[bytes]) -> bytes:
        assert process.stdout is not None
        if not (line := process.stdout.readline()):
            raise OSError(f"a process of {Path(__file__).name} ended too early")
        return line

    def tell(process: subprocess.Popen[bytes]) -> None:
        assert process.stdin is not None
        process.stdin.write(b"go\n")
        process.stdin.flush()

    try:
        if direct:
            server = start("server", warm_ups, rounds, 0)
            port = int(heard(server))
        else:
            relay = start("relay")
            port = int(heard(relay))
            server = start("server", warm_ups, rounds, port)
        for _ in range(clients):
            start("client", warm_ups + rounds, port)
        heard(server)
        # A pair of the server's lines frames what counts: here the warm-ups are over.
        before = _used(lifelines)
        tell(server)
        seconds = json.loads(heard(server))
        after = _used(lifelines)
        tell(server)
        cpu = [(now.cpu_s - then.cpu_s) / rounds for then, now in zip(before, after, strict=True)]
        split = 1 if direct else 2  # relay and server were started before the clients
        return Floor(
            seconds,
            sum(cpu),
            None if direct else cpu[0],
            None if direct else (after[0].written - before[0].written) / rounds,
            sum(each.peak for each in after[:split]),
            max(each.peak for each in after[split:]),
        )
    finally:
        for lifeline in lifelines:
            lifeline.close()
        for process in processes:
            process.communicate()


def _used(lifelines: list[Lifeline]) -> list[Process]:
    found = snapshot()
    return [found[pid] for lifeline in lifelines if (pid := lifeline.pid()) is not None]


async def _relay(clients: int, size: int) -> None:
    """Give everything from the server's first connection to all clients, and each client's to its own."""
    loop = asyncio.get_running_loop()
    with _listen() as listener:
        ends = await _accept(loop, listener, 2 * clients + 1)
    (model,) = ends[MODEL]
    await asyncio.gather(
        _pump(loop, model, ends[CLIENT]),
        *(_pump(loop, *pair) for pair in zip(ends[CLIENT], ([end] for end in ends[UPDATE]), strict=True)),
    )


async def _server(clients: int, size: int, warm_ups: int, rounds: int, port: int) -> None:
    loop = asyncio.get_running_loop()
    if port:
        down = [await _connect(loop, port, MODEL)]
        up = [await _connect(loop, port, UPDATE) for _ in range(clients)]
    else:
        with _listen() as listener:
            down = up = (await _accept(loop, listener, clients))[CLIENT]
    model, seconds = bytes(size), []
    scratch = [bytearray(min(size, BUFFER)) for _ in up]

    async def one_round() -> None:
        sent = [loop.sock_sendall(end, model) for end in down]
        taken = [_take(loop, end, size, buffer) for end, buffer in zip(up, scratch, strict=True)]
        await asyncio.gather(*sent, *taken)

    for _ in range(warm_ups):
        await one_round()
    _say_and_wait("warm")
    for _ in range(rounds):
        began = time.monotonic()
        await one_round()
        seconds.append(time.monotonic() - began)
    _say_and_wait(json.dumps(seconds))


async def _client(clients: int, size: int, rounds: int, port: int) -> None:
    """Answer each model, once it is here whole, with an update of the same size."""
    loop = asyncio.get_running_loop()
    end = await _connect(loop, port, CLIENT)
    model = bytearray(size)
    for _ in range(rounds):
        await _fill(loop, end, memoryview(model))
        await loop.sock_sendall(end, model)
    # The relay ends with its first lost connection; whoever started this ends it.
    await loop.sock_recv(end, 1)


async def _pump(loop: AbstractEventLoop, source: socket.socket, sinks: list[socket.socket]) -> None:
    buffer = memoryview(bytearray(BUFFER))
    while count := await loop.sock_recv_into(source, buffer):
        part = buffer[:count]
        await asyncio.gather(*(loop.sock_sendall(sink, part) for sink in sinks))


async def _take(loop: AbstractEventLoop, end: socket.socket, size: int, buffer: bytearray) -> None:
    while size:
        size -= await _some(loop, end, memoryview(buffer)[: min(size, len(buffer))])


async def _fill(loop: AbstractEventLoop, end: socket.socket, out: memoryview) -> None:
    while out:
        out = out[await _some(loop, end, out) :]


async def _some(loop: AbstractEventLoop, end: socket.socket, out: memoryview) -> int:
    if not (count := await loop.sock_recv_into(end, out)):
        raise ConnectionError("the other side ended")
    return count


def _listen() -> socket.socket:
    listener = socket.create_server(("127.0.0.1", 0), backlog=512)
    listener.setblocking(False)
    print(listener.getsockname()[1], flush=True)
    return listener


async def _accept(
    loop: AbstractEventLoop, listener: socket.socket, count: int
) -> dict[bytes, list[socket.socket]]:
    ends: dict[bytes, list[socket.socket]] = {MODEL: [], UPDATE: [], CLIENT: []}
    for _ in range(count):
        end, _ = await loop.sock_accept(listener)
        end.setblocking(False)
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        ends[await loop.sock_recv(end, 1)].append(end)
    return ends


async def _connect(loop: AbstractEventLoop, port: int, role: bytes) -> socket.socket:
    end = socket.socket()
    end.setblocking(False)
    end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    await loop.sock_connect(end, ("127.0.0.1", port))
    await loop.sock_sendall(end, role)
    return end


def _say_and_wait(line: str) -> None:
    """Let whoever started this look at all processes while none of them works."""
    print(line, flush=True)
    sys.stdin.readline()


ROLES: dict[str, Callable[..., Coroutine[Any, Any, None]]] = {
    "relay": _relay,
    "server": _server,
    "client": _client,
}


def main() -> int:
    """Measure and print one line of JSON; or be one of the processes."""
    if sys.argv[1:2] == ["--role"]:
        try:
            asyncio.run(ROLES[sys.argv[2]](*map(int, sys.argv[3:])))
        except ConnectionError:
            return 1  # the others are being stopped
        return 0
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--elements", type=int, default=25_000_000)
    parser.add_argument("--warm-ups", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--direct", action="store_true", help="without the relay")
    options = parser.parse_args()
    floor = measure(
        options.clients, options.elements, options.warm_ups, options.rounds, direct=options.direct
    )
    print(json.dumps({field: getattr(floor, field) for field in Floor.__slots__}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
