# Both stages of a TinyLLaVA model, each in a script of its own.
DATA=/data/llava
LLM=TinyLlama/TinyLlama-1.1B-Chat-v1.0
TOWER=openai/clip-vit-large-patch14-336
CONNECTOR=mlp2x_gelu
NAME=base

bash scripts/train/pretrain.sh "$DATA/blip_laion_cc_sbu_558k.json" "$DATA/pretrain/images" "$LLM" "$TOWER" "" "$CONNECTOR" "$NAME"
bash scripts/train/finetune.sh "$DATA/llava_v1_5_mix665k.json" "$DATA" "$LLM" "$TOWER" "" "$CONNECTOR" llama "$NAME"
