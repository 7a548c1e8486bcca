//! Tests of the mapping.

mod refused;

use std::path::PathBuf;

use super::*;
use crate::config::{AccumulateIn, LossScaleConfig, LossScaleMode};
use crate::state::OptimizerKind;
use crate::units::{Bytes, Elems};

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
fn what_is_absent_has_the_value_that_deepspeed_takes() {
    let sourced = parse_deepspeed(r#"{"train_batch_size": 8}"#).unwrap();
    let mut config = Config::default();
    config.optimizer.clip_norm = 1.0;
    assert_eq!(sourced.config, config);
    assert_eq!(sourced.origins["optimizer.clip_norm"], "DeepSpeed's default");
    assert!(note(&sourced, "gradient_clipping").contains("DeepSpeed's default 1 is taken, not 0"));
    assert!(note(&sourced, "optimizer").contains("own defaults"));
    let device = note(&sourced, "zero_optimization.offload_optimizer.device");
    assert!(device.contains("would not swap"));
    let without_type = parse_deepspeed(r#"{"optimizer": {"params": {"lr": 1}}}"#).unwrap();
    assert!(note(&without_type, "optimizer").contains("without `type`"));
}

#[test]
fn nothing_is_clipped_where_deepspeed_does_not() {
    for (given, norm) in [("0", 0.0), ("-1", 0.0), ("false", 0.0), ("true", 1.0), ("0.5", 0.5)] {
        let sourced = parse_deepspeed(&format!(r#"{{"gradient_clipping": {given}}}"#)).unwrap();
        assert_eq!(sourced.config.optimizer.clip_norm, norm, "{given}");
        assert_eq!(sourced.origins["optimizer.clip_norm"], "gradient_clipping");
    }
}

#[test]
fn auto_keeps_the_default_and_shows_it() {
    let text = r#"{
        "gradient_clipping": "auto", "train_batch_size": "auto",
        "optimizer": {"type": "AdamW", "params": {
            "lr": "auto", "betas": "auto", "eps": "auto", "weight_decay": "auto"}},
        "zero_optimization": {"sub_group_size": "auto", "stage": "auto"},
        "aio": {"queue_depth": "auto"}
    }"#;
    let sourced = parse_deepspeed(text).unwrap();
    assert_eq!(sourced.config, Config::default());
    assert_eq!(sourced.origins.keys().collect::<Vec<_>>(), ["optimizer.kind"]);
    for (key, kept) in [
        ("gradient_clipping", "optimizer.clip_norm = 0"),
        ("optimizer.params.weight_decay", "optimizer.weight_decay = 0.01"),
        ("zero_optimization.sub_group_size", "swap.sub_group_elements = \"1Gi\""),
        ("aio.queue_depth", "io.depth = 64"),
    ] {
        let text = note(&sourced, key);
        assert!(text.contains("Trainer or Accelerate") && text.contains(kept), "{key}: {text}");
    }
    assert!(!note(&sourced, "zero_optimization.stage").contains("auto"));
}

#[test]
fn where_fp16_may_be_on_the_loss_scale_is_left_open() {
    let text = r#"{"fp16": {"enabled": "auto", "initial_scale_power": 12, "hysteresis": 3}}"#;
    let sourced = parse_deepspeed(text).unwrap();
    assert_eq!(sourced.config.loss_scale, LossScaleConfig::default());
    assert!(note(&sourced, "fp16.enabled").contains("loss_scale.mode = \"off\""));
    for key in ["fp16.initial_scale_power", "fp16.hysteresis"] {
        assert!(note(&sourced, key).contains("leaves it open"), "{key}");
    }
    assert!(!has_note(&sourced, "fp16"));
}

#[test]
fn a_device_gets_one_note_that_says_what_happens() {
    let of = |text: &str| {
        let text = format!(r#"{{"zero_optimization": {{"offload_optimizer": {text}}}}}"#);
        let sourced = parse_deepspeed(&text).unwrap();
        let key = "zero_optimization.offload_optimizer.device";
        let notes = sourced.notes.iter().filter(|note| note.keys.iter().any(|it| it == key));
        notes.map(|note| note.text.clone()).collect::<Vec<_>>().join("|")
    };
    assert!(of(r#"{"device": "nvme"}"#).starts_with("`nvme` without nvme_path"));
    assert_eq!(of(r#"{"device": "nvme", "nvme_path": "/d"}"#), "");
    let auto = of(r#"{"device": "auto"}"#);
    assert!(auto.starts_with("`auto`: DeepSpeed takes it for `none`") && !auto.contains('|'));
    for absent in [r#""auto""#, "null", r#"{"device": "cpu"}"#] {
        assert!(of(absent).starts_with("not `nvme`, so DeepSpeed would not swap"), "{absent}");
    }
}

#[test]
fn sub_groups_of_every_size_are_taken() {
    let of = |size: &str| {
        let text = format!(r#"{{"zero_optimization": {{"stage": 3, "sub_group_size": {size}}}}}"#);
        parse_deepspeed(&text).unwrap()
    };
    let each = of("0");
    assert_eq!(each.config.swap, Config::default().swap);
    assert!(note(&each, "zero_optimization.sub_group_size").contains("changes no result"));
    let huge = of("1e16");
    assert_eq!(huge.config.swap.sub_group_elements, Elems(1 << 48));
    assert!(note(&huge, "zero_optimization.sub_group_size").contains("cut to 256Ti"));
    assert_eq!(of(r#""8_192""#).config.swap.sub_group_elements, Elems(8192));
}

#[test]
fn old_forms_are_understood() {
    let of = |zero: &str| parse_deepspeed(&format!(r#"{{"zero_optimization": {zero}}}"#));
    for (flag, stage) in [("true", "1"), ("false", "0")] {
        let text = note(&of(flag).unwrap(), "zero_optimization").to_owned();
        assert!(text.contains("old form") && text.contains(&format!("{{\"stage\": {stage}}}")));
    }
    let cpu = of(r#"{"stage": 2, "cpu_offload": true, "cpu_offload_param": false}"#).unwrap();
    let text = note(&cpu, "zero_optimization.cpu_offload");
    assert!(text.contains("old name of `zero_optimization.offload_optimizer`"), "{text}");
    assert!(text.contains("\"device\": \"cpu\""), "{text}");
    let both = of(r#"{"cpu_offload": true, "offload_optimizer": {"device": "nvme"}}"#);
    assert!(both.unwrap_err().to_string().contains("two names of one key"));
    let former = of(r#"{"mics_shard_size": 8}"#).unwrap();
    assert!(note(&former, "zero_optimization.mics_shard_size").contains("no key of DeepSpeed any"));
    let old = r#"{"stage3_gather_fp16_weights_on_model_save": true}"#;
    let text =
        note(&of(old).unwrap(), "zero_optimization.stage3_gather_fp16_weights_on_model_save")
            .to_owned();
    assert!(text.contains("old name of `gather_16bit_weights_on_model_save`"), "{text}");
}

#[test]
fn keys_that_make_state_smaller_point_to_codecs() {
    let text = r#"{
        "zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}},
        "bf16": {"enabled": true, "bf16_master_weights_and_grads": true,
            "bf16_optimizer_states": true, "check_grad_overflow": true},
        "optimizer": {"type": "AdamW", "params": {"fp32_optimizer_states": false}}
    }"#;
    let sourced = parse_deepspeed(text).unwrap();
    for key in [
        "bf16.bf16_master_weights_and_grads",
        "bf16.bf16_optimizer_states",
        "optimizer.params.fp32_optimizer_states",
    ] {
        assert!(note(&sourced, key).contains("`codecs`"), "{key}");
    }
    assert!(!has_note(&sourced, "bf16.check_grad_overflow"));
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
    assert_eq!(sourced.origins["loss_scale.mode"], "fp16.enabled");
    assert!(note(&sourced, "fp16").contains("loss_scaler"));
    let (given, sourced) = scale(
        r#"{"enabled": true, "loss_scale": 0, "initial_scale_power": 8, "loss_scale_window": 50,
            "hysteresis": 3, "consecutive_hysteresis": true, "min_loss_scale": 4}"#,
    );
    assert_eq!((given.initial, given.growth_interval, given.minimum), (256.0, 50, 4.0));
    assert_eq!((given.hysteresis, given.consecutive_hysteresis), (3, true));
    assert_eq!(sourced.origins["loss_scale.initial"], "fp16.initial_scale_power");
    let (fixed, _) = scale(r#"{"enabled": 1, "loss_scale": "128"}"#);
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
    let alone = r#"{"aio": {"thread_count": 4, "block_size": 5000}, "gradient_clipping": 0}"#;
    let alone = parse_deepspeed(alone).unwrap();
    assert_eq!(alone.config, Config::default());
    assert!(note(&alone, "aio.block_size").contains("1MiB is kept"));
    let deep = parse_deepspeed(r#"{"aio": {"queue_depth": 1024, "thread_count": 16}}"#).unwrap();
    assert_eq!(deep.config.io.depth, 4096);
    assert!(note(&deep, "aio.queue_depth").contains("= 16384 is cut to 4096"));
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
fn defaults_are_those_of_the_class_that_deepspeed_builds() {
    for (device, name, params, expected) in [
        ("nvme", "AdamW", "{}", (1e-3, [0.9, 0.999], 1e-8, 0.0)),
        ("none", "Adam", "{}", (1e-3, [0.9, 0.999], 1e-8, 0.0)),
        ("nvme", "AdamW", r#"{"torch_adam": true}"#, (1e-3, [0.9, 0.999], 1e-8, 0.01)),
        (
            "cpu",
            "Adam",
            r#"{"torch_adam": true, "adam_w_mode": false}"#,
            (1e-3, [0.9, 0.999], 1e-8, 0.0),
        ),
        ("nvme", "Lion", "{}", (1e-3, [0.9, 0.999], 1e-8, 0.0)),
        ("nvme", "Adagrad", "null", (0.01, [0.9, 0.999], 1e-10, 0.0)),
        ("none", "Adagrad", r#"{"lr": 0.5}"#, (0.5, [0.9, 0.999], 1e-10, 0.0)),
        ("nvme", "SGD", "{}", (1e-3, [0.0, 0.999], 1e-8, 0.0)),
    ] {
        let text = format!(
            r#"{{"optimizer": {{"type": "{name}", "params": {params}}},
                "zero_optimization": {{"offload_optimizer": {{"device": "{device}"}}}}}}"#
        );
        let sourced = parse_deepspeed(&text).unwrap();
        let it = &sourced.config.optimizer;
        let found = (it.lr, it.betas, it.eps, it.weight_decay);
        assert_eq!(found, expected, "{device} {name} {params}");
        assert_eq!(sourced.origins["optimizer.weight_decay"], "DeepSpeed's default", "{name}");
    }
    let text = r#"{"optimizer": {"type": "Adagrad", "params": {"lr_decay": 0}},
        "zero_optimization": {"offload_optimizer": {"device": "nvme"}}}"#;
    let refused = parse_deepspeed(text).unwrap_err().to_string();
    assert!(refused.contains("is no argument of DeepSpeedCPUAdagrad"), "{refused}");
}
