//! What becomes of each key of DeepSpeed, and why some of them become none of ours.

/// Keys that become one of ours, which is named, or decide about several.
pub(super) const MAPPED: &[(&str, &str)] = &[
    ("aio", ""),
    ("aio.block_size", "drives.stripe_unit"),
    ("aio.queue_depth", "io.depth"),
    ("aio.intra_op_parallelism", "io.depth"),
    ("bf16", ""),
    ("bf16.enabled", ""),
    ("bfloat16", ""),
    ("bfloat16.enabled", ""),
    ("data_types", ""),
    ("data_types.grad_accum_dtype", "gradients.accumulate_in"),
    ("fp16", ""),
    ("fp16.enabled", "loss_scale.mode"),
    ("fp16.loss_scale", "loss_scale.initial"),
    ("fp16.initial_scale_power", "loss_scale.initial"),
    ("fp16.loss_scale_window", "loss_scale.growth_interval"),
    ("fp16.hysteresis", "loss_scale.hysteresis"),
    ("fp16.consecutive_hysteresis", "loss_scale.consecutive_hysteresis"),
    ("fp16.min_loss_scale", "loss_scale.minimum"),
    ("gradient_clipping", "optimizer.clip_norm"),
    ("optimizer", ""),
    ("optimizer.type", "optimizer.kind"),
    ("optimizer.params", ""),
    ("optimizer.params.lr", "optimizer.lr"),
    ("optimizer.params.betas", "optimizer.betas"),
    ("optimizer.params.momentum", "optimizer.betas"),
    ("optimizer.params.eps", "optimizer.eps"),
    ("optimizer.params.weight_decay", "optimizer.weight_decay"),
    ("optimizer.params.adam_w_mode", "optimizer.kind"),
    ("optimizer.params.torch_adam", ""),
    ("zero_optimization", ""),
    ("zero_optimization.sub_group_size", "swap.sub_group_elements"),
    ("zero_optimization.offload_optimizer", ""),
    ("zero_optimization.offload_optimizer.device", ""),
    ("zero_optimization.offload_optimizer.nvme_path", "drives.paths"),
    ("zero_optimization.offload_optimizer.pipeline_read", "swap.pipeline_read"),
    ("zero_optimization.offload_optimizer.pipeline_write", "swap.pipeline_write"),
    ("zero_optimization.cpu_offload", ""),
];

/// Keys that must not have another value than this, since the update would be another one.
pub(super) const REFUSED: &[(&str, &str)] = &[
    ("optimizer.params.bias_correction", "true"),
    ("optimizer.params.amsgrad", "false"),
    ("optimizer.params.maximize", "false"),
    ("optimizer.params.nesterov", "false"),
    ("optimizer.params.dampening", "0"),
    ("optimizer.params.lr_decay", "0"),
    ("optimizer.params.initial_accumulator_value", "0"),
    ("optimizer.params.decoupled_weight_decay", "false"),
    ("zero_optimization.zenflow", "null"),
];

const SUBMISSION: &str = "not needed: operations are submitted together and completed one by one";
const BUFFERS: &str = "not mapped: DeepSpeed's buffers have the size of the largest sub-group; \
                       here they have the size of a chunk, and as many are taken as fit \
                       swap.memory_budget (256MiB unless set)";
const UPDATE_THREADS: &str = "not mapped: a rank updates with as many threads as its affinity mask \
                              has processors";
const NARROW: &str = "not mapped: master and moments are fp32; `codecs` makes them smaller, as \
                      with codecs.exp_avg = \"bf16\" and the lossless codecs.master = \
                      \"remainder16\"";
const OVERFLOWS: &str = "not mapped: every step looks for infinities and NaNs, and is then skipped";
const AT_ONCE: &str = "not mapped: a step updates all parameters, when all gradients are there";
const REDUCTION: &str = "not mapped: the program averages its gradients itself \
                         (Training::reduce_gradients adds them over the ranks)";
const ACCUMULATION: &str = "not mapped: the program says which micro-batch is the last \
                            (swap_out_gradients), or accumulates itself and steps with the sum";
