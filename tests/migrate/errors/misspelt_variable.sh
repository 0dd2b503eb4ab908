MODEL_VERSION=vicuna
deepspeed llava/train/train_mem.py --model_name_or_path $MODEL_VERSOIN
