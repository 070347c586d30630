"""Why a video or a segment cannot be used: the classes of a failure row, and which of them are retried."""

# These may not recur, so the next ingest retries them.
TRANSIENT = ("download", "out_of_memory")
# These are properties of the file: retried only on request.
PERMANENT = ("no_video_stream", "empty", "decode", "too_large", "timeout", "decoder_crash", "encode", "partial")


class VideoError(Exception):
    """A video that cannot be used. `error_class` is one of TRANSIENT or PERMANENT, the message is the reason."""

    def __init__(self, error_class: str, message: str):
        super().__init__(message)
        self.error_class = error_class
