"""Judge a backbone by the protocols of sslzoo.evaluators: what `sslzoo evaluate` does."""

import json
from dataclasses import asdict, dataclass

from sslzoo import registry
from sslzoo.data import DataError
from sslzoo.evaluation import cache
from sslzoo.evaluation.results import percent
from sslzoo.evaluation.subject import Common, Subject
from sslzoo.run_folder import plain, replace_file
from sslzoo.versions import versions

__all__ = ["AllConfig", "Common", "Subject", "evaluate", "evaluate_all", "percent"]

FORMAT = 1  # of evaluation.json
OF_FEATURES = ("cluster", "knn", "linear")  # protocols that never look at an image


@dataclass
class AllConfig:
    """Options of `all`: every protocol that the data allows, each with its defaults."""

    only: tuple[str, ...] = ()
    """Protocols to run, such as [knn,linear]; empty is all of them."""
    skip: tuple[str, ...] = ()
    """Protocols to leave out, such as [finetune,semi], which train whole networks."""


def evaluate(name, subject, config):
    """Judge by one protocol and add the result to evaluation.json.

    Args:
        name: of a file in sslzoo.evaluators.
        subject: Subject.
        config: the Config of that file.

    Returns:
        Result.

    Raises:
        DataError: the data does not allow it.
    """
    module = registry.evaluator(name)
    given = "sounds" if subject.is_sound else "the raw input" if subject.common.raw else ""
    if given and name not in OF_FEATURES:
        raise DataError(
            f"{name} needs an encoder of images; {', '.join(OF_FEATURES)} judge {given}"
        )
    subject.notes, subject.used = [], {}
    result = module.evaluate(subject, config)
    result.notes = [*subject.notes, *result.notes]
    write(subject, describe(name, module, subject, config, result))
    return result


def evaluate_all(subject, config, announce=lambda name: None):
    """Each protocol's name, its Result or None, and why it was left out or None.

    Args:
        subject: Subject.
        config: AllConfig.
        announce: called with the name of a protocol before it begins.
    """
    for name in registry.evaluators():
        if name in config.skip or (config.only and name not in config.only):
            continue
        announce(name)
        module = registry.evaluator(name)
        reason = module.unsuitable(subject) if hasattr(module, "unsuitable") else None
        try:
            result = None if reason else evaluate(name, subject, module.Config())
        except DataError as error:
            result, reason = None, str(error)
        yield name, result, reason


def describe(name, module, subject, config, result):
    """What evaluation.json keeps of one evaluation."""
    options = plain(asdict(subject.common)) | plain(asdict(config))
    return {
        "protocol": name,
        "version": module.VERSION,
        "backbone": {**subject.about, "source": subject.source, "weights": subject.weights,
                     "network": network(subject.about)},
        "features": [subject.describe(layer) for layer in subject.layers],
        "device": str(subject.device.type),
        "seed": subject.seed,
        "data": subject.used,
        "options": options,
        "options_digest": cache.key_of(**options),
        "results": [row.record() for row in result.rows],
        "details": result.details,
        "notes": result.notes,
        "pictures": {key: str(path.relative_to(subject.folder))
                     for key, path in result.pictures.items()},
        "versions": versions(),
    }  # fmt: skip


def network(about):
    """Which of a method's networks is judged: the one it says, or else its only encoder."""
    known = "method" in about and not registry.is_method_file(about["method"])
    module = registry.method(about["method"]) if known else None
    return getattr(module, "JUDGED", "encoder")


def write(subject, entry):
    """Put an entry in the place of the one of the same question, or after the others."""
    path = subject.folder / "evaluation.json"
    entries = load(path) if path.exists() else []
    entries = [old for old in entries if question(old) != question(entry)] + [entry]
    content = {"format": FORMAT, "evaluations": entries}
    subject.folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(content, indent=1, allow_nan=True) + "\n"
    replace_file(path, lambda p: p.write_text(text))


def load(path):
    """The evaluations of an evaluation.json, oldest first."""
    try:
        content = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise DataError(f"{path} is no evaluation.json of sslzoo ({error})") from error
    return content["evaluations"]


def question(entry):
    """What makes two evaluations the same one, done again."""
    names = ("protocol", "version", "data", "options", "device")
    return [entry["backbone"]["weights"], *(entry[name] for name in names)]
