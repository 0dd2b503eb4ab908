# PROMPT_VERSION=v1
deepspeed llava/train/train_mem.py --version $PROMPT_VERSION --output_dir out