const LOOPS: &str = "not needed: how the update loops, not what it computes";
const ALL_STATE: &str = "not mapped: all state is swapped";
const WEIGHTS: &str = "not there: parameters are neither quantised nor pruned";

/// Keys that optswap does not need or does not have, with the reason.
pub(super) const SAID: &[(&str, &str)] = &[
    ("aio.single_submit", SUBMISSION),
    ("aio.overlap_events", SUBMISSION),
    ("aio.use_gds", "not there: state goes through memory, since processors update it"),
    ("amp", "not mapped: [loss_scale] is what optswap has of it"),
    ("bf16.bf16_master_weights_and_grads", NARROW),
    ("bf16.bf16_optimizer_states", NARROW),
    ("bf16.check_grad_overflow", OVERFLOWS),
    ("bf16.immediate_grad_update", AT_ONCE),
    ("bfloat16.bf16_master_weights_and_grads", NARROW),
    ("bfloat16.bf16_optimizer_states", NARROW),
    ("bfloat16.check_grad_overflow", OVERFLOWS),
    ("bfloat16.immediate_grad_update", AT_ONCE),
    ("compression_training", WEIGHTS),
    ("fp16.auto_cast", "not for optswap: the program's forward pass"),
    ("fp16.fp16_master_weights_and_grads", NARROW),
    ("gradient_accumulation_steps", ACCUMULATION),
    ("managed_gradient_accumulation", ACCUMULATION),
    ("gradient_allreduce_op", REDUCTION),
    ("gradient_predivide_factor", REDUCTION),
    ("prescale_gradients", REDUCTION),
    ("optimizer.legacy_fusion", LOOPS),
    ("optimizer.params.fp32_optimizer_states", NARROW),
    ("optimizer.params.capturable", LOOPS),
    ("optimizer.params.differentiable", LOOPS),
    ("optimizer.params.foreach", LOOPS),
    ("optimizer.params.fused", LOOPS),
    ("optimizer.params.set_grad_none", LOOPS),
    ("quantize_training", WEIGHTS),
    ("scheduler", "not mapped: the program sets learning rates (SwappedOptimizer::groups_mut)"),
    ("zero_optimization.compute_grad_norm", OVERFLOWS),
    ("zero_optimization.offload_optimizer.buffer_count", BUFFERS),
    ("zero_optimization.offload_optimizer.cpuadam_cores_perc", UPDATE_THREADS),
    (
        "zero_optimization.offload_optimizer.fast_init",
        "not needed: initialize_parameters writes all state in one sweep",
    ),
    (
        "zero_optimization.offload_optimizer.pin_memory",
        "not needed: buffers are registered with the kernel where it allows that",
    ),
    ("zero_optimization.offload_optimizer.ratio", ALL_STATE),
    ("zero_optimization.offload_optimizer.super_offload", ALL_STATE),
    (
        "zero_optimization.offload_param",
        "not there: optimizer state alone is swapped; parameters stay in the program's memory",
    ),
    ("zero_optimization.zero_quantized_gradients", REDUCTION),
];

/// The note about keys that have nothing to do with the update or with swapping it.
pub(super) const ELSEWHERE: &str = "not for optswap";

