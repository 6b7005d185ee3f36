"""When a source gives up: it must get to its streams, and then go on from failure to success."""

from __future__ import annotations

from cbframe.errors import BucketNotFoundError, CbframeError, ClusterMapError


class Patience:
    """The two waits of a source that can fail, in seconds of any monotonic clock."""

    def __init__(self, connect_timeout: float, recovery_timeout: float, *, endless: bool = False) -> None:
        self._connect_timeout = connect_timeout
        self.recovery_timeout = recovery_timeout
        self._started_at = 0.0
        self._streaming = False
        self._endless = endless
        self._failing_since: float | None = None
        self._failed_at = 0.0
        self._gone_since: float | None = None

    def begin(self, now: float) -> None:
        """The source starts, or has come nearer to its streams."""
        self._started_at = now

    def deadline(self) -> float | None:
        """When the streams must have been asked for; None once there was progress."""
        return None if self._streaming else self._started_at + self._connect_timeout

    def progressed(self) -> None:
        """Something useful came, or all streams were asked for: failures count from here on."""
        self._streaming = True
        self._failing_since = None

    def exhausted_by_failure(self, now: float) -> bool:
        """Take note of a failure; whether it is one too many."""
        if not self._streaming:
            return False  # the deadline counts
        long_ago = self._endless and now - self._failed_at > self.recovery_timeout
        self._failed_at = now
        if self._failing_since is None or long_ago:
            self._failing_since = now
        return now - self._failing_since > self.recovery_timeout

    def lost_bucket(self, error: CbframeError, now: float) -> bool:
        """Whether a map that could not be had is the end of any source.

        One without an end outlives much, but not its bucket.
        """
        if isinstance(error, ClusterMapError):
            return error.permanent
        if not isinstance(error, BucketNotFoundError):
            return False
        if self._gone_since is None:
            self._gone_since = now
        return now - self._gone_since > self.recovery_timeout

    def found_bucket(self) -> None:
        """There is a map: the bucket is there."""
        self._gone_since = None
