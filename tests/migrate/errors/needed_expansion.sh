NAME=run
deepspeed llava/train/train_mem.py --output_dir out/${NAME@Q} --version ${NAME:0:2}
