//! Which keys of DeepSpeed are known, and why some of them become none of ours.

/// Keys that become one of ours, or decide about one. Sections are read key by key.
pub(super) const MAPPED: &[&str] = &[
    "aio",
    "aio.block_size",
    "aio.queue_depth",
    "aio.intra_op_parallelism",
    "aio.thread_count",
    "aio.num_threads",
    "bf16",
    "bfloat16",
    "data_types",
    "data_types.grad_accum_dtype",
    "fp16",
    "gradient_clipping",
    "optimizer",
    "optimizer.type",
    "optimizer.params",
    "optimizer.params.lr",
    "optimizer.params.betas",
    "optimizer.params.eps",
    "optimizer.params.weight_decay",
    "optimizer.params.adam_w_mode",
    "optimizer.params.torch_adam",
    "optimizer.params.bias_correction",
    "optimizer.params.amsgrad",
    "optimizer.params.maximize",
    "optimizer.params.max_grad_norm",
    "optimizer.params.momentum",
    "optimizer.params.nesterov",
    "optimizer.params.dampening",
    "optimizer.params.lr_decay",
    "optimizer.params.initial_accumulator_value",
    "zero_optimization",
    "zero_optimization.sub_group_size",
    "zero_optimization.offload_optimizer",
    "zero_optimization.offload_optimizer.device",
    "zero_optimization.offload_optimizer.nvme_path",
    "zero_optimization.offload_optimizer.pipeline_read",
    "zero_optimization.offload_optimizer.pipeline_write",
];

const SUBMISSION: &str = "not needed: operations are submitted together and completed one by one";
const BUFFERS: &str = "not mapped: DeepSpeed's buffers have the size of the largest sub-group; \
                       here they have the size of a chunk, and as many are taken as fit \
                       swap.memory_budget (256MiB unless set)";
const UPDATE_THREADS: &str = "not mapped: a rank updates with as many threads as its affinity mask \
                              has processors";

/// Keys that optswap does not need or does not have, with the reason.
pub(super) const REASONS: &[(&str, &str)] = &[
    ("aio.single_submit", SUBMISSION),
    ("aio.overlap_events", SUBMISSION),
    ("aio.use_gds", "not there: state goes through memory, since processors update it"),
    (
        "gradient_accumulation_steps",
        "not mapped: the program says which micro-batch is the last (swap_out_gradients), or \
         accumulates itself and steps with the sum",
    ),
    ("optimizer.adam_w_mode", "ignored, as by DeepSpeed: it belongs into optimizer.params"),
    ("optimizer.params.fp32_optimizer_states", "not needed: master and moments are fp32"),
    ("scheduler", "not mapped: the program sets learning rates (SwappedOptimizer::groups_mut)"),
    ("zero_optimization.offload_optimizer.buffer_count", BUFFERS),
    ("zero_optimization.offload_optimizer.buffer_size", BUFFERS),
    ("zero_optimization.offload_optimizer.cpuadam_cores_perc", UPDATE_THREADS),
    (
        "zero_optimization.offload_optimizer.fast_init",
        "not needed: initialize_parameters writes all state in one sweep",
    ),
    (
        "zero_optimization.offload_optimizer.pin_memory",
        "not needed: buffers are registered with the kernel where it allows that",
    ),
    ("zero_optimization.offload_optimizer.ratio", "not mapped: all state is swapped"),
    ("zero_optimization.offload_optimizer.super_offload", "not mapped: all state is swapped"),
    (
        "zero_optimization.offload_param",
        "not there: optimizer state alone is swapped; parameters stay in the program's memory",
    ),
];

/// The note about all other keys.
pub(super) const ELSEWHERE: &str = "not for optswap";

/// Sections whose keys all concern the swapping, so that an unknown one may be a mistake.
pub(super) const CLOSED: &[&str] =
    &["aio", "optimizer", "optimizer.params", "zero_optimization.offload_optimizer"];

/// The known key of the same section that is the most similar, if one is similar.
pub(super) fn nearest(section: &str, key: &str) -> Option<&'static str> {
    let known = MAPPED.iter().copied().chain(REASONS.iter().map(|(path, _)| *path));
    let similarity = |path: &str| match path.rsplit_once('.').unwrap_or(("", path)) {
        (of, name) if of == section => strsim::jaro_winkler(name, key),
        _ => 0.0,
    };
    let close = known.filter(|path| similarity(path) > 0.93);
    close.max_by(|a, b| similarity(a).total_cmp(&similarity(b)))
}
