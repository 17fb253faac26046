"""Published rows of GLUE: which scores others report, on which split, and who says so. Standard library only.

Scores are points of 100 by column (`results.ALL_COLUMNS`). Dev and test rows are never compared with each other: a model's
dev scores are the best of its checkpoints on those very rows, and both scales differ by up to a few points.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

_IZSAK = "Izsak et al., EMNLP 2021 (arXiv 2104.07705)"
_DEVLIN = "Devlin et al., NAACL 2019 (arXiv 1810.04805), table 1"
_WETTIG = "Wettig et al., EACL 2023 (arXiv 2202.08005), README of princeton-nlp/DinkyTrain"
_ISSUE_18 = "IntelLabs/academic-budget-bert, issue 18"
_WETTIG_SETTING = "24 layers, pre-LN, 23,000 steps of 4,096 x 128 tokens"


@dataclass(frozen=True)
class Published:
    """A row of dev or of test scores.

    `unstated` are columns whose metric the source does not name: shown, but neither compared nor averaged.

    MNLI, where a source gives one number, stands at MNLI-m.
    """

    name: str
    scores: Mapping[str, float]
    setting: str
    source: str
    unstated: tuple[str, ...] = ()
    note: str = ""

    def comparable(self) -> dict[str, float]:
        return {name: value for name, value in self.scores.items() if name not in self.unstated}


def _row(mnli_m: float, mnli_mm: float, qqp: float, qnli: float, sst2: float, *rest: float) -> dict[str, float]:
    names = ("MNLI-m", "MNLI-mm", "QQP", "QNLI", "SST-2", "CoLA", "STS-B", "MRPC", "RTE")
    return dict(zip(names, (mnli_m, mnli_mm, qqp, qnli, sst2, *rest), strict=True))


DEV = (
    Published(
        "24hBERT recipe, 15 % masked",
        {"MNLI-m": 83.7, "QNLI": 90.4, "QQP": 87.8, "SST-2": 93.2},
        f"{_WETTIG_SETTING}; 80/10/10",
        _WETTIG,
        unstated=("QQP",),
        note="MNLI is one number",
    ),
    Published(
        "24hBERT recipe, 40 % masked",
        {"MNLI-m": 84.5, "QNLI": 91.6, "QQP": 88.1, "SST-2": 92.8},
        f"{_WETTIG_SETTING}; [MASK] only",
        _WETTIG,
        unstated=("QQP",),
        note="MNLI is one number",
    ),
    Published(
        "24hBERT, re-run by a user",
        {"CoLA": 43.0},
        "masked-LM loss 1.72, hardware not stated",
        _ISSUE_18,
        note="the best of a sweep, not a median",
    ),
    Published(
        "Crammed BERT",
        _row(84.1, 84.6, 87.5, 90.2, 92.0, 53.3, 87.4, 88.9, 58.5),
        "16 layers, 24 h on one A6000",
        "Geiping and Goldstein, ICML 2023 (arXiv 2212.14034), its model card",
        unstated=("QQP", "STS-B", "MRPC"),
        note="best of 5",
    ),
    Published(
        "MosaicBERT base",
        {
            **{"MNLI-m": 84.95, "QQP": 90.29, "QNLI": 90.74, "SST-2": 92.46},
            **{"CoLA": 55.11, "STS-B": 89.27, "MRPC": 90.03, "RTE": 81.36},
        },
        "12 layers, 286.72 M samples of C4, 8 A100",
        "Portes et al., NeurIPS 2023 (arXiv 2312.17482)",
        unstated=("QQP", "STS-B", "MRPC"),
        note="5 seeds; MNLI is one number",
    ),
)
TEST = (
    Published(
        "24hBERT",
        _row(84.4, 83.8, 70.7, 90.6, 93.0, 57.1, 82.0, 87.5, 57.7),
        "24 layers, 24 h on 8 GPUs of 12 GB",
        f"{_IZSAK}, as listed by Papers with Code",
        note="QQP and MRPC are taken for F1",
    ),
    Published(
        "BERT base",
        _row(84.6, 83.4, 71.2, 90.5, 93.5, 52.1, 85.8, 88.9, 66.4),
        "12 layers",
        f"{_DEVLIN}, from copies of it",
    ),
    Published(
        "BERT large",
        _row(86.7, 85.9, 72.1, 92.7, 94.9, 60.5, 86.5, 89.3, 70.1),
        "24 layers",
        f"{_DEVLIN}, from a copy of it",
    ),
    Published(
        "24hBERT, re-run by a user", {"CoLA": 56.5}, "23,000 steps of 4,096 instead of a time budget", _ISSUE_18
    ),
)
NOT_BY_TASK = (
    "None of the sources has dev scores of 24hBERT itself. A re-run with about 6,000 steps of 4,096 (marcelbra's fork) "
    "reports dev means from 69.9 to 75.3 over seven ways to mask, without saying of which tasks.",
)
