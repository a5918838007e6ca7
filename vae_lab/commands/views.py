"""A workspace and a report of W&B's, in the words of wandb-workspaces, which importing this module needs."""

import re
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeVar

import wandb_workspaces.reports.v2 as wr
import wandb_workspaces.workspaces as ws
from pydantic import BaseModel

STEP, BEST = "trainer/global_step", "test/elbo"
TERMS = {"ELBO": "elbo", "KL": "kl", "reconstruction": "rec"}
PICTURES = ("reconstructions", "samples", "traversals", "manifold", "latent_scatter")
VALUES = ("test/elbo", "test/kl", "test/rec", "test/active_units")
S2, V = "likelihood.s2", "objective.V"
LIMIT = 100  # runs that are drawn in a chart
NESTED = re.compile(r"config:([\w/]+)\.value\.([\w./]+)")

View = TypeVar("View", ws.Workspace, wr.Report)


class Place(NamedTuple):
    """Where the runs are."""

    entity: str
    project: str
    group: str | None  # a sweep's; None: all


def workspace(where: Place, name: str, axes: Sequence[str]) -> ws.Workspace:
    """Curves grouped by each axis, the ELBO against s2 coloured by V, parallel coordinates, pictures."""
    sections = [
        ws.Section(name=f"Curves by {axis}", panels=curves(axis), is_open=i == 0) for i, axis in enumerate(axes)
    ]
    settings = ws.RunsetSettings(
        filters=of(where),
        pinned_columns=[*(f"config:{axis}.value" for axis in axes), *(f"summary:{value}" for value in VALUES)],
    )
    found = ws.Workspace(
        entity=where.entity,
        project=where.project,
        name=name,
        sections=[
            ws.Section(name="Results", panels=results(axes), is_open=True),
            *sections,
            ws.Section(name="Pictures", panels=[pictures()], is_open=True),
        ],
        settings=ws.WorkspaceSettings(x_axis=STEP, max_runs=LIMIT),
        runset_settings=settings,
    )
    return typed(found)


def report(where: Place, name: str, axes: Sequence[str], findings: str) -> wr.Report:
    """The findings, and the charts that show them."""
    runset = wr.Runset(name="runs", filters=of(where))  # of the report's own project
    blocks: list[Any] = [
        wr.MarkdownBlock(findings),
        wr.H2("Results"),
        wr.PanelGrid(runsets=[runset], panels=results(axes)),
    ]
    for axis in axes:
        blocks += [wr.H2(f"Curves by {axis}"), wr.PanelGrid(runsets=[runset], panels=curves(axis))]
    blocks += [wr.H2("Pictures"), wr.PanelGrid(runsets=[runset], panels=[pictures()])]
    return typed(wr.Report(entity=where.entity, project=where.project, title=name, blocks=blocks, width="fluid"))


def of(where: Place) -> str:
    """The filter of the runs that are shown."""
    return f"Metric('Group') == {where.group!r}" if where.group else ""


def curves(axis: str) -> list[Any]:
    """Each term on the validation data: the mean over the runs that share a value of the axis, and its error."""
    return [
        wr.LinePlot(
            title=f"{name} by {axis}",
            x=STEP,
            y=[f"val/{term}"],
            title_y="nats per datapoint",
            groupby=f"config.{axis}.value",
            groupby_aggfunc="mean",
            groupby_rangefunc="stderr",
            max_runs_to_show=LIMIT,
        )
        for name, term in TERMS.items()
    ]


def results(axes: Sequence[str]) -> list[Any]:
    """The ELBO against s2 coloured by V, rate and distortion, and parallel coordinates of the axes and the results."""
    colours = [
        wr.GradientPoint(color=colour, offset=o) for colour, o in (("#440154", 0), ("#21918c", 50), ("#fde725", 100))
    ]
    columns = [
        wr.ParallelCoordinatesPlotColumn(metric=wr.Config(axis), display_name=axis, log=axis == S2) for axis in axes
    ]
    columns += [
        wr.ParallelCoordinatesPlotColumn(metric=wr.SummaryMetric(value), display_name=value) for value in VALUES
    ]
    elbo, against, colour = wr.SummaryMetric(BEST), wr.Config(S2), wr.Config(V)
    rate, rec = wr.SummaryMetric("test/kl"), wr.SummaryMetric("test/rec")
    return [
        wr.ScatterPlot(title="ELBO against s2, by V", x=against, y=elbo, z=colour, log_x=True, gradient=colours),
        wr.ScatterPlot(title="rate and reconstruction, by s2", x=rate, y=rec, z=against, gradient=colours),
        wr.ParallelCoordinatesPlot(title="all of them", columns=columns, gradient=colours),
    ]


def pictures() -> wr.MediaBrowser:
    """The last pictures of each run, side by side."""
    keys = [f"pictures/{name}" for name in PICTURES]
    return wr.MediaBrowser(title="pictures", media_keys=keys, num_columns=4)


def plain(found: ws.Workspace | wr.Report) -> dict[str, Any]:
    """What is sent to W&B, as plain JSON."""
    return found._to_model().model_dump(mode="json", by_alias=True, exclude_none=True)


def typed(found: View) -> View:
    """The same view with the keys of our configuration as they are.

    To the library `objective.V` is V in a dictionary `objective`, stored as `objective.value.V`. Our keys are flat,
    as they are typed, and stored as `objective.V.value`, for which the library has a word only where runs are grouped.
    """
    model = found._to_model()
    flatten(model)
    object.__setattr__(found, "_to_model", lambda: model)
    return found


def flatten(node: object) -> None:
    """Writes every `config:a.value.b` in a model of the library's as `config:a.b.value`."""
    if isinstance(node, BaseModel):
        for name in type(node).model_fields:
            value = getattr(node, name)
            if isinstance(value, str) and (key := NESTED.fullmatch(value)):
                setattr(node, name, f"config:{key[1]}.{key[2]}.value")
            else:
                flatten(value)
    elif isinstance(node, list):
        for item in node:
            flatten(item)
