"""llama.cpp's own HTTP server, as the wheel has it, until it is told to end.

serve.py WEIGHTS PORT SLOTS TOKENS_PER_SLOT
"""

import signal
import sys

import xllamacpp

WEIGHTS, PORT, SLOTS, TOKENS = sys.argv[1], *map(int, sys.argv[2:])

params = xllamacpp.CommonParams()
params.model.path = WEIGHTS
params.hostnames = ["127.0.0.1"]
params.port = PORT
params.n_parallel = SLOTS
params.n_ctx = SLOTS * TOKENS
params.kv_unified = False
params.cpuparams.n_threads = 2
params.cpuparams_batch.n_threads = 2
server = xllamacpp.Server(params)
print(server.listening_address, flush=True)
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
signal.pause()
