#!/bin/bash
# LLaVA-1.5, Stage 1: the projector alone. The model's size is the first argument: 13b or 7b.

SIZE=${1:-13b}
DATA=./playground/data/LLaVA-Pretrain

deepspeed llava/train/train_mem.py \
    --deepspeed ./scripts/zero2.json \
    --model_name_or_path "lmsys/vicuna-$SIZE-v1.5" --version plain \
    --vision_tower openai/clip-vit-large-patch14-336 --mm_vision_select_layer -2 \
    --mm_projector_type mlp2x_gelu --tune_mm_mlp_adapter True \
    --mm_use_im_start_end False --mm_use_im_patch_token False \
    --data_path $DATA/blip_laion_cc_sbu_558k.json --image_folder $DATA/images \
    --model_max_length 2048 --lazy_preprocess True --dataloader_num_workers 4 \
    --output_dir ./checkpoints/llava-v1.5-${SIZE}-pretrain \
    --num_train_epochs 1 \
    --per_device_train_batch_size 32 --per_device_eval_batch_size 4 --gradient_accumulation_steps 1 \
    --learning_rate 1e-3 --weight_decay 0. --warmup_ratio 0.03 --lr_scheduler_type "cosine" \
    --bf16 True --tf32 True --gradient_checkpointing True \
    --evaluation_strategy "no" --save_strategy "steps" --save_steps 24000 --save_total_limit 1 \
    --logging_steps 1 --report_to wandb
