deepspeed llava/train/train_mem.py --model_name_or_path a/b --tune_mm_mlp_adapter True --output_dir one
deepspeed llava/train/train_mem.py --model_name_or_path a/c --mm_projector_type mlp2x_gelu --output_dir two
