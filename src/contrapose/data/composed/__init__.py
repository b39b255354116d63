"""Image sets with competing features, composed of other sets, with the labels of every feature."""

from contrapose.data.composed.canvas import Layout as Layout
from contrapose.data.composed.parts import features_of as features_of
from contrapose.data.composed.sets import coloured as coloured
from contrapose.data.composed.sets import digits_on_images as digits_on_images
from contrapose.data.composed.sets import layout as layout
from contrapose.data.composed.sets import many_digits as many_digits
from contrapose.data.composed.sets import random_bits as random_bits
from contrapose.data.composed.sets import two_digits as two_digits
from contrapose.data.composed.sheet import contact_sheet as contact_sheet
from contrapose.data.composed.sheet import write_sheet as write_sheet
from contrapose.data.composed.spec import COMPOSED as COMPOSED
from contrapose.data.composed.spec import usage as usage
