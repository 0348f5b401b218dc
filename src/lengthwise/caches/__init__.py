"""What softmax attention keeps between steps."""

from lengthwise.caches.chunked import ChunkedCache
from lengthwise.caches.full import FullCache
from lengthwise.caches.windowed import WindowedCache
from lengthwise.contract import State

CACHES: dict[str, type[State]] = {"full": FullCache, "windowed": WindowedCache, "chunked": ChunkedCache}
"""The caches by name."""
