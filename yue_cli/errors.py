"""Errors that a user can meet: one line each, saying what, where, found, expected, what to do."""


class YueError(Exception):
    """A mistake or a limit that is reported as one line and exit code 1."""

    kind = "error"


class SettingsError(YueError):
    """A preset, a `--set` or a flag that means nothing."""

    kind = "settings"


class LyricsError(YueError):
    """Lyrics or genre text that cannot be sung."""

    kind = "lyrics"


class ContextError(YueError):
    """A prompt that does not fit into the model's context."""

    kind = "context"


class CheckpointError(YueError):
    """A model folder that is missing, incomplete or of another architecture."""

    kind = "checkpoint"


class DownloadError(YueError):
    """A model that cannot be fetched: no network, not there, not allowed, or not the file it should be."""

    kind = "download"


class EngineError(YueError):
    """An engine or a device that cannot do what is asked."""

    kind = "engine"


class OutOfMemory(EngineError):
    """A device that has too little memory for what is to be held or computed."""


class ArtifactError(YueError):
    """A file of a project folder that is missing, damaged or of another format."""

    kind = "artifact"


class AudioError(YueError):
    """Sound that cannot be read or written."""

    kind = "audio"


class PlotError(YueError):
    """A picture that cannot be drawn."""

    kind = "plot"


class StorageError(YueError):
    """A folder that cannot be written, or a disk that is full."""

    kind = "storage"


class ProjectInUseError(YueError):
    """Another process works on the same project folder."""

    kind = "in use"


class Interrupted(KeyboardInterrupt):
    """Ctrl-C, with a word about what is kept: exit code 130."""
