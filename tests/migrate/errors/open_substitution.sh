deepspeed llava/train/train_mem.py \
    --output_dir out/$(date \
    --version v1
