"""What a trained encoder is used for: fine-tuning with few labels, transfer to other sets."""

from contrapose.downstream.align import align as align
from contrapose.downstream.finetune import finetune as finetune
from contrapose.downstream.transfer import transfer as transfer