/// Those keys. A section stands for all that is in it.
const NOT_OURS: &[&str] = &[
    "activation_checkpointing",
    "autotuning",
    "checkpoint",
    "comet",
    "comms_logger",
    "communication_data_type",
    "compile",
    "csv_monitor",
    "curriculum_learning",
    "data_efficiency",
    "data_types.buffer_dtype",
    "data_types.param_dtype",
    "data_types.keep_in_fp32_modules",
    "dataloader_drop_last",
    "datastates_ckpt",
    "disable_allgather",
    "disable_python_gc",
    "dump_state",
    "eigenvalue",
    "elasticity",
    "expert_parallel",
    "flops_profiler",
    "graph_harvesting",
    "hybrid_engine",
    "log_level",
    "memory_breakdown",
    "nebula",
    "pipeline",
    "progressive_layer_drop",
    "seq_parallel_communication_data_type",
    "sequence_parallel_size",
    "sparse_attention",
    "sparse_gradients",
    "steps_per_print",
    "tensor_parallel",
    "tensorboard",
    "timers",
    "torch_autocast",
    "train_batch_size",
    "train_micro_batch_size_per_gpu",
    "use_data_before_expert_parallelism",
    "vocabulary_size",
    "wall_clock_breakdown",
    "wandb",
    "weight_quantization",
    "zero_allow_untested_optimizer",
    "zero_force_ds_cpu_optimizer",
    "zero_optimization.allgather_bucket_size",
    "zero_optimization.allgather_partitions",
    "zero_optimization.allgather_sequential",
    "zero_optimization.contiguous_gradients",
    "zero_optimization.cpu_offload_param",
    "zero_optimization.cpu_offload_use_pin_memory",
    "zero_optimization.elastic_checkpoint",
    "zero_optimization.enable_sanity_checks",
    "zero_optimization.gather_16bit_weights_on_model_save",
    "zero_optimization.ignore_unused_parameters",
    "zero_optimization.leaf_module",
    "zero_optimization.legacy_stage1",
    "zero_optimization.load_from_fp32_weights",
    "zero_optimization.log_trace_cache_warnings",
    "zero_optimization.max_live_parameters",
    "zero_optimization.max_reuse_distance",
    "zero_optimization.memory_efficient_linear",
    "zero_optimization.model_persistence_threshold",
    "zero_optimization.module_granularity_threshold",
    "zero_optimization.overlap_comm",
    "zero_optimization.override_module_apply",
    "zero_optimization.parameter_alignment",
    "zero_optimization.param_persistence_threshold",
    "zero_optimization.pipeline_loading_checkpoint",
    "zero_optimization.prefetch_bucket_size",
    "zero_optimization.reduce_bucket_size",
    "zero_optimization.reduce_scatter",
    "zero_optimization.round_robin_gradients",
    "zero_optimization.save_muon_momentum_buffer_in_memory",
    "zero_optimization.stage",
    "zero_optimization.stage3_allgather_sequential",
    "zero_optimization.stage3_gather_16bit_weights_on_model_save",
    "zero_optimization.stage3_gather_fp16_weights_on_model_save",
    "zero_optimization.stage3_max_live_parameters",
    "zero_optimization.stage3_max_reuse_distance",
    "zero_optimization.stage3_model_persistence_threshold",
    "zero_optimization.stage3_module_granularity_threshold",
    "zero_optimization.stage3_param_persistence_threshold",
    "zero_optimization.stage3_prefetch_bucket_size",
    "zero_optimization.stage3_use_all_reduce_for_fetch_params",
    "zero_optimization.use_all_reduce_for_fetch_params",
    "zero_optimization.use_multi_rank_bucket_allreduce",
    "zero_optimization.zero_hpz_partition_size",
    "zero_optimization.zero_quantized_nontrainable_weights",
    "zero_optimization.zero_quantized_weights",
];

/// Keys that earlier releases had in sections that refuse unknown ones. None is about the update.
pub(super) const FORMER_KEYS: [&str; 3] = [
    "zero_optimization.mics_hierarchical_params_gather",
    "zero_optimization.mics_shard_size",
    "zero_optimization.zeropp_loco_param",
];

/// Keys of other releases and tools, which DeepSpeed now ignores and optswap reads.
pub(super) const FORMER_THREADS: [&str; 2] = ["aio.thread_count", "aio.num_threads"];

