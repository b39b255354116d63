"""Reading images: named sets, folders, Parquet shards and arrays, all as an `ImageSet`."""

from contrapose.data.composed import COMPOSED as COMPOSED
from contrapose.data.dataset import Images as Images
from contrapose.data.images import ImageSet as ImageSet
from contrapose.data.images import NoSuchSplit as NoSuchSplit
from contrapose.data.images import Skipped as Skipped
from contrapose.data.named import NAMED as NAMED
from contrapose.data.named import NamedSet as NamedSet
from contrapose.data.open import open_images as open_images
from contrapose.data.prefetch import Prefetch as Prefetch
from contrapose.data.prefetch import batches_ahead as batches_ahead
from contrapose.data.request import HELD_OUT as HELD_OUT
from contrapose.data.request import UNKNOWN_CLASSES as UNKNOWN_CLASSES
from contrapose.data.request import Request as Request
from contrapose.data.split import balanced as balanced
from contrapose.data.split import concatenated as concatenated
from contrapose.data.split import evenly as evenly
from contrapose.data.split import exact_duplicates as exact_duplicates
from contrapose.data.split import few_labels as few_labels
from contrapose.data.split import hold_out as hold_out
from contrapose.data.split import overlap as overlap
from contrapose.data.values import ValueRange as ValueRange
