"""What a request may ask of this checkpoint: voices by name, a language, marks in its text.

Owns the names of voices and whom they mean, and which settings the checkpoint follows, ignores by
name, or refuses. Admits nothing and speaks nothing.
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
"""What a model that was trained without speakers calls its one voice."""
STANDARD_VOICES = (
    *("alloy", "ash", "ballad", "coral", "echo", "fable", "onyx"),
    *("nova", "sage", "shimmer", "verse", "marin", "cedar"),
)
"""OpenAI's voices. Some clients refuse every other name."""


class Capabilities:
    """Of one checkpoint, as `args` let clients use it."""

    def __init__(self, voice: Voice, args: ServeArgs) -> None:
        """ValueError for an alias of no voice, and a lexicon that cannot be used."""
        self._voice, self._args = voice, args
        self._lexicon = None
        if args.lexicon is not None:
            self._lexicon = read_lexicon(args.lexicon, voice.pipeline.has_phonemes)
        self.names: Mapping[str, str | None] = voice_names(voice.info.voices, args.voice_aliases)
        """Every name that a request may use, and the speaker it means."""

    @property
    def voices(self) -> list[str]:
        """The model's own voices."""
        return self._voice.info.voices or [UNNAMED_VOICE]

    @property
    def listed_voices(self) -> list[str]:
        """Every name that a request may use; none where it may describe any other voice."""
        return [] if self._voice.info.prompt.describes else list(self.names)

    def speaker(self, name: str) -> str | None:
        """The speaker that a request's voice means, which may describe itself in words."""
        if name not in self.names and self._voice.info.prompt.describes:
            return name
        if name not in self.names:
            raise APIError(
                400,
                f"voice: unknown voice {name[:100]!r}; this model has: {', '.join(self.voices)}",
                param="voice",
                code="voice_not_found",
            )
        return self.names[name]

    def delivery(self, settings: SpeechSettings) -> Delivery:
        """What the request's text may ask for; APIError for a lexicon that cannot be used."""
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
            self._args.max_pause_s,
            lexicons,
            self._voice.pipeline.tags,
            self._args.unknown_tags == "refuse",
        )

    def scope(self, settings: SpeechSettings, speaker: str | None) -> Scope:
        """What the request's SSML may name."""
        pipeline = self._voice.pipeline
        return Scope(speaker, self.names, pipeline.has_phonemes, pipeline.tags, settings.speed)

    def instruction(self, settings: SpeechSettings) -> str | None:
        """What the model is told of how to say the text."""
        return settings.instructions if self._voice.info.follows_instructions else None

    def ignored(self, settings: SpeechSettings) -> tuple[str, ...]:
        """Fields that the model cannot follow; APIError where `args` say to refuse them."""
        if not settings.instructions or self._voice.info.follows_instructions:
            return ()
        if self._args.instructions == "refuse":
            raise APIError(
                400,
                f"instructions: {NOT_INSTRUCTED}",
                param="instructions",
                code="instructions_not_supported",
            )
        return ("instructions",)


def check_language(asked: str | None, spoken: str | None) -> None:
    """APIError for a code or a name of another language than the one that a model's texts are
    normalized as; None where that is none, or nothing is asked."""
    code = language_code(asked or "")
    if spoken is not None and code not in ("", "auto", spoken):
        raise APIError(
            400,
            f"language: {asked!r} was asked for, this model speaks {spoken}",
            param="language",
            code="language_not_supported",
        )


def voice_names(voices: list[str], aliases: dict[str, str]) -> dict[str, str | None]:
    """Every name that a request may use, and the speaker it means.

    The model's own, those of `aliases`, and OpenAI's, which go round the model's voices. ValueError
    for an alias of a voice that the model has not.
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
