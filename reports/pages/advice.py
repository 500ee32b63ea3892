"""A verdict for a reader who has never seen the project: two sentences, what would change it, what to do next.

Everything follows from the findings; this module decides nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ...datasets.outcomes import SeedRates
from ...datasets.words import counted
from ..measures.learning import AS_PAID, Change, Learning, change_in_words
from ..statistics import Interval, percent, rate_interval, seeds_for_lower_end
from ..verdict.rules import Verdict, open_margin
from ..verdict.words import title_of
from .findings import SetFindings


@dataclass(frozen=True)
class Surroundings:
    """What advice depends on in addition to the findings.

    Attributes:
        train_kwargs, test_kwargs: arguments of the environment in training and in the evaluation set.
        coverage: arguments that were tried as more varied levels; None: not tried.
        worst: contexts whose episodes misbehave most with rewards as paid.
        corrected: of the correction that is written to a file: how many groups; None without one.
        correction: what the agents trained with it do; None if that was not verified.
        learning: outcomes over training; None: not known.
        costs: of training longer, and of more seeds; None: not known.
    """

    train_kwargs: Mapping[str, Any] = field(default_factory=dict)
    test_kwargs: Mapping[str, Any] = field(default_factory=dict)
    coverage: Mapping[str, Any] | None = None
    worst: Sequence[str] = ()
    corrected: int | None = None
    correction: Interval | None = None
    learning: Learning | None = None
    costs: Costs | None = None


@dataclass(frozen=True)
class Costs:
    """What trainings of this run cost.

    Attributes:
        agents, retrained: agents of the ensemble, and agents that verify trained.
        seeds: seeds that those were trained with.
        train, verify: wall-clock seconds of the two stages, with the workers that there were.
    """

    agents: int
    retrained: int
    seeds: int
    train: float
    verify: float

    def longer(self) -> str:
        """Say what twice the steps cost: every agent is trained again, for twice as long."""
        return f"{counted(self.agents + self.retrained, 'training')}, {_duration(2 * (self.train + self.verify))}"

    def more_seeds(self, seeds: int) -> str:
        """Say what further seeds cost: each is an agent, and as many retrainings as the seeds so far have."""
        each = round(self.retrained / self.seeds) if self.seeds else 0
        ratio = seeds * each / self.retrained if self.retrained else 0.0
        seconds = seeds * self.train / max(self.agents, 1) + ratio * self.verify
        return f"{counted(seeds * (1 + each), 'training')}, {_duration(seconds)}"


def _duration(seconds: float) -> str:
    if seconds < 600:
        return f"about {max(seconds, 1.0):.0f} s"
    return f"about {seconds / 60:.0f} min" if seconds < 36_000 else f"about {seconds / 3600:.0f} h"


@dataclass(frozen=True)
class Explanation:
    """A verdict in words.

    Attributes:
        title: the verdict.
        sentences: two plain sentences with its numbers.
        would_change: what evidence would lead to another verdict.
        next_steps: what to do, in this order.
    """

    title: str
    sentences: tuple[str, str]
    would_change: str
    next_steps: tuple[str, ...]


def explain(findings: SetFindings, around: Surroundings, verdict: str | None = None) -> Explanation:
    """Put a verdict into words.

    Args:
        findings: of the set, or of a cluster.
        around: what advice depends on in addition to them.
        verdict: of the set, where it is not the findings' own (no failures, or a tie between clusters).
    """
    decision = findings.decision
    title = title_of(decision.verdict, decision.basis)
    if verdict is not None and verdict != decision.verdict:
        return Explanation(
            title_of(Verdict(verdict), None),
            (
                f"Of the competent plays {decision.uncorrected.as_percent()} misbehave.",
                "There is no failure to explain, or no verdict that most failures have.",
            ),
            "There would be a failure to explain if the first play of a test episode ended misbehaved.",
            ("Evaluate more episodes: raise evaluation.episodes in the task and run it again.",),
        )
    steps = (*_train_longer(findings, around), *_next_steps(findings, around))
    return Explanation(title, _sentences(findings), _would_change(findings), steps)


def _sentences(findings: SetFindings) -> tuple[str, str]:
    decision, limits = findings.decision, findings.thresholds
    before, after, share = (
        interval.as_percent() for interval in (decision.uncorrected, decision.all_corrected, decision.outer_share)
    )
    pairs = len(findings.evidence.paired()[0])
    misbehave = f"Of the competent plays {_whole(findings).as_percent()} misbehave with the rewards as paid."
    retrained = (
        f"Trained again with every wrong reward corrected, {after} of the competent plays misbehave, against {before} "
        f"with the rewards as paid ({counted(pairs, 'paired seed')})."
    )
    reason = decision.reasons[-1] if decision.reasons else ""
    match decision.rule:
        case 1:
            return "The agents observe more reward than an untampered channel would show.", reason
        case 2:
            return "The agents do nothing that the task declares, desired or not, more often than chance.", reason
        case 3:
            competent = percent(_mean([rates.competent for rates in findings.evidence.uncorrected]))
            upper = f"the upper end of that interval is under {limits.aligned:.0%}"
            return misbehave, f"There is nothing to explain: {upper}, and {competent} of all plays are competent."
        case 4:
            return misbehave, (
                f"The lower end of that interval is under {limits.recurs:.0%}, and the cause of a failure that rare or "
                "unsteady cannot be read off a few retrainings."
            )
        case 5 if findings.evidence.arbitrary:
            return (
                "Nobody says which rewards are wrong, so rewards of the groups with the largest predicted effects were "
                "set to an end of the range of rewards seen, as hypothetical edits.",
                reason,
            )
        case 5:
            return misbehave, reason
        case 6:
            return misbehave, (
                f"No training reward differs from the intended one by more than {limits.wrong_reward:g}, so rewards "
                "did not cause it: what is left is inductive bias, and the levels it was trained on."
            )
        case 7:
            return retrained, reason
        case 8:
            return retrained, (
                f"The correction removes {share} of the misbehaviour, more than the {limits.outer_share:.0%} above "
                "which incorrect rewards are its main cause."
            )
        case 9:
            return retrained, (
                f"The correction removes {share} of the misbehaviour, less than the {limits.inner_share:.0%} below "
                "which inductive bias (with the levels it was trained on) is its main cause."
            )
        case 10:
            return retrained, (
                f"The correction removes {share} of the misbehaviour, between {limits.inner_share:.0%} and "
                f"{limits.outer_share:.0%}, so rewards and inductive bias each cause a good part."
            )
    margin = open_margin(findings.evidence, limits)
    if margin is None or not findings.evidence.corrected or pairs < limits.seeds:
        return misbehave, reason
    return retrained, (
        f"The correction removes {share} of the misbehaviour, and the seeds spread too widely to say whether that is "
        f"more than {limits.outer_share:.0%}, less than {limits.inner_share:.0%}, or between."
    )


def _would_change(findings: SetFindings) -> str:
    decision, limits = findings.decision, findings.thresholds
    start, now = decision.uncorrected.value or 0.0, decision.all_corrected.as_percent()
    outer, inner = percent((1 - limits.outer_share) * start), percent((1 - limits.inner_share) * start)
    match decision.rule:
        case 1:
            return (
                f"It would not be called tampering if the difference were under {limits.tampering:.0%} of the range of "
                "training returns, or as large for a random policy."
            )
        case 2:
            return (
                "It would be judged further if one declared outcome happened more often than the upper end of a random "
                "policy's rate; more test episodes narrow that end."
            )
        case 3:
            return f"It would have to be explained if the upper end were {limits.aligned:.0%} or more."
        case 4:
            return f"Its cause would be looked for if the lower end were at least {limits.recurs:.0%}."
        case 5 if decision.verdict is Verdict.OUTER:
            return (
                "It would be undetermined if random edits of the same size prevented the misbehaviour too, or if the "
                "edits cost competence; an intended reward would replace these hypothetical edits by corrections."
            )
        case 5:
            return (
                "It would be outer if few edits prevented the misbehaviour with competence kept and random edits of "
                "the same size did not; an intended reward would replace hypothetical edits by corrections."
            )
        case 6:
            return (
                "It would be judged by retraining if a training reward differed from the intended one: check that "
                "info['intended_reward'] is what you would have paid, also in situations you did not think of."
            )
        case 7:
            return (
                f"The rates would decide if the corrected agents kept {limits.keep_desired:.0%} of the desired rate on "
                f"training episodes and {limits.keep_competence:.0%} of the competent plays at test."
            )
        case 8:
            return (
                f"It would not be called outer if more than {outer} of the competent plays still misbehaved after the "
                f"correction (now {now}), or if the correction cost competence."
            )
        case 9:
            return (
                f"It would not be called inner if fewer than {inner} of the competent plays misbehaved after the "
                f"correction (now {now})."
            )
    return (
        f"It would be outer if clearly fewer than {outer} of the competent plays misbehaved after the correction (now "
        f"{now}), and inner if clearly more than {inner} did."
    )


def _next_steps(findings: SetFindings, around: Surroundings) -> tuple[str, ...]:
    decision = findings.decision
    if decision.verdict is Verdict.OUTER:
        return _correct(findings, around)
    if decision.verdict is Verdict.MIXED:
        return (*_correct(findings, around), *_vary(findings, around))
    if decision.verdict is Verdict.INNER:
        return _vary(findings, around)
    match decision.rule:
        case 1:
            return ("Protect the reward channel; neither outer nor inner describes this failure.",)
        case 2:
            return ("Train longer, or fix the training set-up: there is no competent misbehaviour to explain.",)
        case 3:
            return ("Nothing has to be corrected for this evaluation set; evaluate harder ones.",)
        case 5:
            return ("Let the environment tell info['intended_reward'] at every step: what should have been paid.",)
        case 7:
            return ("Train the corrected agents to the competence of the others (more steps), then verify again.",)
    return (_more_seeds(findings),)


def _train_longer(findings: SetFindings, around: Surroundings) -> tuple[str, ...]:
    """Say, of what is not determined, that agents are still learning; nothing where they are not, or it is not known.

    Rule 4 speaks of the agents as they are: corrected ones have no part in it.
    """
    decision, learning = findings.decision, around.learning
    if learning is None or decision.verdict not in (Verdict.UNDETERMINED, Verdict.CAPABILITY_FAILURE):
        return ()
    still = [change for change in learning.still if decision.rule > 4 or change.agents == AS_PAID]
    if not still:
        return ()
    words = "; ".join(map(change_in_words, still))
    step = (
        f"Still {'improving' if _improving(still) else 'changing'}: over the last third of training {words}. More "
        "steps before more seeds: raise agent.total_timesteps in the task and run it into a new folder"
    )
    if around.costs is None:
        return (f"{step}.",)
    seeds = _seeds_wanted(findings)
    longer = f"{step}. Twice as many would cost {around.costs.longer()}"
    if seeds is None:
        return (f"{longer}; more seeds would not decide.",)
    return (f"{longer}; {counted(seeds, 'more seed')} would cost {around.costs.more_seeds(seeds)}.",)


def _improving(still: Sequence[Change]) -> bool:
    """Return whether the desired share clearly rises in all agents that still change, and no share gets worse.

    Fewer misbehaving episodes are no improvement where only others, of no declared outcome, take their place.
    """
    rises = {(change.agents, change.kind): (change.change.value or 0.0) > 0 for change in still}
    worse = any(up != (kind == "desired") for (_, kind), up in rises.items() if up or kind == "desired")
    return not worse and all((change.agents, "desired") in rises for change in still)


def _seeds_wanted(findings: SetFindings) -> int | None:
    """Return how many more seeds would decide; None where no number would, as far as is known.

    Where too little is known to say, it is as many as the fewest for a verdict.
    """
    evidence, limits = findings.evidence, findings.thresholds
    rates = _rates(evidence.uncorrected)
    if findings.decision.rule == 4:
        have, needed = len(evidence.uncorrected), seeds_for_lower_end(rates, limits.recurs)
        can_tell = len(rates) > 1
    else:
        have, margin = len(evidence.paired()[0]), open_margin(evidence, limits) if evidence.corrected else None
        needed = None if margin is None else margin.seeds
        can_tell = margin is not None and have >= limits.seeds
    if needed is None and can_tell:
        return None
    return max(max(needed or 0, limits.seeds) - have, 1) if needed or have < limits.seeds else limits.seeds


def _correct(findings: SetFindings, around: Surroundings) -> tuple[str, ...]:
    """Say which rewards to correct."""
    if findings.decision.basis == "arbitrary":
        return (
            "Look at the edited groups (the edits file lists them): are their rewards what you would have paid? If you "
            "can say, let the environment tell info['intended_reward'].",
        )
    if around.corrected is None:
        return ("Correct the wrong rewards and train again; the cluster's page lists their groups.",)
    left = "" if around.correction is None else f", which leaves {around.correction.as_percent()} misbehaving"
    which = "every wrong reward" if findings.decision.verdict is Verdict.MIXED else "the smallest verified set"
    return (f"Correct the rewards of {counted(around.corrected, 'group')} ({which}{left}): the edits file lists them.",)


def _vary(findings: SetFindings, around: Surroundings) -> tuple[str, ...]:
    """Say which levels and architectures to vary."""
    steps = []
    tried = next((each for each in findings.budgets if each.kind == "coverage"), None)
    differing = [
        f"{key} ({around.train_kwargs.get(key, 'default')} in training, {around.test_kwargs.get(key, 'default')} here)"
        for key in sorted({*around.train_kwargs, *around.test_kwargs})
        if around.train_kwargs.get(key) != around.test_kwargs.get(key)
    ]
    if tried is not None:
        effect = "removes it" if tried.removes else "does not remove it"
        levels = ", ".join(f"{key}: {value}" for key, value in (around.coverage or {}).items())
        steps.append(
            f"More varied levels ({levels}) were tried: {tried.misbehaviour.as_percent()} of the competent plays then "
            f"misbehave, which {effect}."
        )
    elif differing:
        steps.append(
            f"Vary the training levels towards the evaluation set's: {'; '.join(differing)}. verify.coverage in the "
            "task measures what that removes."
        )
    else:
        steps.append("Vary the training levels; verify.coverage in the task measures what that removes.")
    if around.worst:
        steps.append(f"Look at what the levels that misbehave most have in common: {', '.join(around.worst)}.")
    factorial = findings.factorial
    if factorial is not None:
        best = int(factorial.rates[:, 1].argmin())
        steps.append(
            f"Of the inductive biases tried, “{factorial.biases[best]}” misbehaves least "
            f"({percent(float(factorial.rates[best, 1]))})."
        )
    else:
        steps.append(
            "Vary observations and architecture: list them under biases in the task (such as another net_arch in "
            "policy_kwargs); aitia verify trains each and says which share it carries."
        )
    return tuple(steps)


def _more_seeds(findings: SetFindings) -> str:
    """Say how many seeds would decide."""
    decision, limits, evidence = findings.decision, findings.thresholds, findings.evidence
    seeds = len(evidence.uncorrected)
    if decision.rule == 4:
        rates = _rates(evidence.uncorrected)
        needed = seeds_for_lower_end(rates, limits.recurs)
        if len(rates) < 2:
            return (
                f"Train at least {counted(limits.seeds, 'seed')} (now {seeds}): one says nothing of the spread between "
                "seeds. Raise seeds in the task and run it again; what is finished is kept."
            )
        if needed is None:
            return (
                "More seeds do not help at this rate: evaluate episodes in which the failure recurs, or train an agent "
                "that has it."
            )
        return (
            f"Train more seeds: with this rate and spread {counted(max(needed, limits.seeds), 'seed')} in all "
            f"(now {seeds}) would "
            "lift the lower end. Raise seeds in the task and run it again; what is finished is kept."
        )
    if not evidence.corrected:
        return "Run aitia verify: it trains agents again with corrected rewards."
    margin = open_margin(evidence, limits)
    again = "Raise seeds and verify.seeds in the task and run it again; what is finished is kept."
    paired = len(evidence.paired()[0])
    if margin is None or paired < limits.seeds:
        return f"Train at least {counted(limits.seeds, 'paired seed')} that play competently (now {paired}). {again}"
    many = "more than 1000" if margin.seeds is None else f"about {margin.seeds}"
    return (
        f"Train more seeds: {many} in all (now {paired}) would decide whether it removes {margin.label}, with a power "
        f"of 90%. {again}"
    )


def _whole(findings: SetFindings) -> Interval:
    return rate_interval(_rates(findings.evidence.uncorrected))


def _rates(seeds: Sequence[SeedRates]) -> list[float]:
    return [rates.misbehaviour for rates in seeds if rates.misbehaviour is not None]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
