#!/bin/bash
# LLaVA-NeXT, Stage 1, with images of one part. Paths are filled in.

LLM="Qwen/Qwen2-7B-Instruct"
TOWER="openai/clip-vit-large-patch14-336"
RUN="llava-v1.6-qwen2-7b-pretrain"

ACCELERATE_CPU_AFFINITY=1 torchrun --nproc_per_node="${NUM_GPUS}" --nnodes="${NNODES}" --node_rank="${RANK}" \
    llava/train/train_mem.py \
    --deepspeed scripts/zero3.json \
    --model_name_or_path ${LLM} --version plain \
    --data_path ./playground/data/LLaVA-Pretrain/blip_laion_cc_sbu_558k.json \
    --image_folder ./playground/data/LLaVA-Pretrain/images \
    --vision_tower ${TOWER} --mm_projector_type mlp2x_gelu --mm_vision_select_layer -2 \
    --mm_tunable_parts="mm_mlp_adapter" \
    --mm_use_im_start_end False --mm_use_im_patch_token False \
    --bf16 True --run_name $RUN --output_dir ./checkpoints/${RUN} \
    --num_train_epochs 1 --per_device_train_batch_size 16 --per_device_eval_batch_size 4 \
    --gradient_accumulation_steps 1 --evaluation_strategy "no" --save_strategy "no" --save_steps 50000 \
    --learning_rate 1e-3 --weight_decay 0. --warmup_ratio 0.03 --lr_scheduler_type "cosine" \
    --logging_steps 1 --tf32 True --model_max_length 8192 --gradient_checkpointing True \
    --dataloader_num_workers 16 --lazy_preprocess True --report_to wandb --attn_implementation sdpa
