#!/bin/bash
if [ $# -ne 7 ]; then
    echo "Usage: $0 DATA IMAGES LLM TOWER TOWER2 CONNECTOR NAME"
    exit 1
fi
LLM="$3"
OUT=/runs/tiny-llava-${LLM#*/}-${7}-pretrain

deepspeed --include localhost:4,5,6,7 --master_port 29501 tinyllava/train/train.py \
    --deepspeed ./scripts/zero3.json \
    --data_path  $1\
    --image_folder $2 \
    --is_multimodal True \
    --conv_version pretrain \
    --model_name_or_path $LLM --tokenizer_use_fast False \
    --vision_tower $4 --vision_tower2 "$5" --mm_vision_select_layer -2 \
    --connector_type $6 \
    --image_aspect_ratio square --attn_implementation flash_attention_2 \
    --fp16 True \
    --training_recipe common --tune_type_llm frozen --tune_type_connector full \
    --tune_type_vision_tower frozen --tune_vision_tower_from_layer 0 \
    --output_dir $OUT \
    --num_train_epochs 1 \
    --per_device_train_batch_size 32 --per_device_eval_batch_size 4 --gradient_accumulation_steps 2 \
    --evaluation_strategy "no" --save_strategy "steps" --save_steps 24000 --save_total_limit 1 \
    --learning_rate 1e-3 --weight_decay 0. --warmup_ratio 0.03 --lr_scheduler_type "cosine" \
    --logging_steps 1 --tf32 False --model_max_length 2048 --gradient_checkpointing True \
    --dataloader_num_workers 8 --lazy_preprocess True --report_to tensorboard \
    --run_name ${OUT##*/}
