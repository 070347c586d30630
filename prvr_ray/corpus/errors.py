"""Why a video or a segment cannot be used: the classes of a failure row, and which of them are worth another try."""

# Gone by the next run, perhaps: that run tries them again by itself.
TRANSIENT = ("download", "out_of_memory", "worker_lost")
# They lie in the file: tried again only on request.
PERMANENT = ("no_video_stream", "empty", "decode", "too_large", "timeout", "decoder_crash", "encode")


class VideoError(Exception):
    """A video that cannot be used. `error_class` is one of TRANSIENT or PERMANENT, the message says what happened."""

    def __init__(self, error_class: str, message: str):
        super().__init__(message)
        self.error_class = error_class
