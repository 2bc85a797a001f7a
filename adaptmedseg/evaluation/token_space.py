"""A map of a model's tokens: learnt ones, and task tokens after they looked at images; anatomy and modality shown."""

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import matplotlib
import numpy as np
import numpy.typing as npt
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from adaptmedseg.data.prepared import PreparedCase
from adaptmedseg.data.registry import default_registry
from adaptmedseg.errors import UserError
from adaptmedseg.evaluation import style
from adaptmedseg.inference.loading import LoadedModel
from adaptmedseg.inference.segmenter import CropSegmenter
from adaptmedseg.models.adapted import AdaptedSegVol
from adaptmedseg.models.prompts import text_prompts

TASKS, MODALITIES, POSTERIOR = "task tokens", "modality tokens", "task tokens after fusion, one dot an image"
SIDES = ("left ", "right ")
ANY = ""


@dataclass(frozen=True, eq=False)
class Token:
    """One token: which panel shows it, its task (or none), its modality (or none), its image, and its vector (c,)."""

    panel: str
    task: str
    modality: str
    case: str
    vector: npt.NDArray[np.float64]


def learnt_tokens(model: AdaptedSegVol) -> list[Token]:
    """The tokens that the model's file holds. UserError for a model without any."""
    tasks, modalities = _tables(model)
    found = [Token(TASKS, name, ANY, ANY, row) for name, row in zip(model.tasks, tasks, strict=True)]
    for name, rows in zip(model.modalities, modalities, strict=True):
        found += [Token(MODALITIES, ANY, name, ANY, row) for row in rows]
    return found


def _tables(model: AdaptedSegVol) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Task tokens (t, c) and modality tokens (m, l, c)."""
    if model.priors is not None:
        pool = model.priors.pool
        return pool.task_prior[:-1].detach().double().numpy(), pool.modality_prior.detach().double().numpy()
    if model.prompt_tokens is not None:
        tokens = model.prompt_tokens
        return tokens.task_token.detach().double().numpy(), tokens.modality_token.detach().double().numpy()[:, None]
    raise UserError("the adapter has no tokens; give one with context priors or prompt tokens")


@torch.inference_mode()
def posterior_tokens(
    loaded: LoadedModel,
    cases: Sequence[PreparedCase],
    device: torch.device,
    progress: Callable[[int, int], None] | None = None,
) -> list[Token]:
    """Task tokens after fusion with each image, for the structures annotated there.

    Raises:
        UserError: a model without fusion, or cases without a structure or modality of its.
    """
    model = loaded.model
    if not isinstance(model, AdaptedSegVol) or model.priors is None:
        raise UserError(f"the model ({loaded.lineage}) has no fusion that images could pass; leave out --data")
    segmenter = CropSegmenter(model.to(device), loaded.size, loaded.resize, device)
    found = []
    for done, case in enumerate(cases, 1):
        names = sorted((name for name in case.annotated if name in model.tasks), key=model.tasks.index)
        if names and case.modality in model.modalities:
            segmenter.set_crop(case.image(loaded.normalisation_of(case.modality)), case.modality)
            prompts = text_prompts([names], [case.modality]).to(device)
            table, modality = model.vocabulary.task_table(prompts), model.vocabulary.modality_index(prompts)
            with model.adapters.applied([model.name]):
                tokens = model.priors.fuse(segmenter.view_embedding, table.tasks, modality)[1]
            rows = tokens[0, : len(names)].double().cpu().numpy()
            found += [Token(POSTERIOR, n, case.modality, case.id, row) for n, row in zip(names, rows, strict=True)]
        if progress is not None:
            progress(done, len(cases))
    if not found:
        raise UserError(
            "none of the cases has a structure and a modality that the adapter has tokens for; it knows "
            f"{', '.join(model.tasks)} on {', '.join(model.modalities)}"
        )
    return found


def principal_components(vectors: npt.NDArray[np.float64]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Coordinates (n, 2) on the first two principal components of vectors (n, c), and each one's share of variance.

    Signs are such that the largest weight of a component is positive; missing components are zero.
    """
    centred = vectors - vectors.mean(0)
    u, s, v = np.linalg.svd(centred, full_matrices=False)
    coordinates, shares = np.zeros((len(vectors), 2)), np.zeros(2)
    total = float((s**2).sum())
    for i in range(min(2, len(s))):
        sign = np.sign(v[i, np.abs(v[i]).argmax()]) or 1.0
        coordinates[:, i] = sign * u[:, i] * s[i]
        shares[i] = s[i] ** 2 / total if total else 0.0
    return coordinates, shares


def anatomy(task: str) -> str:
    """What has a colour: left and right of a pair share one; the heart's chambers, no mirror images, have their own."""
    registry = default_registry()
    if registry.knows_structure(task) and registry.mirror(task) == task:
        return task
    return next((task[len(side) :] for side in SIDES if task.startswith(side)), task)


@dataclass(frozen=True)
class TokenMap:
    """The figure as PNG, and its points as CSV."""

    png: bytes
    csv: str


def map_tokens(tokens: Sequence[Token]) -> TokenMap:
    """One panel a kind of token, each with principal components of its own."""
    panels = list(dict.fromkeys(token.panel for token in tokens))
    kinds = sorted({anatomy(token.task) for token in tokens if token.task})
    modalities = sorted({token.modality for token in tokens if token.modality})
    palette = matplotlib.colormaps["tab20"].colors  # type: ignore[attr-defined]
    colours = {name: palette[i % len(palette)] for i, name in enumerate(kinds)}
    markers = {name: style.marker(i) for i, name in enumerate(modalities)}
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["panel", "task", "modality", "case", "pc1", "pc2"])
    with style.settings():
        figure = Figure(figsize=(5.2 * len(panels), 4.6), layout="constrained")
        for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
            members = [token for token in tokens if token.panel == panel]
            places, shares = principal_components(np.stack([token.vector for token in members]))
            _draw(axes, panel, members, places, shares, colours, markers)
            for token, (x, y) in zip(members, places, strict=True):
                writer.writerow([panel, token.task, token.modality, token.case, f"{x:.6g}", f"{y:.6g}"])
        legend = [Line2D([], [], color=c, marker="o", linestyle="", label=name) for name, c in colours.items()]
        legend += [Line2D([], [], color=style.MUTED, marker=m, linestyle="", label=n) for n, m in markers.items()]
        figure.legend(handles=legend, loc="outside lower center", ncols=max(1, 3 * len(panels)), frameon=False)
        image = io.BytesIO()
        figure.savefig(image, format="png", dpi=150, metadata={"Software": None})
    return TokenMap(image.getvalue(), text.getvalue())


def _draw(
    axes: Axes,
    panel: str,
    members: Sequence[Token],
    places: npt.NDArray[np.float64],
    shares: npt.NDArray[np.float64],
    colours: dict[str, tuple[float, float, float]],
    markers: dict[str, str],
) -> None:
    for token, (x, y) in zip(members, places, strict=True):
        colour = colours[anatomy(token.task)] if token.task else style.MUTED
        axes.plot(x, y, linestyle="", marker=markers.get(token.modality, "o"), color=colour, markersize=6, alpha=0.85)
        if panel == TASKS:
            axes.annotate(token.task, (x, y), xytext=(5, 3), textcoords="offset points", fontsize=7)
    axes.set_title(panel, fontsize=10)
    axes.set_xlabel(f"component 1 ({shares[0]:.0%} of the variance)")
    axes.set_ylabel(f"component 2 ({shares[1]:.0%})")
