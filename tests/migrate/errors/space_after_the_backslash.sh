deepspeed llava/train/train_mem.py \
    --version plain \ 
    --output_dir out
