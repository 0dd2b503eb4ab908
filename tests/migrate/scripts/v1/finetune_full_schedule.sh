#!/bin/bash
# The first LLaVA, Stage 2 on all conversations, three times.
# Arguments: language model, template, name of the version. Paths that the original leaves open are filled in.

LLM="${1:-lmsys/vicuna-7b-v1.3}"
PROMPT="${2:-v1}"
MODEL="${3:-vicuna-v1-3-7b}"

deepspeed llava/train/train_mem.py \
    --deepspeed ./scripts/zero2.json \
    --model_name_or_path ${LLM} --version ${PROMPT} \
    --pretrain_mm_mlp_adapter ./checkpoints/llava-${MODEL}-pretrain/mm_projector.bin \
    --data_path ./playground/data/llava_instruct_158k.json \
    --image_folder ./playground/data/coco/train2017 \
    --vision_tower openai/clip-vit-large-patch14 --mm_vision_select_layer -2 \
    --mm_use_im_start_end False --mm_use_im_patch_token False \
    --model_max_length 2048 --lazy_preprocess True --dataloader_num_workers 4 \
    --output_dir ./checkpoints/llava-${MODEL}-finetune_full_schedule --num_train_epochs 3 \
    --learning_rate 2e-5 --save_steps 50000 \
    --per_device_train_batch_size 16 --per_device_eval_batch_size 4 --gradient_accumulation_steps 1 \
    --weight_decay 0. --warmup_ratio 0.03 --lr_scheduler_type cosine \
    --bf16 True --tf32 True --gradient_checkpointing True \
    --evaluation_strategy no --save_strategy steps --save_total_limit 1 \
    --logging_steps 1 --report_to wandb
