"""The model card of a checkpoint with the token ids of the Orpheus family.

Owns its text: what is needed to prompt and decode the model without Sheen. The notes come from the
command that wrote the checkpoint.
"""

from collections.abc import Sequence

from sheen.codec.info import CODEC_FOLDER
from sheen.lm.checkpoint import CheckpointInfo
from sheen.text.forms import FORMS

CARD_FILE = "README.md"


def trained_note(info: CheckpointInfo) -> str:
    """How a checkpoint from training is decoded."""
    if info.softmax == "masked":
        return (
            "It was trained with a masked softmax: a decoder must mask. At slot s only the ids of "
            "that slot are legal, and at slot 0 also the end of speech."
        )
    if info.prompt.name == "speaker-text":
        return (
            "It was trained with a full softmax: it can be decoded with or without a mask. Prompts "
            "must end with SOS, the only control token that it knows besides EOS."
        )
    return (
        "It was trained with a full softmax, including control tokens from SOA on: it can be "
        "decoded with or without a mask, and from a prompt that ends before SOA."
    )


def card(info: CheckpointInfo, notes: Sequence[str]) -> str:
    """The model card in Markdown."""
    layout = info.token_layout
    bases = ", ".join(map(str, layout.slot_bases.tolist()))
    voices = ", ".join(f"`{name}`" for name in info.voices) or "one, without a name"
    prompt = ["TEXT `{voice}: {text}` or `{text}`", "SOS"]
    if info.prompt.name != "speaker-text":
        form = FORMS[info.prompt.name]
        prompt = [f"TEXT `{form.text}`" if part == "TEXT" else part for part in form.row]
    instructed = (
        ["- Instructions: a line of their own before the text, `{instructions}\\n{text}`"]
        if info.instructions and not info.prompt.describes
        else []
    )
    lines = [
        "---",
        "library_name: transformers",
        "pipeline_tag: text-to-speech",
        "tags: [text-to-speech, snac, orpheus, sheen]",
        "---",
        "",
        "# Speech model with the token ids of Orpheus",
        "",
        f"Text to speech at {info.sample_rate} Hz, made with Sheen.",
        "",
        f"- Voices: {voices}",
        f"- Prompt (form `{info.prompt.name}`): {', '.join(prompt)}",
        *instructed,
        "- SOS, EOS, SOH, EOH, SOA, EOA, PAD are `<custom_token_1>` to `<custom_token_7>`",
        f"- Softmax in training: {info.softmax}",
        f"- Codec: SNAC `{info.codec.source}`, weights {info.codec.sha256[:12]}"
        + (f", in `{CODEC_FOLDER}/`" if info.codec.embedded else ""),
        f"- `<custom_token_0>` has id {layout.first_id}; speech starts with {layout.start_id} and "
        f"ends with {layout.end_id}",
        f"- Code c at slot s of a frame has id base(s) + c, with bases {bases}",
        "- Order of a frame: L0[i], L1[2i], L2[4i], L2[4i+1], L1[2i+1], L2[4i+2], L2[4i+3]",
        "",
        "## Notes",
        "",
        *(f"- {note}" for note in notes),
        "",
        "Sheen reads the same from `sheen.json`, and can use this folder as it is.",
    ]
    return "\n".join(lines) + "\n"
