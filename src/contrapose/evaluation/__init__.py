"""What an encoder has learned: embeddings, their geometry, probes on them, and honest numbers."""

from contrapose.evaluation.embed import Embedded as Embedded
from contrapose.evaluation.embed import embed as embed
from contrapose.evaluation.features import probes_of_features as probes_of_features
from contrapose.evaluation.geometry import SimilarityHistogram as SimilarityHistogram
from contrapose.evaluation.geometry import alignment as alignment
from contrapose.evaluation.geometry import contrastive_accuracy as contrastive_accuracy
from contrapose.evaluation.geometry import effective_negatives as effective_negatives
from contrapose.evaluation.geometry import effective_rank as effective_rank
from contrapose.evaluation.geometry import lidar as lidar
from contrapose.evaluation.geometry import similarity_histogram as similarity_histogram
from contrapose.evaluation.geometry import tolerance as tolerance
from contrapose.evaluation.geometry import uniformity as uniformity
from contrapose.evaluation.probes import LinearProbe as LinearProbe
from contrapose.evaluation.probes import knn as knn
from contrapose.evaluation.probes import linear_probe as linear_probe
from contrapose.evaluation.projection import Map as Map
from contrapose.evaluation.projection import project as project
from contrapose.evaluation.scores import Score as Score
from contrapose.evaluation.scores import accuracy as accuracy
from contrapose.evaluation.scores import confusion as confusion
from contrapose.evaluation.scores import mean_per_class_accuracy as mean_per_class_accuracy
from contrapose.evaluation.scores import wilson as wilson
from contrapose.evaluation.sgd_probe import Protocol as Protocol
from contrapose.evaluation.sgd_probe import sgd_probe as sgd_probe
from contrapose.evaluation.suppression import Suppression as Suppression
from contrapose.evaluation.suppression import suppression as suppression
