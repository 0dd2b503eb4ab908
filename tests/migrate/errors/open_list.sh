ARGS=(--version v1
deepspeed llava/train/train_mem.py "${ARGS[@]}"