/// What becomes of a key.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Fate {
    /// It becomes our key of this name, or decides about several.
    Mapped(&'static str),
    /// Any value but this one is refused.
    Refused(&'static str),
    /// It is not taken over, for this reason.
    Said(&'static str),
    NotOurs,
}

/// The fate of a key; what is in a section without a fate of its own has the section's, unless the
/// section is read key by key.
pub(super) fn fate(path: &str) -> Option<Fate> {
    let own = |path: &str| {
        let find = |table: &[(&str, &'static str)]| {
            table.iter().find(|(known, _)| *known == path).map(|(_, what)| *what)
        };
        let mapped = find(MAPPED).map(Fate::Mapped);
        let refused = || find(REFUSED).map(Fate::Refused);
        let said = || find(SAID).map(Fate::Said);
        let not_ours = || NOT_OURS.contains(&path).then_some(Fate::NotOurs);
        mapped.or_else(refused).or_else(said).or_else(not_ours)
    };
    own(path).or_else(|| {
        let sections = path.rmatch_indices('.').map(|(end, _)| &path[..end]);
        sections.flat_map(own).next().filter(|fate| !matches!(fate, Fate::Mapped(_)))
    })
}

/// Whether a key has nothing to do with swapped optimizer state.
pub(super) fn is_elsewhere(path: &str) -> bool {
    fate(path) == Some(Fate::NotOurs)
}

#[cfg(test)]
mod tests {
    use super::super::keys;
    use super::*;

    const CLASSES: [&str; 9] = [
        "DeepSpeedCPUAdam",
        "FusedAdam",
        "DeepSpeedCPULion",
        "FusedLion",
        "DeepSpeedCPUAdagrad",
        "torch_AdamW",
        "torch_Adam",
        "torch_Adagrad",
        "torch_SGD",
    ];

    fn is_argument(path: &str) -> bool {
        // These two decide about the class and never come to it.
        let decides = ["optimizer.params.torch_adam", "optimizer.params.adam_w_mode"];
        let Some(name) = path.strip_prefix("optimizer.params.") else { return false };
        let has = |class: &&str| keys::arguments(class).any(|key| key.place().1 == name);
        decides.contains(&path) || CLASSES.iter().any(has)
    }

    #[test]
    fn every_key_of_deepspeed_has_a_fate() {
        let arguments = CLASSES.iter().flat_map(|class| keys::arguments(class));
        // DeepSpeed gives this one itself.
        let given = arguments.map(|key| key.place().1).filter(|name| *name != "adamw_mode");
        let paths = keys::all().map(|key| key.path.to_owned());
        let paths = paths.chain(given.map(|name| format!("optimizer.params.{name}")));
        let without: Vec<String> = paths.filter(|path| fate(path).is_none()).collect();
        assert!(without.is_empty(), "say in fates.rs what becomes of {without:?}");
    }

    #[test]
    fn every_fate_is_that_of_a_key_of_deepspeed_and_of_none_twice() {
        let tables = [MAPPED, REFUSED, SAID].into_iter().flatten().map(|(path, _)| *path);
        let mut paths: Vec<&str> = tables.chain(NOT_OURS.iter().copied()).collect();
        let unknown = |path: &&&str| keys::find(path).is_none() && !is_argument(path);
        let unknown: Vec<&&str> = paths.iter().filter(unknown).collect();
        assert!(unknown.is_empty(), "DeepSpeed does not have {unknown:?}");
        let count = paths.len();
        paths.sort_unstable();
        paths.dedup();
        assert_eq!(paths.len(), count);
        for former in FORMER_THREADS.into_iter().chain(FORMER_KEYS) {
            assert!(keys::find(former).is_none(), "{former} is DeepSpeed's again");
        }
    }

    #[test]
    fn every_target_is_a_key_of_ours() {
        let whole = serde_json::to_value(crate::config::Config::default()).unwrap();
        for (path, ours) in MAPPED.iter().filter(|(_, ours)| !ours.is_empty()) {
            let (section, name) = keys::split(ours);
            assert!(!whole[section][name].is_null(), "{path}: {ours}");
        }
    }

    #[test]
    fn every_key_that_is_mapped_is_in_the_document() {
        let document = include_str!("../../../docs/deepspeed.md");
        for (path, _) in MAPPED.iter().filter(|(_, ours)| !ours.is_empty()) {
            let (section, name) = keys::split(path);
            let is_there = document.contains(&format!("`{path}`"))
                || document.contains(&format!("`.{name}`")) && document.contains(section);
            assert!(is_there, "{path}");
        }
    }
}
