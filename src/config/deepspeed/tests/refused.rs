//! Tests of what is refused, or not taken over.

use super::*;

#[test]
fn other_updates_are_refused() {
    for (name, params, words) in [
        ("Lamb", "{}", "`optimizer.type` is `Lamb`: optswap has AdamW, Adam, SGD, Lion"),
        ("SGD", r#"{"momentum": 0.9, "nesterov": true}"#, "nesterov` is true"),
        ("SGD", r#"{"momentum": 0.9, "dampening": 0.5}"#, "dampening` is not 0"),
        ("sgd", r#"{"lr": 0.1}"#, "as `SGD` only"),
        ("AdamW", r#"{"betas": [0.8, 0.95], "momentum": 0.5}"#, "is no argument of FusedAdam"),
        ("AdamW", r#"{"beta": [0.8, 0.95]}"#, "did you mean `optimizer.params.betas`?"),
        ("Lion", r#"{"eps": 1e-8}"#, "is no argument of FusedLion"),
        ("AdamW", r#"{"torch_adam": true, "bias_correction": true}"#, "torch.optim.AdamW"),
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
    let zenflow =
        r#"{"zero_optimization": {"zenflow": {"topk_ratio": 0.1, "update_interval": 4}}}"#;
    let error = parse_deepspeed(zenflow).unwrap_err().to_string();
    assert!(error.contains("`zero_optimization.zenflow` is there: optswap has no such"), "{error}");
    parse_deepspeed(r#"{"zero_optimization": {"zenflow": null}}"#).unwrap();
}

#[test]
fn wrong_values_name_the_key() {
    for (text, words) in [
        (r#"{"aio": {"queue_depth": "8"}}"#, "`aio.queue_depth` must be a whole number"),
        (r#"{"aio": {"block_size": 1.5}}"#, "`aio.block_size` must be a whole number"),
        (r#"{"aio": {"queue_depth": 0}}"#, "from 1, not 0"),
        (r#"{"aio": []}"#, "`aio` must be an object with keys, not a list"),
        (r#"{"zero_optimization": 1}"#, "`zero_optimization` must be an object"),
        (r#"{"zero_optimization": {"sub_group_size": -1}}"#, "whole number, at least 0, not -1"),
        (r#"{"zero_optimization": {"stage": 4}}"#, "must be one of 0, 1, 2, 3, not 4"),
        (r#"{"gradient_clipping": {}}"#, "`gradient_clipping` must be a number, not an object"),
        (r#"{"fp16": {"enabled": 2}}"#, "`fp16.enabled` must be true or false"),
        (r#"{"fp16": {"loss_scale": true}}"#, "`fp16.loss_scale` must be a number"),
        (r#"{"fp16": {"enabled": true, "min_loss_scale": 0}}"#, "must be above 0"),
        (r#"{"optimizer": {"type": 3}}"#, "`optimizer.type` must be a string"),
        (r#"{"fp16": {"enabled": true}, "bf16": {"enabled": "yes"}}"#, "cannot both be enabled"),
        (
            r#"{"zero_optimization": {"offload_optimizer": {"device": "NVME"}}}"#,
            "must be one of none, cpu, nvme, not \"NVME\"",
        ),
        (
            r#"{"zero_optimization": {"offload_optimizer": {"nvme_path": []}}}"#,
            "`zero_optimization.offload_optimizer.nvme_path` must be a path, or a list",
        ),
        (r#"{"data_types": {"grad_accum_dtype": "fp8"}}"#, "must be fp32, bf16 or fp16"),
        (r#"{"bf16": {"bf16_master_weights_and_grads": true}}"#, "`zero_optimization.stage` 1"),
        ("[]", "`the whole file` must be an object"),
        ("{\n  \"aio\": {}, // fast\n  \"aio\": {}}", "`aio` is there a second time in line 3"),
    ] {
        let error = parse_deepspeed(text).unwrap_err();
        assert_eq!(error.exit_code(), 64, "{text}");
        assert!(error.to_string().contains(words), "{text}: {error}");
    }
}

#[test]
fn keys_that_deepspeed_ignores_are_noticed() {
    let text = r#"{
        "gradient_cliping": 1.0, "zero_allow_untested_optimizer": true, "comet": {},
        "pipeline_read": true, "optimizer": {"type": "AdamW", "adam_w_mode": false},
        "aio": {"queue_dept": 8, "warp": 9}
    }"#;
    let sourced = parse_deepspeed(text).unwrap();
    for (key, words) in [
        ("gradient_cliping", "; did you mean `gradient_clipping`?"),
        ("aio.queue_dept", "; did you mean `aio.queue_depth`?"),
        ("aio.warp", "unknown to DeepSpeed, which ignores it"),
        ("pipeline_read", "; it belongs into `zero_optimization.offload_optimizer`"),
        ("optimizer.adam_w_mode", "; it belongs into `optimizer.params`"),
    ] {
        assert!(note(&sourced, key).ends_with(words), "{}", note(&sourced, key));
    }
    for key in ["zero_allow_untested_optimizer", "comet"] {
        assert_eq!(note(&sourced, key), "not for optswap");
    }
}

#[test]
fn keys_that_deepspeed_refuses_are_refused_with_their_place() {
    for (text, words) in [
        (r#"{"fp16": {"inital_scale_power": 8}}"#, "(did you mean `fp16.initial_scale_power`?)"),
        (r#"{"bf16": {"enable": true}}"#, "(did you mean `bf16.enabled`?)"),
        (r#"{"zero_optimization": {"device": "nvme"}}"#, "`zero_optimization.offload_optimizer`"),
        (r#"{"wandb": {"xyzzy": 1}}"#, "does not know: wandb.xyzzy"),
    ] {
        let error = parse_deepspeed(text).unwrap_err();
        assert_eq!(error.exit_code(), 64, "{text}");
        assert!(error.to_string().contains(words), "{text}: {error}");
    }
    let three = r#"{"zero_optimization": {"gradient_clipping": 0.7, "aio": {},
        "offload_optimizer": {"sub_group_size": 2e8}}}"#;
    let error = parse_deepspeed(three).unwrap_err().to_string();
    for words in [
        "zero_optimization.aio (it belongs at the top level: `aio`)",
        "zero_optimization.gradient_clipping (it belongs at the top level: `gradient_clipping`)",
        "offload_optimizer.sub_group_size (it belongs into `zero_optimization`)",
    ] {
        assert!(error.contains(words), "{words}: {error}");
    }
    parse_deepspeed(r#"{"fp16": {"inital_scale_power": "auto"}}"#).unwrap();
}

#[test]
fn files_of_other_programs_are_refused() {
    for (text, words) in [
        ("{}", "it has none of its keys"),
        (r#"{"architectures": ["X"], "hidden_size": 8}"#, "it has none of its keys"),
        (
            r#"{"output_dir": "o", "fp16": true, "gradient_accumulation_steps": 4}"#,
            "it has none of its keys",
        ),
        (r#"{"fp16": true, "deepspeed": "ds/zero3.json"}"#, "give `ds/zero3.json`"),
        (r#"{"stage": 3, "sub_group_size": 8}"#, "it belongs into `zero_optimization`"),
        ("base_model: x\ndeepspeed: ds/zero3.json # here\n", "give `ds/zero3.json`"),
        ("deepspeed_config:\n  deepspeed_config_file: 'a.json'\n", "give `a.json`"),
        ("deepspeed_config:\n  zero_stage: 3\n", "behind `deepspeed_config_file`"),
    ] {
        let error = parse_deepspeed(text).unwrap_err();
        assert_eq!(error.exit_code(), 64, "{text}");
        assert!(error.to_string().contains(words), "{text}: {error}");
    }
}
