"""Every limit of the agent's local interfaces, each with its reason. Sizes are bytes, spans are seconds.

They keep one application from taking the memory or the time of the others; what is over a limit is refused by name.
"""

REQUEST_MAX_BYTES = 1024 * 1024
"""One request's message: a batch of BATCH_MAX_REQUESTS with a kilobyte of context each. Refused before it is read."""

QUESTION_MAX_BYTES = 131_072
"""A request about one flag, or about all of them: twice CONTEXT_MAX_BYTES. It is refused before it is decoded, since decoding a
larger one takes tens of milliseconds."""

CONTEXT_MAX_ENTRIES = 256
"""Entries of one evaluation context; flags look up a handful of them."""

CONTEXT_MAX_BYTES = 65_536
"""All keys and values of one evaluation context, as UTF-8: more is a document, not the description of an entity."""

ENTITY_ID_MAX_BYTES = 1_024
"""An entity id is hashed once or twice per evaluation and stands in no index."""

BATCH_MAX_REQUESTS = 1_000
"""Evaluations of one batch: about 20 ms on a small device."""

BATCH_AT_ONCE_BYTES = 8_192
BATCH_AT_ONCE_REQUESTS = 100
"""A batch that is answered at once, in half a millisecond, if its answer is within SLICE_BYTES. Any other one is answered in
slices."""

CONNECTIONS_MAX = 256
"""Connections open at once. Each may hold 100 calls; the process's file descriptors also serve the broker and the disk."""

USER_CONNECTIONS_MAX = CONNECTIONS_MAX // 2
"""Those of one user: an application that opens them without end leaves as many for all the others."""

ACCEPTS_MAX = 2
"""Connections accepted in one round of the loop, a third of a millisecond: a flood of them keeps nobody waiting for all of it."""

SILENT_SECONDS = 1
"""A connection without a request for so long gives way where there is no place: clients connect again by themselves."""

ERROR_MAX_CHARACTERS = 300
"""An error's text, which may repeat the caller's: gRPC clients read 8 KiB of trailers, and a character may take 12 bytes."""

REQUEST_TIMEOUT_SECONDS = 10
"""How long a caller may take to send one request's message once it has begun the call."""

SHUTDOWN_GRACE_SECONDS = 0.5
"""How long calls in progress may take when the agent stops; an evaluation takes well under a millisecond."""

SOCKET_PATH_MAX_BYTES = 107
"""A Unix socket's path on Linux: `sun_path` is 108 bytes with its end mark (unix(7))."""

SYNC_SECONDS = 30.0
"""How long a caller waits for the agent to be up to date, unless it says otherwise: a connection over a slow link takes ten."""

SYNC_MAX_SECONDS = 600.0
"""The longest such wait; a caller who waits for longer watches instead."""

SYNCS_MAX = 256
"""Calls of Sync that wait at once: one for every connection. Each holds a few kilobytes for up to SYNC_MAX_SECONDS."""

HEAD_MAX_BYTES = 16_384
"""An HTTP/1.1 request's line and headers; clients of ours send a few hundred bytes."""

HEADERS_MAX = 100
"""Headers of one request."""

STREAMS_MAX = 100
"""Calls of one HTTP/2 connection at once (RFC 9113, 6.5.2, recommends no fewer); clients queue further ones."""

FREE_FRAMES_MAX = 1_000
"""Frames of an HTTP/2 client that ask for nothing: pings, settings, resets, empty data. Clients of ours send one or two beside
a call, and each answer takes some off."""

FREE_FRAMES_PER_SECOND = 100
"""Such frames beside any number of calls: a client that measures the connection or keeps it alive sends fewer."""

READ_MAX_BYTES = 16_384
"""Bytes taken at once from an HTTP/1.1 connection: 4 ms of parsing at worst (chunks of one byte); then others have their turn."""

PIPELINED_MAX_BYTES = 65_536
"""Requests sent ahead that wait for an answer before them; beyond that, reading stops and they wait in the socket."""

