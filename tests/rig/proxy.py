"""A TCP proxy between two parts of the service, whose traffic can be slowed down or held back."""

import socket
import threading
import time
from contextlib import suppress


class Proxy:
    """Forwards a port of this machine.

    Attributes:
        port: where it listens.
        delay_s: seconds that it holds each piece of data back.
        is_hole: whether it keeps connections open and forwards nothing.
    """

    def __init__(self, target: int) -> None:
        self._target = target
        self.delay_s, self.is_hole = 0.0, False
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._sockets: list[socket.socket] = [self._listener]
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
                far = socket.create_connection(("127.0.0.1", self._target))
            except OSError:
                return
            self._sockets += [near, far]
            for source, target in ((near, far), (far, near)):
                threading.Thread(target=self._copy, args=(source, target), daemon=True).start()

    def _copy(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(2**16):
                time.sleep(self.delay_s)
                while self.is_hole:
                    time.sleep(0.05)
                target.sendall(data)
        for end in (source, target):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self.is_hole = False
        for each in self._sockets:
            with suppress(OSError):
                each.close()
