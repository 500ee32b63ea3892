"""What pages show: records of plain values that workflows fill and templates read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import quote

from ..figures.evidence import correction_curve
from ..figures.grammar import Chart
from ..measures.doubts import Direction, Doubt
from ..measures.timeline import Stretch
from .advice import Explanation
from .episode import EpisodeTable
from .findings import SetFindings
from .place import Place


@dataclass(frozen=True)
class FrameView:
    """One state of a failing episode: picture in `assets/frames`, caption, whether it is decisive.

    `text`: what the environment drew as text (`render_mode="ansi"`) instead of a picture; it stands in the table of
    steps. None: a picture. `step`: of the episode; the state in which it ended has the number of its steps.
    """

    asset: str
    caption: str
    decisive: bool
    text: str | None = None
    step: int = 0


@dataclass(frozen=True)
class RewardView:
    """One training reward on a failure's page.

    Attributes:
        group, action: its group, and the name of the action taken.
        seed, window, env, step: where it is in the run.
        reward, intended: as paid and as intended (None: not known).
        tau: effect of one more unit of this reward on the target.
        effect: predicted effect of correcting it, dr * tau; None without an intended reward.
        asset: picture of the state, or None.
    """

    group: str
    action: str
    seed: int
    window: int
    env: int
    step: int
    reward: float
    intended: float | None
    tau: float
    effect: float | None
    asset: str | None


@dataclass(frozen=True)
class StepView:
    """One step of a training episode: its number, the action's name, rewards, and a picture of the state or None."""

    number: int
    action: str
    reward: float
    intended: float | None
    asset: str | None


@dataclass(frozen=True)
class EpisodeView:
    """A training episode, drawn with its rewards before and after the correction.

    Attributes:
        reward: the most influential reward of the episode, because of which it is shown.
        steps: what is drawn of it.
        length: steps in all; None if it goes on after what was read.
    """

    reward: RewardView
    steps: Sequence[StepView]
    length: int | None


@dataclass(frozen=True)
class FailureView:
    """What a failure's page shows in addition to its entry in `verdicts.json`.

    Attributes:
        frames: pictures of the episode, one a step; empty without pictures.
        no_frames: why there are none.
        target: what the attribution's target was.
        corrections: wrong rewards whose correction is predicted to help most.
        influential: rewards of any kind with the largest influence.
        episodes: the most influential training episodes; empty unless the failure has pictures.
        timeline: influence over training time.
        steps: the episode as a table; None: not made.
    """

    frames: Sequence[FrameView]
    no_frames: str
    target: str
    corrections: Sequence[RewardView]
    influential: Sequence[RewardView]
    episodes: Sequence[EpisodeView] = ()
    timeline: Sequence[Stretch] = ()
    steps: EpisodeTable | None = None

    @property
    def pictures(self) -> Sequence[FrameView]:
        """The frames that are pictures."""
        return [frame for frame in self.frames if frame.text is None]


@dataclass(frozen=True)
class ClusterContext:
    """What the pages of a cluster and of its failures share.

    Attributes:
        number: of the cluster.
        findings: its verdict and curve.
        explanation: the verdict in words.
        edits: file with the rewards to correct, in the folder of the reports; None where there is nothing to correct.
        timeline: influence over training time, mean over its failures.
        doubts: why none of its groups is called most suspected; empty: nothing speaks against their order.
        direction: of all corrections together; None: not known, or of one of several clusters.
    """

    number: int
    findings: SetFindings
    explanation: Explanation
    edits: str | None
    timeline: Sequence[Stretch]
    doubts: Sequence[Doubt] = ()
    direction: Direction | None = None

    @property
    def page(self) -> str:
        """The cluster's page, in the folder of the reports."""
        return f"clusters/{self.number}.html"

    def own(self, chart: Chart) -> Chart:
        """Return a chart under a name of the cluster's own."""
        return replace(chart, name=f"{chart.name}-{self.number}")


@dataclass(frozen=True)
class PageContext:
    """What every page of an evaluation set shares.

    Attributes:
        task: the task as resolved.
        set_name: the evaluation set.
        unit: what the groups are called.
        findings: of the set.
        clusters: by number.
        told: in words, what the environment does not report in `info`, and what follows for the results.
        provenance: versions, git SHA and the like.
        edits: in words, the corrected rewards that the agents were trained with; None: rewards as paid.
        correction: file with the rewards to correct for the whole set; None where there is nothing to correct.
        run: the run folder, relative to the folder of the reports.
        changed: tables of the run whose contents are not those that aitia wrote.
        place: where the run is, for commands that can be pasted; None: not known.
    """

    task: Mapping[str, Any]
    set_name: str
    unit: str
    findings: SetFindings
    clusters: Mapping[int, ClusterContext]
    told: Sequence[str]
    provenance: Mapping[str, str]
    edits: str | None = None
    correction: str | None = None
    run: str = "../.."
    changed: Sequence[str] = ()
    place: Place | None = None

    def curve_of(self, cluster: ClusterContext) -> Chart | None:
        """Return a cluster's correction curve; None where nothing was trained again."""
        curve = cluster.findings.curve
        return cluster.own(correction_curve(curve, self.findings.thresholds, self.unit)) if len(curve) > 1 else None

    def influence_file(self, table: str) -> str:
        """Return a table of the influence, relative to the folder of the reports."""
        return f"{self.run}/influence/{quote(self.set_name)}/{table}.parquet"

    def window_file(self, reward: RewardView) -> str:
        """Return the transitions of the window of a training reward, relative to the folder of the reports."""
        return f"{self.run}/transitions/seed={reward.seed}/window={reward.window:05d}.parquet"


@dataclass(frozen=True)
class ClusterView:
    """What a cluster's page shows in addition to its context.

    Attributes:
        charts: by what they are of: `concentration`, `groups`, `calibration`; those that exist.
        groups: the first wrong groups by predicted effect: group, effect, interval, rate, wrong transitions a run,
            error.
        wrong_groups: number of groups with wrong rewards.
    """

    charts: Mapping[str, Chart]
    groups: Sequence[Mapping[str, Any]]
    wrong_groups: int
