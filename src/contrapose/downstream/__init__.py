"""What a trained encoder is used for: fine-tuning with few labels."""

from contrapose.downstream.finetune import finetune as finetune
