"""An experiment file as version 0.1.0 took it; what it imports has moved since."""

from contrapose.experiments.form import Experiment
from contrapose.experiments.trained import knn, trained

EXPERIMENT = (Experiment, knn, trained)
