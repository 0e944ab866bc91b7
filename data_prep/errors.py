"""Every error a user can cause, as one tree. The command line prints them as one line, without a traceback.

VicunaError
├── ConfigError    a recipe, an override or a combination of fields is wrong
├── DataError      chats or a dataset are missing, unreadable, empty or of another tokenizer
├── ModelError     a model directory, path or hub id cannot be used
├── RunError       a training run cannot start, resume or be exported
├── ServeError     an endpoint cannot be started
├── SpotError      machines cannot be had, or not within the limits
├── EvalError      models cannot be asked or judged, or not all of it was
└── ChatError      a model that is talked with does not answer, or a saved chat cannot be read
"""


class VicunaError(Exception):
    """Base of every error whose message alone tells a user what to do."""


class ConfigError(VicunaError):
    """A setting is wrong. The message names the field, its value and what would be valid."""


class DataError(VicunaError):
    """Chats or a dataset cannot be used. The message names the file or the id."""


class ModelError(VicunaError):
    """A model cannot be used. The message names the model as the user wrote it."""


class RunError(VicunaError):
    """A training run cannot start, resume or be exported."""


class ServeError(VicunaError):
    """An endpoint cannot be started."""


class SpotError(VicunaError):
    """Machines cannot be had, or not within the limits of cost and time."""


class EvalError(VicunaError):
    """Models cannot be asked or judged, or something of it is missing. What was done is kept."""


class ChatError(VicunaError):
    """There is no answer, or no such chat. The message says why in words a person who chats understands."""
