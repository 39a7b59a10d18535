from .evaluation import Evaluation as Evaluation
from .evaluation import evaluate as evaluate
from .evaluation import validation_masks as validation_masks
from .measurement import Measurement as Measurement
from .measurement import measure as measure
from .statistics import paired_test as paired_test
from .throughput import benchmark as benchmark
