deepspeed llava/train/train_mem.py --output_dir my out --version v1
