//! Tests of the mapping.

use super::*;
use crate::config::{AccumulateIn, LossScaleConfig, LossScaleMode};

/// What a job on eight GPUs and one drive has, and more.
const FULL: &str = r#"{
    "train_batch_size": 64,
    "train_micro_batch_size_per_gpu": 8,
    "gradient_accumulation_steps": 2,
    "gradient_clipping": 1.0,
    "steps_per_print": 2000,
    "wall_clock_breakdown": false,
    "fp16": {"enabled": false, "loss_scale": 0, "initial_scale_power": 16},
    "bf16": {"enabled": true},
    "optimizer": {
        "type": "AdamW",
        "params": {"lr": 3e-5, "betas": [0.8, 0.95], "eps": 1e-7, "weight_decay": 3e-7}
    },
    "scheduler": {"type": "WarmupLR", "params": {"warmup_num_steps": 500}},
    "zero_optimization": {
        "stage": 3,
        "offload_optimizer": {
            "device": "nvme", "nvme_path": "/local_nvme", "buffer_count": 12,
            "pipeline_read": true, "pipeline_write": true, "pin_memory": true,
            "fast_init": false, "ratio": 1.0
        },
        "offload_param": {"device": "nvme", "nvme_path": "/local_nvme", "buffer_size": 1e8},
        "sub_group_size": 1e9,
        "overlap_comm": true,
        "stage3_max_live_parameters": 1e9
    },
    "aio": {
        "block_size": 262144, "queue_depth": 32, "intra_op_parallelism": 4,
        "single_submit": false, "overlap_events": true, "use_gds": false
    }
}"#;

fn note<'a>(sourced: &'a Sourced, key: &str) -> &'a str {
    let note = sourced.notes.iter().find(|note| note.keys.iter().any(|of| of == key));
    note.map_or_else(|| panic!("no note on {key}: {:#?}", sourced.notes), |note| &note.text)
}

fn has_note(sourced: &Sourced, key: &str) -> bool {
    sourced.notes.iter().any(|note| note.keys.iter().any(|of| of == key))
}

