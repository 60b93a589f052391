"""Postfix's smtp-source, the load of the Postfix comparison and of the ceiling: N messages, each to its own
recipient.
"""

import subprocess

from bench.servers import environment, program


def start_source(port: int, *, messages: int, size: int, sessions: int) -> subprocess.Popen[bytes]:
    """Start sending; the caller waits for it. One recipient per transaction; it knows no pipelining."""
    return subprocess.Popen(
        [
            program("smtp-source"),
            "-d",
            "-N",
            *("-s", str(sessions), "-m", str(messages), "-l", str(size)),
            *("-M", "source.example.com", "-f", "bench@example.com", "-t", "user@example.net"),
            f"127.0.0.1:{port}",
        ],
        env=environment(),
    )


def end_source(source: subprocess.Popen[bytes], *, timeout_s: float) -> None:
    """Wait for it; raises RuntimeError if it failed, TimeoutExpired (and kills it) if it hangs."""
    try:
        status = source.wait(timeout_s)
    except subprocess.TimeoutExpired:
        source.kill()
        source.wait()
        raise
    if status:
        raise RuntimeError(f"smtp-source ended with status {status}")
