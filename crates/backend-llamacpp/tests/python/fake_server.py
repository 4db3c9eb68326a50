"""A llama-server that goes wrong as FAULT says. It speaks the part of the protocol that the backend uses."""

import json, os, signal, socket, sys, threading, time

FAULT = os.environ.get("FAULT", "")
HELP = "--api-key --slot-save-path --no-kv-unified --ubatch-size --parallel --slots"
if "--version" in sys.argv:
    print("version: 9999 (fake)" if FAULT != "other program" else "a program")
    sys.exit(0)
if "--help" in sys.argv:
    print("\n".join(HELP.split()[: 2 if FAULT == "old" else None]))
    sys.exit(0)
if "--list-devices" in sys.argv:
    print("Available devices:\n  (none)")
    sys.exit(0)

# " Paris" and "." of SmolLM2.
TOKENS = [(7042, " Paris"), (30, ".")]


def head(connection, status, body=b"", kind="application/json"):
    connection.sendall(
        f"HTTP/1.1 {status} X\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode() + body
    )


def event(connection, value):
    line = b"data: " + json.dumps(value).encode() + b"\n\n"
    connection.sendall(f"{len(line):x}\r\n".encode() + line + b"\r\n")


def parts(connection):
    for number, (token, text) in enumerate(TOKENS):
        event(connection, {"content": text, "tokens": [token], "stop": False, "tokens_predicted": number + 1})


def completion(connection, request):
    if FAULT == "out of memory":
        return head(connection, 500, json.dumps({"error": {"message": "failed to allocate buffer", "type": "server_error"}}).encode())
    if FAULT == "html":
        return head(connection, 500, b"<html>", "text/html")
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
    event(connection, {"content": "", "tokens": [0], "prompt_progress": {"total": 2, "cache": 1, "processed": 2}, "tokens_predicted": 0})
    parts(connection)
    if FAULT == "crash":
        print("GGML_ASSERT(buffer) failed", file=sys.stderr, flush=True)
        os.kill(os.getpid(), signal.SIGSEGV)
        # Another thread may get the signal, a moment later.
        time.sleep(1e6)
    if FAULT == "hang":
        time.sleep(1e6)
    if FAULT == "cut":
        return
    if FAULT == "error":
        event(connection, {"error": {"message": "Compute error.", "type": "server_error"}})
    if FAULT == "garbage":
        line = b"\x00\xff{]\n"
        connection.sendall(f"{len(line):x}\r\n".encode() + line + b"\r\n")
    event(connection, {"content": "", "tokens": [], "stop": True, "stop_type": "limit", "tokens_predicted": 2, "timings": {"cache_n": 1}})
    connection.sendall(b"0\r\n\r\n")


def serve(connection):
    with connection:
        data = b""
        while b"\r\n\r\n" not in data:
            more = connection.recv(65536)
            if not more:
                return
            data += more
        top, body = data.split(b"\r\n\r\n", 1)
        lines = top.decode().split("\r\n")
        path = lines[0].split(" ")[1]
        fields = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines[1:])}
        while len(body) < int(fields.get("content-length", 0)):
            body += connection.recv(65536)
        if path == "/health":
            return head(connection, 503 if FAULT == "never loaded" else 200, b"{}")
        if fields.get("authorization") != "Bearer " + os.environ["LLAMA_API_KEY"]:
            return head(connection, 401, b"{}")
        if path == "/v1/models":
            return head(connection, 200, json.dumps({"data": [{"meta": {"n_vocab": 49152}}]}).encode())
        if path == "/slots":
            return head(connection, 200, json.dumps([{"n_ctx": 1 << 20}]).encode())
        if path == "/completion":
            return completion(connection, json.loads(body))
        head(connection, 404, b"{}")


if FAULT == "crash while loading":
    print("llama_model_load: error loading model: tensor data is not within the file bounds", file=sys.stderr, flush=True)
    sys.exit(1)
if FAULT == "out of memory while loading":
    print("llama_kv_cache: failed to allocate buffer for kv cache", file=sys.stderr, flush=True)
    sys.exit(1)
listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[sys.argv.index("--host") + 1])
listener.listen(16)
if "ALIVE" in os.environ:
    # Whoever reads this to its end knows that every process that was started is gone.
    alive = os.open(os.environ["ALIVE"], os.O_WRONLY)
    os.write(alive, f"{os.getpid()}\n".encode())
while True:
    threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()
