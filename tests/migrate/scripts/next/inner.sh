#!/bin/bash
set -x
export GPUS=8
export SAVE_PATH=llava-next-7b
export BASE_LR=2e-5

srun --ntasks-per-node=1 --gres=gpu:$GPUS \
    bash -c 'torchrun --nproc_per_node $GPUS --master_addr $(scontrol show hostname | head -n1) \
    llava/train/train_mem.py \
    --model_name_or_path lmsys/vicuna-7b-v1.5 --version v1 \
    --data_path data.json --image_folder images \
    --vision_tower openai/clip-vit-large-patch14-336 --mm_projector_type mlp2x_gelu \
    --mm_vision_select_layer -2 --mm_use_im_patch_token False \
    --unfreeze_mm_vision_tower True --mm_vision_tower_lr 2e-6 --mm_projector_lr 1e-5 \
    --bf16 True --output_dir checkpoints/${SAVE_PATH} --learning_rate ${BASE_LR} \
    --model_max_length 4096 --lr_scheduler_type "cosine" --num_train_epochs 1 \
    --run_name ${SAVE_PATH}'
