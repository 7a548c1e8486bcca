//! The inputs that the fuzzer begins with: files of small jobs, and texts as people write them.

use std::sync::Arc;

use optswap::internals::checkpoint::ShardIndex;
use optswap::internals::config::CheckpointConfig;
use optswap::internals::wire::{crc32c, decode, encode};
use optswap::{Checkpoints, Codec, Config, NO_PARAMETERS, OptimizerKind};

use crate::fuzz::{DATA_FILE, MODEL_FILES, joined};
use crate::support::Drives;
use crate::support::world::{durable_config_for, on_ranks, start, step_until};

/// What the frame of a value begins with; its length is in the last eight bytes.
const HEADER_BYTES: usize = 24;

/// The value of a framed file.
fn value(file: &[u8]) -> Vec<u8> {
    let length = u64::from_le_bytes(file[16..HEADER_BYTES].try_into().unwrap()) as usize;
    file[HEADER_BYTES..HEADER_BYTES + length].to_vec()
}

/// What a job of one rank leaves behind.
struct Left {
    layout: Vec<u8>,
    record: Vec<u8>,
    manifest: Vec<u8>,
    index: Vec<u8>,
}

fn job(change: impl Fn(&mut Config)) -> Left {
    let drives = Drives::new(1);
    let mut config = durable_config_for(&drives, 1);
    let dir = Some(drives.path().join("checkpoints"));
    config.checkpoint = CheckpointConfig { dir, ..CheckpointConfig::default() };
    change(&mut config);
    let saved = on_ranks(1, |comm| {
        let mut optimizer = start(&config, &[40, 7], Arc::clone(&comm))?;
        step_until(&mut optimizer, 2)?;
        let mut checkpoints = Checkpoints::open(&config, comm)?.unwrap();
        let saved = checkpoints.save(&mut optimizer, None, b"blob", NO_PARAMETERS)?;
        Ok(saved.directory)
    });
    let saved = saved.into_iter().next().unwrap().unwrap();
    let shard = drives.shard("default", 0);
    let read = |name: &str| value(&std::fs::read(shard.join(name)).unwrap());
    let manifest = std::fs::read(saved.join("manifest.json")).unwrap();
    let manifest: serde_json::Value = serde_json::from_slice(&manifest).unwrap();
    let mut manifest = manifest["checkpoint"].clone();
    let file = saved.join(manifest["shards"][0]["file"].as_str().unwrap());
    let index = std::fs::read(
        file.with_extension(format!("{}.index", manifest["generation"].as_str().unwrap())),
    );
    let mut index: ShardIndex = decode(&value(&index.unwrap())).unwrap();
    // Beside them lies a file of zeros.
    let tensors: Vec<(String, Codec)> =
        serde_json::from_value(manifest["tensors"].clone()).unwrap();
    for chunk in &mut index.chunks {
        let bytes = tensors.iter().map(|(_, codec)| codec.section_bytes(chunk.padded_elems));
        chunk.checksums = bytes.map(|bytes| crc32c(&vec![0; bytes as usize])).collect();
    }
    index.generation = "1".to_owned();
    manifest["generation"] = "1".into();
    manifest["shards"][0]["file"] = DATA_FILE.into();
    Left {
        layout: read("layout"),
        record: read("record-0"),
        manifest: manifest.to_string().into_bytes(),
        index: encode(&index).unwrap(),
    }
}

