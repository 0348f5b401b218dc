"""What softmax attention keeps between steps."""

from lengthwise.caches.chunked import ChunkedCache
from lengthwise.caches.full import FullCache
from lengthwise.caches.routed import RoutedCache
from lengthwise.caches.selective import SelectiveCache
from lengthwise.caches.source import SourceCache
from lengthwise.caches.windowed import WindowedCache
from lengthwise.contract import State

CACHES: dict[str, type[State]] = {
    "full": FullCache,
    "windowed": WindowedCache,
    "selective": SelectiveCache,
    "chunked": ChunkedCache,
    "source": SourceCache,
    "routed": RoutedCache,
}
"""The caches by name."""
