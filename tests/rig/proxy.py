"""A TCP proxy between two parts of the service, whose traffic can be slowed down, held back or lost at one end."""

import socket
import struct
import threading
import time
from contextlib import suppress

_TICK_S = 0.02
# Closing a socket with this sends a reset, not an end: the other side learns that the connection is lost.
_RESET = struct.pack("ii", 1, 0)


class _Pair:
    """One connection, and the one behind it."""

    def __init__(self, near: socket.socket, far: socket.socket) -> None:
        self.near, self.far = near, far
        self.is_lost = self.is_reset = False

    def close(self) -> None:
        for end in (self.far,) if self.is_reset else (self.near, self.far):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def lose(self) -> None:
        """Makes the connection half-open: the far end is gone, and the near one, which nothing tells, stays open."""
        self.is_lost = True
        with suppress(OSError):
            self.far.shutdown(socket.SHUT_RDWR)

    def reset(self) -> None:
        """Ends a half-open connection as the kernel does when its probes go unanswered."""
        self.is_lost, self.is_reset = False, True
        with suppress(OSError):
            self.near.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            # Wakes the thread that reads, and sends nothing.
            self.near.shutdown(socket.SHUT_RD)


class Proxy:
    """Forwards a port of this machine.

    A hole takes new connections too, as a peer does whose machine answers but whose process does not.

    Attributes:
        port: where it listens.
        delay_s: seconds that it holds each piece of data back.
        is_hole: whether it keeps connections open and forwards nothing.
    """

    def __init__(self, target: int) -> None:
        self._target = target
        self.delay_s, self.is_hole = 0.0, False
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        self._pairs: set[_Pair] = set()
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def lose_connections(self) -> int:
        """Makes every connection half-open; new ones work. Returns how many there were."""
        pairs = [pair for pair in list(self._pairs) if not pair.is_lost]
        for pair in pairs:
            pair.lose()
        return len(pairs)

    def mend(self) -> None:
        """Forwards as before. Half-open connections are reset."""
        self.delay_s, self.is_hole = 0.0, False
        for pair in list(self._pairs):
            if pair.is_lost:
                pair.reset()

    def close(self) -> None:
        self.mend()
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for pair in list(self._pairs):
            pair.close()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            try:
                far = socket.create_connection(("127.0.0.1", self._target))
            except OSError:
                near.close()
                continue
            for end in (near, far):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            pair = _Pair(near, far)
            self._pairs.add(pair)
            threading.Thread(target=self._serve, args=(pair,), daemon=True).start()

    def _serve(self, pair: _Pair) -> None:
        back = threading.Thread(target=self._copy, args=(pair, pair.far, pair.near), daemon=True)
        back.start()
        self._copy(pair, pair.near, pair.far)
        back.join()
        self._pairs.discard(pair)
        for end in (pair.near, pair.far):
            with suppress(OSError):
                end.close()

    def _copy(self, pair: _Pair, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(2**16):
                if pair.is_lost:
                    continue
                if self.delay_s:
                    time.sleep(self.delay_s)
                while self.is_hole:
                    time.sleep(_TICK_S)
                target.sendall(data)
        if source is pair.near:
            pair.is_lost = False
        while pair.is_lost:
            time.sleep(_TICK_S)
        pair.close()
