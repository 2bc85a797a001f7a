"""What a model can be asked, and how to say afterwards how it was asked."""

from __future__ import annotations

from adaptmedseg.errors import UserError
from adaptmedseg.inference.loading import LoadedModel
from adaptmedseg.inference.prompt_file import PromptSet, StructurePrompts, text_prompt_set
from adaptmedseg.inference.prompt_origin import NONE, TASK_TOKEN, TEXT, USER_BOX, USER_POINTS, joined
from adaptmedseg.models.adapted import AdaptedSegVol
from adaptmedseg.models.unet import ReferenceUNet


def task_tokens(loaded: LoadedModel, modality: str) -> list[str]:
    """The structures that have a task token for images of a modality."""
    model = loaded.model
    if not isinstance(model, AdaptedSegVol) or not model.has_tokens or not model.is_adapted(modality):
        return []
    return list(model.tasks)


def _acts_through_names(loaded: LoadedModel) -> bool:
    """Whether task tokens change what a name says, and nothing without one (prompt tokens without context priors)."""
    return isinstance(loaded.model, AdaptedSegVol) and loaded.model.priors is None


def uses_token(loaded: LoadedModel, modality: str, structure: str, named: bool) -> bool:
    """Whether the model's own token for a structure has a say in its answer, asked by name or without one."""
    return structure in task_tokens(loaded, modality) and (named or not _acts_through_names(loaded))


def automatic_prompts(loaded: LoadedModel, modality: str) -> PromptSet:
    """Everything that the model knows by itself: its task tokens (with their names, as in training) or its outputs.

    Raises:
        UserError: it has to be told what to segment.
    """
    known = task_tokens(loaded, modality)
    if isinstance(loaded.model, ReferenceUNet):
        known = list(loaded.model.structures)
    if not known:
        raise UserError(
            f"the model ({loaded.lineage}) has no task tokens for {modality} and must be told what to segment; give "
            "--structures NAMES or --prompts FILE"
        )
    return text_prompt_set(known, "automatic mode")


def check_prompts(loaded: LoadedModel, modality: str, prompts: PromptSet) -> None:
    """UserError where a model cannot be asked in this way."""
    tokens = task_tokens(loaded, modality)
    fixed = isinstance(loaded.model, ReferenceUNet)
    for index, entry in enumerate(prompts.prompts):
        place = prompts.place(index)
        if fixed and (entry.points or entry.box or not entry.text):
            raise UserError(f"{place}: a U-Net has fixed outputs and takes no points or boxes; ask it by name alone")
        if entry.task and entry.structure not in tokens:
            known = f"task tokens only for {', '.join(tokens)}" if tokens else f"no task tokens for {modality}"
            raise UserError(f"{place}: task is true, but the model has {known}; leave task out")
        if entry.task and not entry.text and _acts_through_names(loaded):
            raise UserError(
                f"{place}: this adapter's task tokens act through names; set text to true or leave task out"
            )
        if entry.task is False and entry.structure in tokens:
            raise UserError(
                f"{place}: task is false, but this adapter always uses its task token; leave task out, or ask the base"
            )


def prompt_origin(loaded: LoadedModel, modality: str, entry: StructurePrompts) -> str:
    """How a structure was asked, for example "text + task token + user box"."""
    if isinstance(loaded.model, ReferenceUNet):
        return NONE
    ways = {
        TEXT: entry.text,
        TASK_TOKEN: uses_token(loaded, modality, entry.structure, entry.text),
        USER_POINTS: bool(entry.points),
        USER_BOX: entry.box is not None,
    }
    return joined(way for way, used in ways.items() if used)
