"""What a run, or a matrix of embeddings, has learned: scores, signals, the verdict, pictures.

Everything lands in the run folder as evaluation.json, diagnosis.json and pictures.npz, from which
the report is made.
"""

from contrapose.explain.diagnosis import diagnose as diagnose
from contrapose.explain.embeddings import diagnose_embeddings as diagnose_embeddings
from contrapose.explain.embeddings import write_embeddings as write_embeddings
from contrapose.explain.evaluation import evaluate as evaluate
from contrapose.explain.subject import Subject as Subject
from contrapose.explain.suppression import suppression_of as suppression_of
