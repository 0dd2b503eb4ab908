deepspeed llava/train/train_mem.py \
    --version plain \
    # --bf16 True \
    --output_dir out