/// A configuration in which the optimizer has these parameters.
fn with_optimizer(name: &str, params: &str) -> Result<Sourced> {
    parse_deepspeed(&format!(r#"{{"optimizer": {{"type": "{name}", "params": {params}}}}}"#))
}

#[test]
fn a_whole_configuration() {
    let sourced = parse_deepspeed(FULL).unwrap();
    let Config { drives, io, swap, optimizer, .. } = &sourced.config;
    assert_eq!(drives.paths, [PathBuf::from("/local_nvme")]);
    assert_eq!((drives.stripe_unit, io.depth), (Bytes(262_144), 128));
    assert_eq!(swap.sub_group_elements, Elems(1_000_001_536));
    assert_eq!((optimizer.lr, optimizer.betas), (3e-5, [0.8, 0.95]));
    assert_eq!((optimizer.eps, optimizer.weight_decay, optimizer.clip_norm), (1e-7, 3e-7, 1.0));

    let origin = |ours: &str| sourced.origins.get(ours).map(String::as_str);
    assert_eq!(origin("io.depth"), Some("aio.queue_depth x aio.intra_op_parallelism"));
    assert_eq!(origin("swap.sub_group_elements"), Some("zero_optimization.sub_group_size"));
    assert_eq!((origin("optimizer.lr"), origin("job")), (Some("optimizer.params.lr"), None));

    let offload = |key: &str| format!("zero_optimization.offload_optimizer.{key}");
    assert!(note(&sourced, &offload("buffer_count")).contains("swap.memory_budget"));
    assert!(note(&sourced, &offload("nvme_path")).contains("optswap/JOB"));
    assert!(note(&sourced, "zero_optimization.sub_group_size").contains("rounded to 1000001536"));
    assert!(note(&sourced, "bf16").contains("fp32"));
    assert!(note(&sourced, "scheduler").contains("groups_mut"));
    assert!(note(&sourced, "zero_optimization.offload_param").contains("optimizer state alone"));
    for key in ["train_batch_size", "zero_optimization.stage", "zero_optimization.overlap_comm"] {
        assert_eq!(note(&sourced, key), "not for optswap");
    }
    for key in ["fp16", "optimizer", "aio.queue_depth", "aio.intra_op_parallelism"] {
        assert!(!has_note(&sourced, key), "{key}: {:#?}", sourced.notes);
    }
}

#[test]
fn nothing_is_said_twice_and_every_key_has_a_fate() {
    let sourced = parse_deepspeed(FULL).unwrap();
    let mut texts: Vec<_> = sourced.notes.iter().map(|note| &note.text).collect();
    texts.sort_unstable();
    texts.dedup();
    assert_eq!(texts.len(), sourced.notes.len());
    assert!(!sourced.notes.iter().any(|note| note.text.contains("unknown")));
    let single = "aio.single_submit";
    let both = sourced.notes.iter().find(|note| note.keys.iter().any(|key| key == single));
    assert_eq!(both.unwrap().keys.len(), 2);
}

#[test]
fn both_directions_of_the_pipeline_are_mapped_and_on_unless_they_are_switched_off() {
    let modes = |text: &str| {
        let text = format!(r#"{{"zero_optimization": {{"offload_optimizer": {{{text}}}}}}}"#);
        let sourced = parse_deepspeed(&text).unwrap();
        let swap = sourced.config.swap;
        let origin = sourced.origins.get("swap.pipeline_write").cloned();
        (swap.pipeline_read, swap.pipeline_write, origin)
    };
    let key = "zero_optimization.offload_optimizer.pipeline_write";
    let off = r#""pipeline_read": true, "pipeline_write": false"#;
    assert_eq!(modes(off), (true, false, Some(key.to_owned())));
    assert_eq!(modes(r#""pipeline_read": "False""#), (false, true, None));
    assert_eq!(modes(r#""pipeline_read": "auto""#), (true, true, None));
}

#[test]
fn an_empty_configuration_is_the_default_one() {
    let sourced = parse_deepspeed("{}").unwrap();
    assert_eq!(sourced.config, Config::default());
    assert!(note(&sourced, "optimizer").contains("own defaults"));
    let device = note(&sourced, "zero_optimization.offload_optimizer.device");
    assert!(device.contains("would not swap"));
}

#[test]
fn auto_keeps_the_default() {
    let text = r#"{
        "gradient_clipping": "auto", "fp16": {"enabled": "auto"}, "train_batch_size": "auto",
        "optimizer": {"type": "AdamW", "params": {
            "lr": "auto", "betas": "auto", "eps": "auto", "weight_decay": "auto"}},
        "zero_optimization": {"sub_group_size": "auto"},
        "aio": {"queue_depth": "auto"}
    }"#;
    let sourced = parse_deepspeed(text).unwrap();
    assert_eq!(sourced.config, Config::default());
    assert_eq!(sourced.origins.keys().collect::<Vec<_>>(), ["optimizer.kind"]);
    for key in ["gradient_clipping", "optimizer.params.weight_decay", "aio.queue_depth"] {
        assert!(note(&sourced, key).contains("`auto`"), "{key}");
    }
    assert!(has_note(&sourced, "fp16"));
}

#[test]
fn fp16_scales_the_loss_as_deepspeed_does() {
    let scale = |fp16: &str| {
        let sourced = parse_deepspeed(&format!(r#"{{"fp16": {fp16}}}"#)).unwrap();
        (sourced.config.loss_scale.clone(), sourced)
    };
    let (of_defaults, sourced) = scale(r#"{"enabled": true}"#);
    let dynamic = LossScaleConfig {
        mode: LossScaleMode::Dynamic,
        growth_interval: 1000,
        hysteresis: 2,
        ..LossScaleConfig::default()
    };
    assert_eq!(of_defaults, dynamic);
    assert_eq!(sourced.origins["loss_scale.hysteresis"], "DeepSpeed's default");
    assert!(note(&sourced, "fp16").contains("loss_scaler"));
    let (given, sourced) = scale(
        r#"{"enabled": true, "loss_scale": 0, "initial_scale_power": 8, "loss_scale_window": 50,
            "hysteresis": 3, "consecutive_hysteresis": true, "min_loss_scale": 4}"#,
    );
    assert_eq!((given.initial, given.growth_interval, given.minimum), (256.0, 50, 4.0));
    assert_eq!((given.hysteresis, given.consecutive_hysteresis), (3, true));
    assert_eq!(sourced.origins["loss_scale.initial"], "fp16.initial_scale_power");
    let (fixed, _) = scale(r#"{"enabled": true, "loss_scale": 128}"#);
    assert_eq!((fixed.mode, fixed.initial), (LossScaleMode::Static, 128.0));
    let (off, _) = scale(r#"{"enabled": false, "loss_scale": 128}"#);
    assert_eq!(off, LossScaleConfig::default());
    let refused = parse_deepspeed(r#"{"fp16": {"enabled": true, "initial_scale_power": 400}}"#);
    assert!(refused.unwrap_err().to_string().contains("loss_scale.initial"));
}

#[test]
fn gradients_are_accumulated_in_the_type_that_is_given() {
    let of = |dtype: &str| {
        let text = format!(r#"{{"data_types": {{"grad_accum_dtype": "{dtype}"}}}}"#);
        parse_deepspeed(&text).unwrap()
    };
    assert_eq!(of("bf16").config.gradients.accumulate_in, AccumulateIn::Bf16);
    assert_eq!(of("fp32").config.gradients.accumulate_in, AccumulateIn::F32);
    let half = of("fp16");
    assert_eq!(half.config.gradients.accumulate_in, AccumulateIn::F32);
    assert!(note(&half, "data_types.grad_accum_dtype").contains("f32 is kept"));
}

#[test]
fn several_drives_are_a_list() {
    let text = r#"{"zero_optimization": {"offload_optimizer": {
        "device": "nvme", "nvme_path": ["/nvme0/me", "/nvme1/me"]}}}"#;
    let sourced = parse_deepspeed(text).unwrap();
    let paths = ["/nvme0/me", "/nvme1/me"].map(PathBuf::from);
    assert_eq!(sourced.config.drives.paths, paths);
    assert!(!has_note(&sourced, "zero_optimization.offload_optimizer.device"));
}

#[test]
fn threads_have_three_names() {
    for name in ["intra_op_parallelism", "thread_count", "num_threads"] {
        let text = format!(r#"{{"aio": {{"queue_depth": 32, "{name}": 4}}}}"#);
        let sourced = parse_deepspeed(&text).unwrap();
        assert_eq!(sourced.config.io.depth, 128, "{name}");
        let is_former = name != "intra_op_parallelism";
        assert_eq!(has_note(&sourced, &format!("aio.{name}")), is_former, "{name}");
    }
    let text = r#"{"aio": {"queue_depth": 8, "intra_op_parallelism": 2, "thread_count": 64}}"#;
    let sourced = parse_deepspeed(text).unwrap();
    assert_eq!(sourced.config.io.depth, 16);
    assert!(note(&sourced, "aio.thread_count").contains("ignored"));
    assert!(note(&sourced, "aio.queue_depth").contains("without aio.queue_depth it is 64"));
    let alone = parse_deepspeed(r#"{"aio": {"thread_count": 4, "block_size": 5000}}"#).unwrap();
    assert_eq!(alone.config, Config::default());
    assert!(note(&alone, "aio.block_size").contains("1MiB is kept"));
}

#[test]
fn both_names_of_adamw_have_deepspeeds_defaults() {
    for (name, params, decay) in [
        ("AdamW", "{}", 0.0),
        ("Adam", r#"{"weight_decay": 0.1}"#, 0.1),
        ("adam", r#"{"adam_w_mode": false, "weight_decay": 0}"#, 0.0),
        ("AdamW", r#"{"torch_adam": true}"#, 0.01),
        ("AdamW", r#"{"adam_w_mode": false, "weight_decay": 0.1}"#, 0.1),
    ] {
        let sourced = with_optimizer(name, params).unwrap();
        assert_eq!(sourced.config.optimizer.weight_decay, decay, "{name} {params}");
    }
    let sourced = with_optimizer("AdamW", "{}").unwrap();
    assert!(note(&sourced, "optimizer.params.weight_decay").contains("DeepSpeed's default 0"));
    assert_eq!(sourced.origins["optimizer.weight_decay"], "DeepSpeed's default");
}

#[test]
fn every_optimizer_that_is_there_is_found_by_its_name() {
    for (name, params, kind) in [
        ("AdamW", "{}", OptimizerKind::AdamW),
        ("Adam", "{}", OptimizerKind::AdamW),
        ("Adam", r#"{"adam_w_mode": false, "weight_decay": 0.1}"#, OptimizerKind::Adam),
        ("SGD", r#"{"momentum": 0.8}"#, OptimizerKind::Sgd),
        ("Lion", r#"{"betas": [0.9, 0.99]}"#, OptimizerKind::Lion),
        ("Adagrad", r#"{"lr_decay": 0}"#, OptimizerKind::Adagrad),
    ] {
        assert_eq!(with_optimizer(name, params).unwrap().config.optimizer.kind, kind, "{name}");
    }
    let sourced = with_optimizer("SGD", r#"{"momentum": 0.8}"#).unwrap();
    assert_eq!(sourced.config.optimizer.betas[0], 0.8);
    assert_eq!(sourced.origins["optimizer.betas"], "optimizer.params.momentum");
}

#[test]
fn other_updates_are_refused() {
    for (name, params, words) in [
        ("Lamb", "{}", "`optimizer.type` is `Lamb`: optswap has AdamW, Adam, SGD, Lion"),
        ("SGD", r#"{"momentum": 0.9, "nesterov": true}"#, "nesterov` is true"),
        ("SGD", r#"{"momentum": 0.9, "dampening": 0.5}"#, "dampening` is not 0"),
        ("SGD", r#"{"lr": 0.1}"#, "momentum` is missing"),
        ("Adagrad", r#"{"lr_decay": 0.1}"#, "lr_decay` is not 0"),
        ("AdamW", r#"{"bias_correction": false}"#, "bias_correction` is false"),
        ("AdamW", r#"{"amsgrad": true}"#, "amsgrad` is true"),
        ("AdamW", r#"{"max_grad_norm": 1.0}"#, "gradient_clipping"),
        ("AdamW", r#"{"betas": [0.9, 1.0]}"#, "below 1"),
    ] {
        let error = with_optimizer(name, params).unwrap_err();
        assert_eq!(error.exit_code(), 64);
        assert!(error.to_string().contains(words), "{params}: {error}");
    }
}

#[test]
fn wrong_values_name_the_key() {
    for (text, words) in [
        (r#"{"aio": {"queue_depth": "8"}}"#, "`aio.queue_depth` must be a whole number"),
        (r#"{"aio": {"block_size": 1.5}}"#, "`aio.block_size` must be a whole number"),
        (r#"{"aio": {"queue_depth": 0}}"#, "from 1, not 0"),
        (r#"{"aio": []}"#, "`aio` must be an object with keys, not a list"),
        (r#"{"zero_optimization": true}"#, "`zero_optimization` must be an object"),
        (r#"{"gradient_clipping": {}}"#, "`gradient_clipping` must be a number, not an object"),
        (r#"{"fp16": {"enabled": 1}}"#, "`fp16.enabled` must be true or false"),
        (r#"{"optimizer": {"type": 3}}"#, "`optimizer.type` must be a string"),
        (r#"{"optimizer": {}}"#, "`optimizer.type` is missing"),
        (
            r#"{"zero_optimization": {"offload_optimizer": {"nvme_path": []}}}"#,
            "`zero_optimization.offload_optimizer.nvme_path` must be a path, or a list",
        ),
        ("[]", "`the whole file` must be an object"),
        ("{\n  \"aio\": {}, // fast\n}", "line 2"),
        ("{\n  \"aio\": {},\n}", "line 3"),
    ] {
        let error = parse_deepspeed(text).unwrap_err();
        assert_eq!(error.exit_code(), 64, "{text}");
        assert!(error.to_string().contains(words), "{text}: {error}");
    }
}

#[test]
fn misspelt_keys_are_noticed() {
    let text = r#"{
        "gradient_cliping": 1.0, "zero_allow_untested_optimizer": true, "amp": {},
        "optimizer": {"type": "AdamW", "adam_w_mode": false, "params": {"beta": 0.9}},
        "aio": {"queue_dept": 8, "warp": 9}
    }"#;
    let sourced = parse_deepspeed(text).unwrap();
    assert_eq!(note(&sourced, "gradient_cliping"), "unknown; did you mean `gradient_clipping`?");
    assert_eq!(note(&sourced, "aio.queue_dept"), "unknown; did you mean `aio.queue_depth`?");
    assert_eq!(note(&sourced, "aio.warp"), "unknown, not mapped");
    assert!(note(&sourced, "optimizer.adam_w_mode").contains("as by DeepSpeed"));
    for key in ["zero_allow_untested_optimizer", "amp"] {
        assert_eq!(note(&sourced, key), "not for optswap");
    }
}
