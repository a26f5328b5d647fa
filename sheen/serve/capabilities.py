"""Capabilities of the served checkpoint: voices by name, a language, marks in a text.

Owns the names of voices and their speakers, and which settings the checkpoint follows, ignores (and
reports), or refuses. Admits nothing and speaks nothing.
"""

from collections.abc import Mapping

from sheen.engine.voice import NOT_INSTRUCTED, Voice
from sheen.serve.config import ServeArgs
from sheen.serve.errors import APIError
from sheen.serve.schema.requests import SpeechSettings
from sheen.text.delivery import Delivery
from sheen.text.lexicon import Lexicon, read_lexicon
from sheen.text.normalization import language_code
from sheen.text.ssml import Scope

UNNAMED_VOICE = "default"
"""Name of the only voice of a model that was trained without speakers."""
STANDARD_VOICES = (
    *("alloy", "ash", "ballad", "coral", "echo", "fable", "onyx"),
    *("nova", "sage", "shimmer", "verse", "marin", "cedar"),
)
"""OpenAI's voices. Some clients refuse every other name."""


class Capabilities:
    """Capabilities of one checkpoint, as far as `args` allow them to clients."""

    def __init__(self, voice: Voice, args: ServeArgs) -> None:
        """ValueError for an alias of an unknown voice, and for an invalid lexicon."""
        self._voice, self._args = voice, args
        self._lexicon = None
        if args.lexicon is not None:
            self._lexicon = read_lexicon(args.lexicon, voice.pipeline.has_phonemes)
        self.names: Mapping[str, str | None] = voice_names(voice.info.voices, args.voice_aliases)
        """Every voice name that a request may use, and its speaker."""

    @property
    def voices(self) -> list[str]:
        """The model's own voices."""
        return self._voice.info.voices or [UNNAMED_VOICE]

    @property
    def listed_voices(self) -> list[str]:
        """Every name that a request may use; empty where others may come: a request may describe
        a voice in words, or clients may upload one."""
        open_ended = self._voice.info.prompt.describes or self._args.voices_folder is not None
        return [] if open_ended else list(self.names)

    def speaker(self, name: str) -> str | None:
        """The speaker of a request's voice; for a model that accepts descriptions of voices, the
        description. APIError for an unknown voice."""
        if name not in self.names and self._voice.info.prompt.describes:
            return name
        if name not in self.names:
            known = ", ".join(self.voices) + self._voice.info.naming_voices
            raise APIError(
                400,
                f"voice: unknown voice {name[:100]!r}; this model has: {known}",
                param="voice",
                code="voice_not_found",
            )
        return self.names[name]

    def delivery(self, settings: SpeechSettings) -> Delivery:
        """The marks and words that the request's text may use; APIError for an invalid lexicon."""
        lexicons = () if self._lexicon is None else (self._lexicon,)
        if settings.lexicon:
            try:
                own = Lexicon(settings.lexicon, self._voice.pipeline.has_phonemes)
            except ValueError as error:
                raise APIError(
                    400, f"lexicon: {error}", param="lexicon", code="invalid_lexicon"
                ) from error
            lexicons = (own, *lexicons)
        return Delivery(
            lexicons,
            self._voice.pipeline.tags,
            self._args.unknown_tags == "refuse",
        )

    def scope(self, settings: SpeechSettings, speaker: str | None) -> Scope:
        """The names that the request's SSML may use."""
        pipeline = self._voice.pipeline
        return Scope(
            speaker,
            self.names,
            pipeline.has_phonemes,
            pipeline.tags,
            settings.speed,
            self._args.unknown_tags == "refuse",
        )

    def instruction(self, settings: SpeechSettings) -> str | None:
        """The request's instructions, for the prompt; None where the model follows none."""
        return settings.instructions if self._voice.info.follows_instructions else None

    def ignored(self, settings: SpeechSettings, cloned: bool) -> tuple[str, ...]:
        """Names of fields that the model cannot follow; APIError where `args` refuse them.
        `cloned`: the request's voice is that of a recording."""
        follows = self._voice.info.follows_instructions
        foreign = dict(settings.foreign)
        met = {"Base": cloned, "VoiceDesign": follows}  # vLLM-Omni's kinds of voices
        kind = foreign.get("task_type")
        if not isinstance(kind, str) or met.get(kind, True):
            foreign.pop("task_type", None)
        if not settings.instructions or follows:
            return tuple(foreign)
        if self._args.instructions == "refuse":
            raise APIError(
                400,
                f"instructions: {NOT_INSTRUCTED}",
                param="instructions",
                code="instructions_not_supported",
            )
        return ("instructions", *foreign)


def check_language(asked: str | None, spoken: str | None) -> None:
    """Raise APIError for a code or a name of another language than `spoken`, the one that a model's
    texts are normalized as. Accepts any where `spoken` is None, and a request without a
    language."""
    code = language_code(asked or "")
    if spoken is not None and code not in ("", "auto", spoken):
        raise APIError(
            400,
            f"language: {asked!r} was asked for, this model speaks {spoken}",
            param="language",
            code="language_not_supported",
        )


def voice_names(voices: list[str], aliases: dict[str, str]) -> dict[str, str | None]:
    """Every voice name that a request may use, and its speaker.

    The model's own names, those of `aliases`, and OpenAI's, which the model's voices have in turn.
    ValueError for an alias of an unknown voice.
    """
    own: dict[str, str | None] = {name: name for name in voices}
    if not voices:
        own = {UNNAMED_VOICE: None}
    names = list(own)
    for alias, name in aliases.items():
        if name not in own:
            raise ValueError(
                f"args.voice_aliases: {alias} means {name}, and this model has {', '.join(own)}"
            )
    standard = {
        name: own[names[number % len(names)]] for number, name in enumerate(STANDARD_VOICES)
    }
    return standard | {alias: own[name] for alias, name in aliases.items()} | own
