"""Whether two codecs make the same codes.

A codec is identified by its weights file, but codecs whose decoders alone differ, as decoder-only
and adversarial training make them, can stand for one another. Owns that comparison, and the
refusal of a checkpoint's codec by it.
"""

import torch

from sheen.codec.info import CodecInfo, describe_codec
from sheen.codec.snac import open_codec
from sheen.storage import folders


def makes_same_codes(first: CodecInfo, location: str, second: CodecInfo, other: str) -> bool:
    """Whether two codecs, records and locations, have the same encoder and codebooks, to the bit.

    False also where one's files are not those of its record. Raises ValueError, naming the codec,
    where one cannot be opened.
    """
    if first.sha256 == second.sha256:
        return True
    with folders.local_folder(location) as one, folders.local_folder(other) as two:
        for info, folder in ((first, one), (second, two)):
            if describe_codec(str(folder)).sha256 != info.sha256:
                return False
        (model, _), (model_2, _) = open_codec(str(one)), open_codec(str(two))
    if model.vq_strides != model_2.vq_strides or model.sampling_rate != model_2.sampling_rate:
        return False
    for ours, theirs in ((model.encoder, model_2.encoder), (model.quantizer, model_2.quantizer)):
        weights, others = ours.state_dict(), theirs.state_dict()
        if weights.keys() != others.keys():
            return False
        for name, weight in weights.items():
            if not torch.equal(weight, others[name]):
                return False
    return True


def checked_codec(own: CodecInfo, location: str, given: CodecInfo | None) -> str:
    """Where to load the codec of a checkpoint from: its own `location`, or `given`'s source.

    Raises ValueError for files that are not those of the record, and for a given codec of other
    codes.
    """
    source = location if given is None else given.source
    found = describe_codec(location) if given is None else given
    if found.sha256 == own.sha256:
        return source
    if given is not None and makes_same_codes(own, location, given, source):
        return source
    raise ValueError(
        f"codec {source!r} has weights {found.sha256[:12]}, but the checkpoint was trained on "
        f"codes of {own.source!r} with weights {own.sha256[:12]}; give that codec, or one that "
        "differs in the decoder alone"
    )
