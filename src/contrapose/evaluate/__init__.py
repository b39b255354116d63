"""What an encoder has learned: embeddings, their geometry, probes on them, and honest numbers."""

from contrapose.evaluate.embed import Embedded as Embedded
from contrapose.evaluate.embed import embed as embed
from contrapose.evaluate.geometry import SimilarityHistogram as SimilarityHistogram
from contrapose.evaluate.geometry import alignment as alignment
from contrapose.evaluate.geometry import contrastive_accuracy as contrastive_accuracy
from contrapose.evaluate.geometry import effective_negatives as effective_negatives
from contrapose.evaluate.geometry import effective_rank as effective_rank
from contrapose.evaluate.geometry import similarity_histogram as similarity_histogram
from contrapose.evaluate.geometry import tolerance as tolerance
from contrapose.evaluate.geometry import uniformity as uniformity
from contrapose.evaluate.probes import LinearProbe as LinearProbe
from contrapose.evaluate.probes import knn as knn
from contrapose.evaluate.probes import linear_probe as linear_probe
from contrapose.evaluate.projection import Map as Map
from contrapose.evaluate.projection import project as project
from contrapose.evaluate.scores import Score as Score
from contrapose.evaluate.scores import accuracy as accuracy
from contrapose.evaluate.scores import confusion as confusion
from contrapose.evaluate.scores import mean_per_class_accuracy as mean_per_class_accuracy
from contrapose.evaluate.scores import wilson as wilson
from contrapose.evaluate.sgd_probe import Protocol as Protocol
from contrapose.evaluate.sgd_probe import sgd_probe as sgd_probe
