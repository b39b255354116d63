"""Encoders: backbones (image -> h), projection heads (h -> z), and `Encoder`, which joins them."""

from contrapose.encoders.backbones import BACKBONES as BACKBONES
from contrapose.encoders.backbones import Stem as Stem
from contrapose.encoders.backbones import keras_defaults as keras_defaults
from contrapose.encoders.backbones import notebook_conv as notebook_conv
from contrapose.encoders.backbones import resnet18 as resnet18
from contrapose.encoders.backbones import resnet34 as resnet34
from contrapose.encoders.backbones import resnet50 as resnet50
from contrapose.encoders.backbones import resnet101 as resnet101
from contrapose.encoders.backbones import resnet152 as resnet152
from contrapose.encoders.backbones import resnet200 as resnet200
from contrapose.encoders.backbones import small_conv as small_conv
from contrapose.encoders.backbones import timm as timm
from contrapose.encoders.encoder import Encoder as Encoder
from contrapose.encoders.encoder import modes_kept as modes_kept
from contrapose.encoders.encoder import unit as unit
from contrapose.encoders.heads import HEADS as HEADS
from contrapose.encoders.heads import classifier as classifier
from contrapose.encoders.heads import linear as linear
from contrapose.encoders.heads import mlp as mlp
from contrapose.encoders.heads import none as none
from contrapose.encoders.layout import fastest_layout as fastest_layout
from contrapose.encoders.weights import checkpoints as checkpoints
from contrapose.encoders.weights import final_step as final_step
from contrapose.encoders.weights import read_weights as read_weights
from contrapose.encoders.weights import step_of as step_of
