"""kohya's settings become a recipe's: most one by one under their schema's name, the others in `special.py`."""

from __future__ import annotations

from collections.abc import Mapping

from lorac.migrate.draft import Draft
from lorac.migrate.names import AT, SAME, UNNEEDED, UNSUPPORTED, words
from lorac.migrate.special import SPECIAL, Arguments
from lorac.migrate.values import put, unknown

PICTURE_ARGUMENTS = words(
    """
    train_data_dir reg_data_dir dataset_config caption_prefix alpha_mask caption_extention
    """
)
"""Those that `pictures.py` and `dataset.py` read."""


def carry(arguments: Arguments, draft: Draft, shown: Mapping[str, str] = {}) -> None:
    """Put each argument into the draft, or leave it with a reason. `shown` are the names that the user knows."""
    for name, value in arguments.items():
        if value is None or value == "" or value == [] or name in PICTURE_ARGUMENTS:
            continue
        word = shown.get(name, name)
        if name in SPECIAL:
            SPECIAL[name](draft, word, value, arguments)
        elif name in SAME:
            put(draft, AT[name], word, value)
        elif name in UNNEEDED or name in UNSUPPORTED:
            if value is not False:
                draft.leave(word, value, UNNEEDED.get(name) or UNSUPPORTED[name])
        else:
            draft.leave(word, value, unknown(name, [*SAME, *SPECIAL, *PICTURE_ARGUMENTS, *UNNEEDED, *UNSUPPORTED]))
    _agree(draft)


def _agree(draft: Draft) -> None:
    """What kohya lets contradict itself: a warm-up with the scheduler that has none, epochs beside steps."""
    scheduler = draft.get("train", "lr_scheduler") or ("constant" if draft.preset is None else None)
    if scheduler == "constant" and draft.get("train", "lr_warmup_steps"):
        draft.put("train", "lr_scheduler", "constant_with_warmup", 'kohya stops at "constant" with a warm-up')
    if draft.get("train", "epochs") is not None and draft.get("train", "steps") is not None:
        steps = draft.sections["train"].pop("steps").value
        draft.leave("max_train_steps", steps, "kohya lets max_train_epochs win")
    train = draft.sections.get("train", {})
    if train.get("base") is None:
        for key in ("resolution", "min_bucket_reso", "max_bucket_reso", "bucket_reso_steps"):
            if key in train:
                draft.leave(f"train.{key}", train.pop(key).value, "no base is named; add it with your base")
