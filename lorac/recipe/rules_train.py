"""Settings of the optimiser, the learning rate and the loss that contradict each other or would have no effect."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from lorac.recipe.arithmetic import step_rules, warmup_steps
from lorac.recipe.optimisers import OPTIMISERS, has_relative_step
from lorac.recipe.places import Finding
from lorac.recipe.positions import KeyPath
from lorac.recipe.schema import Document
from lorac.recipe.sections.loss import Loss
from lorac.recipe.sections.network import Network
from lorac.recipe.sections.train import Train

Rule = Callable[[Document], Iterator[Finding]]

_WITHOUT_WARMUP = ("constant", "piecewise_constant")
_OF_SCHEDULERS = {
    "lr_scheduler_timescale": ("inverse_sqrt",),
    "lr_scheduler_min_lr_ratio": ("cosine_with_min_lr", "warmup_stable_decay"),
    "lr_scheduler_step_rules": ("piecewise_constant",),
    "lr_decay_steps": ("warmup_stable_decay",),
}
_NEEDED = {
    "piecewise_constant": ("lr_scheduler_step_rules", '"1:1000,0.1"'),
    "cosine_with_min_lr": ("lr_scheduler_min_lr_ratio", "0.1"),
    "warmup_stable_decay": ("lr_decay_steps", "0.2"),
}


def _warmup(document: Document) -> Iterator[Finding]:
    train, at = document.train, ("train", "lr_warmup_steps")
    warmup, decay = train.lr_warmup_steps, train.lr_decay_steps
    if train.lr_scheduler in _WITHOUT_WARMUP and warmup:
        other = 'choose lr_scheduler = "constant_with_warmup", or ' if train.lr_scheduler == "constant" else ""
        yield Finding(at, f'the scheduler "{train.lr_scheduler}" has no warm-up', f"{other}take lr_warmup_steps out")
    elif isinstance(warmup, int) and train.steps is not None and warmup > train.steps:
        cause = f"the warm-up of {warmup} steps is longer than the run of {train.steps}"
        yield Finding(at, cause, "give fewer steps, or a share of the run such as 0.05")
    elif train.lr_scheduler == "warmup_stable_decay" and train.steps is not None:
        both = warmup_steps(warmup, train.steps) + warmup_steps(decay, train.steps)
        if both > train.steps:
            cause = f"lr_warmup_steps and lr_decay_steps take {both} steps, and the run has {train.steps}"
            yield Finding(("train", "lr_decay_steps"), cause, "give fewer steps, or shares of the run such as 0.05")


def _scheduler(document: Document) -> Iterator[Finding]:
    train = document.train
    for name, schedulers in _OF_SCHEDULERS.items():
        if getattr(train, name) not in (None, 0) and train.lr_scheduler not in schedulers:
            cause = f'{name} has no effect with the scheduler "{train.lr_scheduler}"'
            wanted = " or ".join(f'"{scheduler}"' for scheduler in schedulers)
            yield Finding(("train", name), cause, f"take it out, or choose lr_scheduler = {wanted}")
    if train.lr_scheduler in _NEEDED:
        name, example = _NEEDED[train.lr_scheduler]
        if getattr(train, name) in (None, 0):
            cause = f'the scheduler "{train.lr_scheduler}" needs {name}'
            yield Finding(("train", "lr_scheduler"), cause, f"add {name} = {example}")


def _step_rules(document: Document) -> Iterator[Finding]:
    text = document.train.lr_scheduler_step_rules
    try:
        step_rules(text or "1")
    except ValueError:
        cause = f'lr_scheduler_step_rules cannot be read: "{text}"'
        remedy = 'give factors with the steps they end at, then the last factor, such as "1:100,0.1:200,0.01"'
        yield Finding(("train", "lr_scheduler_step_rules"), cause, remedy)


def _deterministic(document: Document) -> Iterator[Finding]:
    if document.train.deterministic and document.train.attention == "xformers":
        cause = "the attention of xformers is not deterministic on all cards"
        yield Finding(("train", "attention"), cause, 'choose "sdpa" or "math", or take deterministic out')
    if document.train.deterministic and document.train.compile:
        cause = "what torch.compile makes may change from one machine to the next"
        yield Finding(("train", "compile"), cause, "take out compile or deterministic")


def _optimizer_args(document: Document) -> Iterator[Finding]:
    train = document.train
    known = OPTIMISERS[train.optimizer]
    for name, value in train.optimizer_args.items():
        at = ("train", "optimizer_args", name)
        wanted = known.arguments.get(name)
        if name in ("weight_decay", "betas", "eps", "lr"):
            own = "learning_rate" if name == "lr" else name
            yield Finding(at, f"{name} is no key of optimizer_args", f"write {own} into [train]")
        elif wanted is None:
            names = ", ".join(known.arguments)
            cause = f'the optimiser "{train.optimizer}" has no setting "{name}"'
            yield Finding(at, cause, f"its settings are {names}" if names else "take it out; it has none")
        elif type(value) not in ((int, float) if wanted is float else (wanted,)):
            words = {bool: "true or false", int: "a whole number", float: "a number"}
            yield Finding(at, f"{name} in optimizer_args is {_shown(value)}", f"give {words[wanted]}")
    for name in known.lacks:
        if getattr(train, name) is not None:
            yield Finding(("train", name), f'the optimiser "{train.optimizer}" has no {name}', "take it out")


def _shown(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else f'"{value}"' if isinstance(value, str) else f"{value}"


def _schedule_free(document: Document) -> Iterator[Finding]:
    train = document.train
    if train.optimizer != "adamw_schedule_free":
        return
    if train.lr_scheduler not in ("constant", "constant_with_warmup"):
        cause = f'adamw_schedule_free takes the place of a scheduler, and lr_scheduler is "{train.lr_scheduler}"'
        yield Finding(("train", "lr_scheduler"), cause, 'choose "constant" or "constant_with_warmup"')
    if train.ema_decay:
        cause = "ema_decay averages what adamw_schedule_free averages already"
        yield Finding(("train", "ema_decay"), cause, "take ema_decay out")
    if document.network.scale_weight_norms is not None:
        cause = "scale_weight_norms does not reach the average that adamw_schedule_free writes"
        yield Finding(("network", "scale_weight_norms"), cause, "take it out, or choose another optimizer")


def _prodigy(document: Document) -> Iterator[Finding]:
    train = document.train
    if train.optimizer != "prodigy":
        return
    rates = {f"{part}_lr": getattr(train, f"{part}_lr") for part in document.network.targets}
    used = {name: train.learning_rate if rate is None else rate for name, rate in rates.items()}
    low = min((rate for rate in used.values() if rate), default=1.0)
    if low < 0.1:
        at = next((name for name, rate in rates.items() if rate == low), "learning_rate")
        cause = f"prodigy finds the learning rate by itself and multiplies it by {low:g}"
        yield Finding(("train", at), cause, f"give {at} = 1")
    elif len({*used.values()} - {0.0}) > 1:
        cause = "prodigy has one learning rate for all, and text_encoder_lr differs from unet_lr"
        at = next(name for name in sorted(rates) if rates[name] is not None)
        yield Finding(("train", at), cause, "give only learning_rate, or 0 for one of them")
    if found := next(_factors_on_rates(train, document.network), None):
        yield Finding(found, f"prodigy has one learning rate for all, and {found[1]} gives others", "take it out")


def _factors_on_rates(train: Train, network: Network) -> Iterator[tuple[str, str]]:
    for section, names in (
        (train, ("loraplus_lr_ratio", "loraplus_unet_lr_ratio", "loraplus_text_encoder_lr_ratio")),
        (network, ("down_lr_weight", "mid_lr_weight", "up_lr_weight")),
    ):
        for name in names:
            if getattr(section, name) is not None:
                yield ("train" if section is train else "network", name)


def _adafactor(document: Document) -> Iterator[Finding]:
    train = document.train
    if not has_relative_step(train.optimizer, train.optimizer_args):
        return
    for name in ("text_encoder_lr", "unet_lr"):
        if getattr(train, name) is not None:
            cause = f"adafactor makes its own learning rates, so {name} has no effect"
            remedy = "take it out, or set relative_step = false in optimizer_args"
            yield Finding(("train", name), cause, remedy)
    if train.lr_scheduler != "constant":
        cause = f'adafactor makes its own learning rates, so lr_scheduler = "{train.lr_scheduler}" has no effect'
        remedy = 'choose "constant", or set relative_step = false in optimizer_args'
        yield Finding(("train", "lr_scheduler"), cause, remedy)


def _huber(document: Document) -> Iterator[Finding]:
    loss = document.loss
    huber = loss.loss_type in ("huber", "smooth_l1")
    for name, default in (("huber_schedule", "snr"), ("huber_c", 0.1), ("huber_scale", 1.0)):
        if getattr(loss, name) != default and not huber:
            cause = f'{name} has no effect with loss_type = "{loss.loss_type}"'
            yield Finding(("loss", name), cause, 'take it out, or choose loss_type = "huber"')
    if huber and loss.huber_scale != 1.0 and loss.huber_schedule == "snr":
        cause = 'huber_scale has no effect with huber_schedule = "snr"'
        remedy = 'take it out, or choose huber_schedule = "exponential" or "constant"'
        yield Finding(("loss", "huber_scale"), cause, remedy)


def _noise(document: Document) -> Iterator[Finding]:
    loss = document.loss
    for name, needed in (
        ("noise_offset_random_strength", "noise_offset"),
        ("adaptive_noise_scale", "noise_offset"),
        ("ip_noise_gamma_random_strength", "ip_noise_gamma"),
    ):
        if getattr(loss, name) and not getattr(loss, needed):
            example = "0.05" if needed == "noise_offset" else "0.1"
            cause = f"{name} has no effect without {needed}"
            yield Finding(("loss", name), cause, f"add {needed} = {example}, or take {name} out")


def _prediction(document: Document) -> Iterator[Finding]:
    loss = document.loss
    if loss.v_parameterization is not None:  # else it is the base's, see `contradictions`
        yield from contradictions(loss, loss.v_parameterization, bool(loss.zero_terminal_snr))


def contradictions(loss: Loss, v_parameterization: bool, zero_terminal_snr: bool) -> Iterator[Finding]:
    """Settings that do not go with what the base predicts, which lowering knows where the recipe does not say it."""
    if loss.scale_v_pred_loss_like_noise_pred and not v_parameterization:
        cause = "scale_v_pred_loss_like_noise_pred is for bases that predict v, and this one predicts noise"
        remedy = "take it out, or set v_parameterization = true if the base does predict v"
        yield Finding(("loss", "scale_v_pred_loss_like_noise_pred"), cause, remedy)
    if loss.v_pred_like_loss and v_parameterization:
        cause = "v_pred_like_loss is for bases that predict noise, and this one predicts v"
        yield Finding(("loss", "v_pred_like_loss"), cause, "take it out")
    if zero_terminal_snr and not v_parameterization:
        cause = "a base that predicts noise learns nothing at a last timestep of pure noise (zero_terminal_snr)"
        remedy = "set v_parameterization = true, or zero_terminal_snr = false"
        yield Finding(("loss", "zero_terminal_snr"), cause, remedy)


TRAIN_RULES: dict[Rule, list[KeyPath]] = {
    _warmup: [("train", "lr_scheduler")],
    _scheduler: [("train", name) for name in ("lr_scheduler", *_OF_SCHEDULERS)],
    _step_rules: [],
    _deterministic: [],
    _optimizer_args: [("train", "optimizer")],
    _schedule_free: [("train", "lr_scheduler")],
    _prodigy: [("network", "targets"), *(("train", name) for name in ("learning_rate", "unet_lr", "text_encoder_lr"))],
    _adafactor: [("train", "optimizer_args"), ("train", "lr_scheduler")],
    _huber: [("loss", "loss_type"), ("loss", "huber_schedule")],
    _noise: [("loss", "noise_offset"), ("loss", "ip_noise_gamma")],
    _prediction: [],
}
