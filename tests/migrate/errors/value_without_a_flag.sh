deepspeed llava/train/train_mem.py llama --version v1
