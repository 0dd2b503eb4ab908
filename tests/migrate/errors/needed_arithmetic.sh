deepspeed llava/train/train_mem.py --gradient_accumulation_steps $((128 / 0)) --save_steps $((RANDOM % 8))
