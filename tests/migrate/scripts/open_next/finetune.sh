#!/bin/bash
# Open-LLaVA-NeXT, Stage 2, on four nodes of eight GPUs: all of the model trains.
# Arguments: language model, name of the run, longest length, template, steps between checkpoints.
# Paths are filled in.
set -x

export GPUS_PER_NODE=8
export NNODES=4
export LLM="${1:-lmsys/vicuna-7b-v1.5}"
export NAME="${2:-llava-v1.6-vicuna-7b}"
export LENGTH="${3:-4096}"
export PROMPT="${4:-v1}"
export SAVE="${5:-50000}"
export BASE_LR=2e-5
export VIT_LR=2e-6

srun --nodes=$NNODES --gres=gpu:$GPUS_PER_NODE \
    bash -c 'torchrun --nnodes $NNODES --nproc_per_node $GPUS_PER_NODE --node_rank $SLURM_NODEID \
    llava/train/train_mem.py \
    --deepspeed ./scripts/zero2.json \
    --model_name_or_path ${LLM} --version ${PROMPT} \
    --data_path ./playground/data/open-llava-next/open-llava-next_instruct_mix1M.json \
    --image_folder ./playground/data \
    --vision_tower openai/clip-vit-large-patch14-336 --mm_projector_type mlp2x_gelu \
    --mm_vision_select_layer -2 --mm_vision_select_feature patch \
    --mm_use_im_start_end False --mm_use_im_patch_token False \
    --pretrain_mm_mlp_adapter ./checkpoints/${NAME}-pretrain/mm_projector.bin \
    --unfreeze_mm_vision_tower True --mm_vision_tower_lr ${VIT_LR} \
    --image_aspect_ratio anyres --mm_patch_merge_type spatial_unpad --group_by_modality_length True \
    --output_dir ./checkpoints/${NAME} --run_name ${NAME} \
    --num_train_epochs 1 --gradient_accumulation_steps 1 \
    --per_device_train_batch_size 4 --per_device_eval_batch_size 4 \
    --learning_rate ${BASE_LR} --weight_decay 0. --warmup_ratio 0.03 --lr_scheduler_type "cosine" \
    --model_max_length ${LENGTH} --lazy_preprocess True --dataloader_num_workers 4 \
    --bf16 True --tf32 True --gradient_checkpointing True \
    --evaluation_strategy "no" --save_strategy "steps" --save_steps ${SAVE} --save_total_limit 1 \
    --logging_steps 1 --report_to wandb'
