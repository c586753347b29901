# SPDX-License-Identifier: GPL-3.0-or-later
"""The engine process: loads one GGUF file with llama.cpp and prints the loopback port it serves on.

Runs under the interpreter and module path of the engine (Python 3.11 or newer), not under the daemon's.
"""

import json
import os
import sys
import threading


def _end_with_parent():
    sys.stdin.buffer.read()
    os._exit(0)


def main():
    """Serve until standard input ends."""
    settings = json.loads(sys.argv[1])
    threading.Thread(target=_end_with_parent, daemon=True).start()
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = settings["model"]
    params.n_parallel = settings["parallel"]
    params.kv_unified = settings["unified"]
    # Without a unified cache every slot has the whole context to itself.
    params.n_ctx = settings["context"] * (1 if settings["unified"] else settings["parallel"])
    params.n_batch = settings["batch"]
    params.cpuparams.n_threads = 1
    params.cpuparams_batch.n_threads = 1
    params.n_threads_http = settings["parallel"] + 2
    params.fit_params = False
    params.cache_ram_mib = 0
    if settings["embedding"]:
        params.embedding = True
        params.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN
    server = xllamacpp.Server(params)
    print(server.listening_address.rsplit(":", 1)[1], flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    main()
