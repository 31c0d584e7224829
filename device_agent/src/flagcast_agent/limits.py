"""Every limit of the agent's local interfaces, each with its reason. Sizes are bytes, spans are seconds.

They keep one application from taking the memory or the time of the others; what is over a limit is refused by name.
"""

REQUEST_MAX_BYTES = 1024 * 1024
"""One request's message: a batch of BATCH_MAX_REQUESTS with a kilobyte of context each. Refused before it is read."""

CONTEXT_MAX_ENTRIES = 256
"""Entries of one evaluation context; flags look up a handful of them."""

CONTEXT_MAX_BYTES = 65_536
"""All keys and values of one evaluation context, as UTF-8: more is a document, not the description of an entity."""

ENTITY_ID_MAX_BYTES = 1_024
"""An entity id is hashed once or twice per evaluation and stands in no index."""

BATCH_MAX_REQUESTS = 1_000
"""Evaluations of one batch: about 20 ms on a small device, for which every other caller waits."""

CONNECTIONS_MAX = 256
"""Connections open at once. Each may hold 100 calls; the process's file descriptors also serve the broker and the disk."""

ERROR_MAX_CHARACTERS = 300
"""An error's text, which may repeat the caller's: gRPC clients read 8 KiB of trailers, and a character may take 12 bytes."""

REQUEST_TIMEOUT_SECONDS = 10
"""How long a caller may take to send one request's message once it has begun the call."""

SHUTDOWN_GRACE_SECONDS = 0.5
"""How long calls in progress may take when the agent stops; an evaluation takes well under a millisecond."""

SOCKET_PATH_MAX_BYTES = 107
"""A Unix socket's path on Linux: `sun_path` is 108 bytes with its end mark (unix(7))."""
