done
deepspeed llava/train/train_mem.py --version v1
