"""The limits of what others send and make; docs/limits.md says what to do at each.

What a user sets, such as memory, disk and the queue, is not here: see
:class:`mlxlab.server.server.Options`.
"""

from __future__ import annotations

from typing import Final

# -- Requests --------------------------------------------------------------------------

#: Bytes of a body; the API accepts the same.
BODY_BYTES: Final = 32 * 2**20
#: Values in all lists and objects of a body. One takes up to 2 KB once validated.
BODY_VALUES: Final = 250_000
#: Lists and objects inside each other. Python's own limit is near 1,000.
BODY_DEPTH: Final = 128
MESSAGES: Final = 10_000
#: Blocks in all messages, those of tool results included.
BLOCKS: Final = 20_000
TOOLS: Final = 2_000
#: Tokens of an answer or of thinking: longer than any window, and within 32 bits.
ANSWER_TOKENS: Final = 100_000_000
STOP_SEQUENCES: Final = 64
#: Characters of each.
STOP_CHARACTERS: Final = 1024
#: Characters of a text that is encoded before its tokens are counted.
LONG_TEXT: Final = 2**18
#: Pages of the live view that may be open at once.
VIEWS: Final = 16
#: Bytes of a change of settings.
CHANGE_BYTES: Final = 64 * 2**10

# -- The schema of an answer -----------------------------------------------------------

#: Bytes, without spaces.
SCHEMA_BYTES: Final = 128 * 2**10
#: Seconds of a processor, and bytes of memory (Linux), to compile and walk it.
SCHEMA_CPU_S: Final = 2
SCHEMA_MEMORY: Final = 2**30

# -- Explaining misses while serving --------------------------------------------------

#: Tokens of earlier prompts that the misses of a cache are explained from. One takes up
#: to 40 bytes in memory.
EXPLAINED_TOKENS: Final = 2**21
#: Conversations that are followed for each cache, and caches.
EXPLAINED_SEQUENCES: Final = 256
EXPLAINED_CACHES: Final = 4
#: Requests that may be named as evicting others.
EXPLAINED_REQUESTS: Final = 4096
#: Tokens of prompts that wait to be explained; a plan or commit counts as 256 more.
EXPLAINED_WAITING: Final = 2**20

# -- Models ----------------------------------------------------------------------------

#: Seconds of a processor, and in all on a busy machine, for a text of a template.
TEMPLATE_CPU_S: Final = 5
TEMPLATE_WALL_S: Final = 60
#: Bytes of that text, and of the process that makes it (Linux). Its libraries take 100
#: MiB, a long prompt four bytes a character, several times.
TEMPLATE_TEXT: Final = 64 * 2**20
TEMPLATE_MEMORY: Final = 2 * 2**30
#: Layers, blocks or experts. They are built one by one, before weights are compared.
MODEL_PARTS: Final = 10_000
#: Seconds to measure what a model's caches keep, which takes a few.
LAYOUT_S: Final = 300

# -- Files -----------------------------------------------------------------------------

#: Bytes of a line, or of a file that is read whole.
LINE_BYTES: Final = 100_000_000
#: Bytes that a packed file may unpack to.
UNPACKED_BYTES: Final = 4 << 30
#: Hashes of a request in a hashed trace: of four million tokens, each by itself.
PROMPT_HASHES: Final = 2**22
#: Numbers of the blocks in a hashed trace: readers keep a table of all.
BLOCK_NUMBERS: Final = 2**24
#: Tokens that one hash stands for.
UNIT_TOKENS: Final = 2**20
#: Characters of a stop reason or a tool's name in a hashed trace.
WORD_CHARACTERS: Final = 256
#: Tools that one answer of a hashed trace calls.
CALLS: Final = 1024
#: Lists and objects inside each other in a line of a trace.
TRACE_DEPTH: Final = 200
#: Prompt tokens that an answer may state: more than any window.
USAGE_TOKENS: Final = 2**21
#: Unix seconds of a trace: until the year 10000.
TRACE_SECONDS: Final = 253_402_300_800
#: Strings, numbers, keys or tensors in a GGUF file's header, and bytes of a string.
GGUF_VALUES: Final = 2**22
GGUF_STRING: Final = 2**24
