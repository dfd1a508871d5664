"""What people touch from outside: the Python client, the command line, the local stack.

from tafdil import Client
"""

from tafdil.client import Client
from tafdil.errors import ApiError, DamagedDownload, StackError, TafdilClientError, Unreachable

__all__ = ["ApiError", "Client", "DamagedDownload", "StackError", "TafdilClientError", "Unreachable"]
