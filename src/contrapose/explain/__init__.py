"""Explanation of a run or of a matrix of embeddings: scores, signals, verdict and pictures.

The results are written into the run folder as evaluation.json, diagnosis.json and pictures.npz; the
report is made from these files.
"""

from contrapose.explain.diagnosis import diagnose as diagnose
from contrapose.explain.embeddings import diagnose_embeddings as diagnose_embeddings
from contrapose.explain.embeddings import write_embeddings as write_embeddings
from contrapose.explain.evaluation import evaluate as evaluate
from contrapose.explain.robustness import robustness as robustness
from contrapose.explain.subject import Subject as Subject
from contrapose.explain.suppression import suppression_of as suppression_of