/// The seeds of a target.
pub fn seeds(target: &str) -> Vec<Vec<u8>> {
    let texts = |texts: &[&str]| texts.iter().map(|it| it.as_bytes().to_vec()).collect();
    match target {
        "config" => {
            let whole = toml::to_string(&Config::default()).unwrap();
            texts(&[&whole, CONFIG])
        }
        "deepspeed" => texts(&[DEEPSPEED, HJSON]),
        "site" => texts(&[include_str!("../../cluster/example.toml"), SITE]),
        "safetensors" => {
            let whole = |header: &str, data: usize| {
                let length = (header.len() as u64).to_le_bytes();
                [&length, header.as_bytes(), &vec![1; data]].concat()
            };
            vec![HEADER.into(), SCALED.into(), whole(HEADER, 40), whole(SCALED, 20)]
        }
        "model" => {
            let [first, second] = MODEL_FILES;
            let map = format!(r#""weight_map":{{"a.weight":"{first}","b":"{second}"}}"#);
            let sized = format!(r#"{{"metadata":{{"total_size":44}},{map}}}"#);
            [format!("{{{map}}}"), sized].map(|it| joined(it.as_bytes(), HEADER.as_bytes())).into()
        }
        target => {
            let plain = job(|_| {});
            let narrow = job(|config| {
                config.optimizer.kind = OptimizerKind::Lion;
                assert!(config.set_codec("exp_avg", Codec::Bf16));
            });
            [plain, narrow].map(|it| of_job(it, target)).into()
        }
    }
}

fn of_job(job: Left, target: &str) -> Vec<u8> {
    match target {
        "record" => job.record,
        "layout" => job.layout,
        "shard" => joined(&job.layout, &job.record),
        "manifest" => job.manifest,
        "index" => job.index,
        "checkpoint" => joined(&job.manifest, &job.index),
        target => panic!("no seeds are known for {target}"),
    }
}

const HEADER: &str = r#"{"__metadata__":{"format":"pt"},
"a.weight":{"dtype":"F32","shape":[2,4],"data_offsets":[0,32]},
"norm.bias":{"dtype":"BF16","shape":[4],"data_offsets":[32,40]}}"#;

const SCALED: &str = r#"{"w":{"dtype":"F8_E4M3","shape":[4,4],"data_offsets":[0,16]},
"w_scale_inv":{"dtype":"F32","shape":[1,1],"data_offsets":[16,20]}}"#;

const CONFIG: &str = r#"job = "gpt-1.3b"
[drives]
paths = ["/nvme0/me", "/nvme[1-3]/me"]
stripe_unit = "1MiB"
[swap]
memory_budget = "4 GiB"
chunk_elements = "1Mi"
cache = "auto"
[optimizer]
lr = 3e-4
betas = [0.9, 0.95]
[[optimizer.groups]]
names = ["*.bias", "norm*"]
weight_decay = 0.0
[optimizer.own]
name = "mine"
state = [{ name = "momentum", codec = "bf16" }]
[report]
dir = "results"
trace_steps = "3-5"
[[faults]]
rank = 0
op = 100
kind = "slow"
delay_ms = 8
"#;

const SITE: &str = r#"name = "site"
[[nodes]]
hosts = "node[001-064,070],login[1-2]"
memory = "512GiB"
[[nodes.drives]]
path = "/nvme[0-3]/$USER"
size = "3.2TB"
read_gb_per_s = 6.5
write_gb_per_s = 3
[[nodes]]
hosts = "*"
[checkpoints]
dir = "/scratch/$USER"
"#;

const DEEPSPEED: &str = r#"{
  "train_batch_size": 8,
  "optimizer": {"type": "AdamW", "params": {"lr": 3e-4, "betas": [0.9, 0.95], "eps": 1e-8}},
  "fp16": {"enabled": true, "initial_scale_power": 16, "hysteresis": 2},
  "gradient_clipping": 1.0,
  "zero_optimization": {
    "stage": 3, "sub_group_size": 1e9,
    "offload_optimizer": {"device": "nvme", "nvme_path": "/local_nvme", "buffer_count": 4}
  },
  "aio": {"block_size": 1048576, "queue_depth": 8, "thread_count": 1, "single_submit": false}
}"#;

const HJSON: &str = "# a comment\n\
train_batch_size: 8 // another\n\
bf16: { enabled: true }\n\
optimizer: {\n  type: Adam\n  params: { lr: 1e-3, torch_adam: 'true', adam_w_mode: false }\n}\n\
wandb: { project: '''\n  several\n  lines\n  ''', team: \"\\u00e9\\ud83d\\ude00\" }\n\
zero_optimization: { stage: 2, /* more */ sub_group_size: auto\n}\n";
