"""Doubles for tests of programs that use cbframe, and of cbframe itself."""

from cbframe.testing.capella import LocalCapella
from cbframe.testing.proxy import FaultProxy
from cbframe.testing.receiver import FakeClock, RecordingReceiver, ScriptedTransport

__all__ = ["FakeClock", "FaultProxy", "LocalCapella", "RecordingReceiver", "ScriptedTransport"]
