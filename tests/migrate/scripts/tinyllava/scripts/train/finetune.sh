#!/bin/bash
LLM="$3"
RUNS=/runs/tiny-llava-${LLM#*/}-${8}

deepspeed --include localhost:4,5,6,7 --master_port 29501 tinyllava/train/train.py \
    --deepspeed ./scripts/zero3.json \
    --data_path $1 --image_folder $2 --is_multimodal True \
    --conv_version $7 \
    --model_name_or_path $LLM --tokenizer_use_fast False \
    --vision_tower $4 --vision_tower2 "$5" --mm_vision_select_layer -2 \
    --connector_type $6 \
    --image_aspect_ratio square --attn_implementation flash_attention_2 \
    --fp16 True \
    --training_recipe common --tune_type_llm full --tune_type_connector full \
    --tune_type_vision_tower partially-tune --tune_vision_tower_from_layer 20 \
    --group_by_modality_length True \
    --pretrained_model_path $RUNS-pretrain \
    --output_dir $RUNS-finetune \
    --num_train_epochs 1 \
    --per_device_train_batch_size 8 --per_device_eval_batch_size 4 --gradient_accumulation_steps 4 \
    --evaluation_strategy "no" --save_strategy "steps" --save_steps 50000 --save_total_limit 1 \
    --learning_rate 2e-5 --weight_decay 0. --warmup_ratio 0.03 --lr_scheduler_type "cosine" \
    --logging_steps 1 --tf32 False --model_max_length 2048 --gradient_checkpointing True \
    --dataloader_num_workers 8 --lazy_preprocess True --report_to tensorboard