UNPARSED_MAX_BYTES = HEAD_MAX_BYTES + REQUEST_MAX_BYTES + READ_MAX_BYTES
"""Bytes that the reader of HTTP/1.1 holds: the largest request, and what came with its end. More is refused, not kept."""

REQUESTS_PER_TURN = 4
"""Requests that were sent ahead and are answered in one go, under a millisecond; then other callers have their turn."""

HELD_MAX_BYTES = 32 * 1024 * 1024
"""Memory of all clients: requests not yet whole or answered, answers not yet read. Devices have 64 MB and more, and
requests and answers of applications that read are gone within milliseconds."""

HELD_SHARE_BYTES = HELD_MAX_BYTES // CONNECTIONS_MAX
"""One connection's part, never taken: over HELD_MAX_BYTES, those with more are closed, the one that has waited longest first."""

LARGE_WAITING_MAX = 32
"""Requests for all flags, and large batches, that wait for one client process: seconds of answers with 10,000 flags. More get 503
or RESOURCE_EXHAUSTED."""

LARGE_REFUSAL_SECONDS = 1
"""Time until such a request is refused, and until it may be repeated: a client without patience takes no time of the others."""

IDLE_SECONDS = 120
"""An HTTP/1.1 connection without a request: longer than Go's clients keep one (90 s), so that they close and not we."""

UNREAD_SECONDS = 30
"""A client that has not read what waits for it for so long is disconnected; it reconnects and hears everything anew."""

UNREAD_MAX_BYTES = 1024 * 1024
"""Answers that may wait for one HTTP/2 client to read them; a call beyond that is refused before its answer is made."""

BURST_MAX_BYTES = 262_144
"""Parts of answers that leave for an HTTP/2 client in one write: about what a socket takes. The rest waits, not copied."""

BATCH_ANSWER_MAX_BYTES = 4 * 1024 * 1024
"""A batch's answer: what clients of gRPC read unless they are told to read more. It is counted before it is made."""

SLICE_SECONDS = 0.0005
"""How long one HTTP/2 client's calls are answered in one go; then other callers have their turn."""

STARTED_AT_ONCE = 4
"""Calls that last which are begun in one go, or told of more: each takes up to a tenth of a millisecond in its next turn."""

SLICE_FRAMES = 256
"""Frames that ask for nothing and are read in one go: half a millisecond. Every 2 bytes of headers count as one more."""

LASTING_MAX = 1_024
"""Calls of one process that last: streams, waits, questions for all flags, large batches. An application has a few; each holds
6 KB. All clients of the TCP port count as one process."""

PENALTY_SECONDS = 0.5
"""How long nothing is read from the next connections of a process whose connection broke the protocol: connecting again and again
to do so takes no time of the others."""

HTTP2_IDLE_SECONDS = 600
"""An HTTP/2 connection without a call. Clients connect again by themselves; what they forgot to close takes no place for good."""

KEEP_ALIVE_SECONDS = 20
"""How long an event stream may be silent; clients and what stands between take a longer silence for a dead connection."""

EVENT_MAX_FLAGS = 10_000
"""Flags that one event names: under a megabyte, where gRPC clients read up to four. More go into further events."""

REMOVED_FLAGS_MAX = 10_000
"""Removed flags that a namespace remembers, for providers that may have kept an answer of one; the oldest are forgotten. As many
as one event names, so that a great cleanup is told whole: half a megabyte on disk then, and nothing where nothing is removed."""

SLICE_BYTES = 65_536
"""Attachments and segments that a batch evaluates or encodes in one go, a tenth of a millisecond: copies cost most of the time of
an answer of megabytes."""

SLICE_NAMES = 200
"""Names of flags that an event's encoding takes in one go, a fifth of a millisecond."""

SLICE_FLAGS = 50
"""Flags evaluated in one go by a batch or a question for all flags, half a millisecond; then other callers have their turn."""

SNAPSHOT_PART_BYTES = 262_144
"""Records in one message of a snapshot's stream; a single record is never larger."""

SNAPSHOTS_MAX = 4
"""Snapshots on their way to their readers at once. Each is in memory whole until it is read: 2 MB with 10,000 flags, 32 MiB where
the publisher goes to its limit."""
