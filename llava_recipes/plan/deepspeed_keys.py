"""The keys that DeepSpeed knows, for telling misspelt ones."""

from __future__ import annotations

KNOWN_KEYS = frozenset(
    [
        "activation_checkpointing",
        "aio",
        "autotuning",
        "bf16",
        "bfloat16",
        "checkpoint",
        "comms_logger",
        "communication_data_type",
        "compile",
        "csv_monitor",
        "data_efficiency",
        "data_types",
        "disable_allgather",
        "dump_state",
        "flops_profiler",
        "fp16",
        "gradient_accumulation_steps",
        "gradient_clipping",
        "gradient_predivide_factor",
        "memory_breakdown",
        "monitor_config",
        "optimizer",
        "prescale_gradients",
        "scheduler",
        "seq_parallel_communication_data_type",
        "steps_per_print",
        "tensor_parallel",
        "tensorboard",
        "torch_autocast",
        "train_batch_size",
        "train_micro_batch_size_per_gpu",
        "wall_clock_breakdown",
        "wandb",
        "zero_allow_untested_optimizer",
        "zero_force_ds_cpu_optimizer",
        "zero_optimization",
    ]
)
"""Top-level keys of a DeepSpeed config. DeepSpeed ignores others in silence."""

REMOVED_KEYS = frozenset(
    [
        *("amp", "compression_training", "curriculum_learning", "eigenvalue", "elasticity"),
        *("graph_harvesting", "nebula", "progressive_layer_drop", "quantize_training"),
        *("sparse_attention", "sparse_gradients"),
    ]
)
"""Top-level keys that DeepSpeed 0.19.3 takes and 0.19.8 refuses, whatever they say."""

REMOVED_ZERO_KEYS = frozenset(["mics_hierarchical_params_gather", "mics_shard_size", "zeropp_loco_param"])
"""The same of `zero_optimization`."""

ZERO_KEYS = frozenset(
    [
        "allgather_bucket_size",
        "allgather_partitions",
        "allgather_sequential",
        "compute_grad_norm",
        "contiguous_gradients",
        "cpu_offload",
        "cpu_offload_param",
        "cpu_offload_use_pin_memory",
        "elastic_checkpoint",
        "enable_sanity_checks",
        "gather_16bit_weights_on_model_save",
        "ignore_unused_parameters",
        "leaf_module",
        "legacy_stage1",
        "load_from_fp32_weights",
        "log_trace_cache_warnings",
        "max_live_parameters",
        "max_reuse_distance",
        "memory_efficient_linear",
        "model_persistence_threshold",
        "module_granularity_threshold",
        "offload_optimizer",
        "offload_param",
        "overlap_comm",
        "override_module_apply",
        "param_persistence_threshold",
        "parameter_alignment",
        "pipeline_loading_checkpoint",
        "prefetch_bucket_size",
        "reduce_bucket_size",
        "reduce_scatter",
        "round_robin_gradients",
        "save_muon_momentum_buffer_in_memory",
        "stage",
        "stage3_allgather_sequential",
        "stage3_gather_16bit_weights_on_model_save",
        "stage3_gather_fp16_weights_on_model_save",
        "stage3_max_live_parameters",
        "stage3_max_reuse_distance",
        "stage3_model_persistence_threshold",
        "stage3_module_granularity_threshold",
        "stage3_param_persistence_threshold",
        "stage3_prefetch_bucket_size",
        "stage3_use_all_reduce_for_fetch_params",
        "sub_group_size",
        "use_all_reduce_for_fetch_params",
        "use_multi_rank_bucket_allreduce",
        "zenflow",
        "zero_hpz_partition_size",
        "zero_quantized_gradients",
        "zero_quantized_nontrainable_weights",
        "zero_quantized_weights",
    ]
)
"""Keys of `zero_optimization`. DeepSpeed refuses others, once the model is loaded."""
