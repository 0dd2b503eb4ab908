deepspeed llava/train/train_mem.py --version --output_dir out
