deepspeed llava/train/train_mem.py --learning_rate fast --lora_r 1.5 --bf16 maybe --num_train_epochs nan
