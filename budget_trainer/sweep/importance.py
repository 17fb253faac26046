"""Which parameters made the difference: PED-ANOVA of Optuna, with the pruned trials counted as worse than the finished ones.

PED-ANOVA (Watanabe, Bansal and Hutter, IJCAI 2023) asks only which trials are among the best, and compares how their parameters
are spread with how those of all trials are. So a pruned trial, which has no final objective but was behind, can be counted,
where fANOVA would have to fit its value. Trials that the end of the time cut are left out: nobody knows how good they were.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

from budget_trainer.sweep.ranking import has_value, sign, value
from budget_trainer.sweep.records import SweepRecord
from budget_trainer.sweep.searched import searched

if TYPE_CHECKING:
    import optuna

BEST = 0.3  # the share of the trials that PED-ANOVA compares with all of them
LEAST_FINISHED, LEAST = 4, 10  # below this the answer is chance
METHOD = "PED-ANOVA"


def importance(record: SweepRecord, study: optuna.Study) -> tuple[dict[str, float], str | None]:
    """Parameter -> share of the importance (together 1), the largest first; or nothing, and why in one line."""
    import optuna

    if sum(parameter.varies for parameter in searched(record.space)) < 2:
        return {}, "not computed: one parameter was searched, so the differences are its, or of chance"
    ours = {trial.number: trial for trial in record.trials if has_value(trial) or trial.state == "pruned"}
    ends = [value(trial) for trial in ours.values() if has_value(trial)]
    if len(ends) < LEAST_FINISHED or len(ours) < LEAST:
        return {}, (
            f"not computed: {METHOD} needs at least {LEAST_FINISHED} finished trials and {LEAST} finished or pruned ones; "
            f"here are {len(ends)} and {len(ours)}"
        )
    direction = sign(record)
    worse = max(direction * end for end in ends) + 1.0
    ranks = _new_study()
    for trial in study.get_trials(deepcopy=False):
        if trial.number in ours:
            mine = ours[trial.number]
            rank = direction * value(mine) if has_value(mine) else worse
            varied = {name: dist for name, dist in trial.distributions.items() if not dist.single()}
            params = {name: trial.params[name] for name in varied}
            ranks.add_trial(optuna.trial.create_trial(params=params, distributions=varied, value=rank))
    counted = ranks.get_trials(deepcopy=False)
    best = min(BEST, len(ends) / len(counted))
    if best == 1.0:
        best = BEST
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # experimental, and equal shares where nothing differs: said below
        evaluator = optuna.importance.PedAnovaImportanceEvaluator(target_quantile=best)
        found = optuna.importance.get_param_importances(ranks, evaluator=evaluator, normalize=False)
    total = sum(found.values())
    if not total > 0:
        return {}, "not computed: the best trials lie where all the others do"
    return {name: share / total for name, share in found.items()}, None


def _new_study() -> optuna.Study:
    """One in memory, of which nothing is said: it is no study of the user's."""
    import optuna

    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        return optuna.create_study(sampler=optuna.samplers.RandomSampler())
    finally:
        optuna.logging.set_verbosity(before)
