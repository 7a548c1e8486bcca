//! What reads bytes from outside, as functions of bytes: for the fuzzer, and for the test that runs
//! them on the stored corpus. None may panic, hang, or take much more memory than the bytes have.
//!
//! Formats with a checksum get a right one here, so that what lies behind it is reached.

#[path = "../../tests/support/allocations.rs"]
mod allocations;

use std::cell::OnceCell;
use std::fs;
use std::path::{Path, PathBuf};

use optswap::internals::checkpoint::{CheckpointReader, Manifest, ShardIndex, model_size};
use optswap::internals::config::{Site, parse_deepspeed, parse_hjson};
use optswap::internals::storage::{FoundShard, Record, ShardDirectory, ShardLayout};
use optswap::internals::units::ChunkIndex;
use optswap::internals::wire::{crc32c, crc32c_joined};
use optswap::{Checkpoints, Config, Inventory, ModelFiles, ParamIndex};

/// Memory that any input may take: serde sets aside up to 1 MiB for a length, wherever it is read,
/// and a value within a value has one more.
const FREE_BYTES: usize = 4 << 20;
/// Bytes of the files of state that lie beside descriptions of them, all zero.
pub const STATE_BYTES: u64 = 256 << 10;
/// The name of the data file that a checkpoint's manifest must name for it to be found.
pub const DATA_FILE: &str = "shard-00000.1";
/// The files that the index of a model must name for them to be found.
pub const MODEL_FILES: [&str; 2] = ["model-1.safetensors", "model-2.safetensors"];

/// One format.
pub struct Target {
    /// The name of the fuzzer's target and of the corpus.
    pub name: &'static str,
    /// Whether the bytes were taken for what they should be.
    read: fn(&[u8]) -> bool,
    /// The most bytes of memory for each byte that is there.
    times: usize,
    /// Bytes of files beside the input.
    beside: u64,
}

const fn target(name: &'static str, read: fn(&[u8]) -> bool, times: usize, beside: u64) -> Target {
    Target { name, read, times, beside }
}

pub const RECORD: Target = target("record", record, 16, 0);
pub const LAYOUT: Target = target("layout", layout, 16, 0);
pub const SHARD: Target = target("shard", shard, 16, STATE_BYTES);
pub const MANIFEST: Target = target("manifest", manifest, 16, 0);
pub const INDEX: Target = target("index", index, 16, 0);
pub const CHECKPOINT: Target = target("checkpoint", checkpoint, 16, STATE_BYTES);
// A value of JSON takes 32 bytes, and two of text.
pub const SAFETENSORS: Target = target("safetensors", safetensors, 64, 0);
pub const MODEL: Target = target("model", model, 64, 0);
pub const CONFIG: Target = target("config", config, 64, 0);
pub const DEEPSPEED: Target = target("deepspeed", deepspeed, 64, 0);
pub const SITE: Target = target("site", site, 64, 0);

/// All of them.
pub const TARGETS: [Target; 11] = [
    RECORD,
    LAYOUT,
    SHARD,
    MANIFEST,
    INDEX,
    CHECKPOINT,
    SAFETENSORS,
    MODEL,
    CONFIG,
    DEEPSPEED,
    SITE,
];

impl Target {
    /// Reads the bytes; gives whether they were taken.
    ///
    /// # Panics
    /// If reading them panics, or takes more memory than it may.
    pub fn check(&self, bytes: &[u8]) -> bool {
        let (taken, _, peak) = allocations::counted(|| (self.read)(bytes));
        let most = self.times * (bytes.len() + self.beside as usize) + FREE_BYTES;
        let (name, length) = (self.name, bytes.len());
        assert!(peak <= most as isize, "{name}: {length} bytes took {peak} bytes of memory");
        taken
    }
}

/// Whether it was read; an error must be a text.
fn told<T, E: ToString>(result: Result<T, E>) -> Option<T> {
    result.map_err(|error| error.to_string()).ok()
}

/// A value in a frame with its length and checksum.
fn sealed(magic: &[u8; 8], version: u32, value: &[u8]) -> Vec<u8> {
    let (version, length) = (version.to_le_bytes(), (value.len() as u64).to_le_bytes());
    let behind = [&length, value].concat();
    let checksum = crc32c_joined(crc32c(&version), crc32c(&behind), behind.len() as u64);
    [&magic[..], &version, &checksum.to_le_bytes(), &behind].concat()
}

/// A manifest with its checksum.
fn signed(manifest: &[u8]) -> Vec<u8> {
    let manifest = manifest.trim_ascii();
    let head = r#"{"format":"optswap checkpoint","version":3,"crc32c":""#;
    let checksum = format!("{:08x}", crc32c(manifest));
    [head.as_bytes(), checksum.as_bytes(), b"\",\"checkpoint\":", manifest, b"}"].concat()
}

/// A safetensors file without its data.
fn headed(header: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes()[..], header].concat()
}

/// Two inputs as one: the length of the first, in four bytes, comes before it.
pub fn joined(first: &[u8], second: &[u8]) -> Vec<u8> {
    [&(first.len() as u32).to_le_bytes()[..], first, second].concat()
}

fn split(bytes: &[u8]) -> (&[u8], &[u8]) {
    let Some((length, rest)) = bytes.split_first_chunk() else { return (bytes, &[]) };
    rest.split_at(rest.len().min(u32::from_le_bytes(*length) as usize))
}

fn write(path: impl AsRef<Path>, bytes: &[u8]) {
    fs::write(&path, bytes).unwrap_or_else(|error| panic!("{}: {error}", path.as_ref().display()));
}

/// A directory of this thread, with a file of zeros once it is made.
fn place(zeros: Option<&str>) -> PathBuf {
    thread_local! {
        static PLACES: OnceCell<tempfile::TempDir> = const { OnceCell::new() };
    }
    let root = PLACES.with(|place| {
        let make = || tempfile::tempdir().expect("a temporary directory");
        place.get_or_init(make).path().to_owned()
    });
    let Some(zeros) = zeros else { return root };
    let path = root.join(zeros);
    if !path.exists() {
        fs::create_dir_all(path.parent().unwrap_or(&root)).expect("a directory for files of state");
        let file = fs::File::create(&path).expect("a file of state");
        file.set_len(STATE_BYTES).expect("room for a file of state");
    }
    root
}

fn record(bytes: &[u8]) -> bool {
    let path = Path::new("record-0");
    told(Record::unsealed(bytes, path));
    told(Record::unsealed(&sealed(b"OPTSWREC", 3, bytes), path)).flatten().is_some()
}

fn layout(bytes: &[u8]) -> bool {
    let path = Path::new("layout");
    told(ShardLayout::unsealed(bytes, path));
    let read = told(ShardLayout::unsealed(&sealed(b"OPTSWLAY", 3, bytes), path)).flatten();
    let Some(layout) = read else { return false };
    layout.allotment();
    let inventory = told(Inventory::new(layout.parameters.clone()));
    inventory.is_some_and(|inventory| told(layout.cut.check(&inventory)).is_some())
}

/// A layout and a record, and a file of state.
fn shard(bytes: &[u8]) -> bool {
    let (layout, record) = split(bytes);
    let drive = place(Some("optswap/default/shard-00000/state"));
    let directory = ShardDirectory::new(&drive, "default", 0);
    write(directory.path().join("layout"), &sealed(b"OPTSWLAY", 3, layout));
    write(directory.path().join("record-0"), &sealed(b"OPTSWREC", 3, record));
    let found = told(FoundShard::all_on(&[drive], None)).unwrap_or_default();
    let open = |found: &FoundShard| {
        let record = told(found.newest_record())??;
        told(optswap::internals::checkpoint::StoredShard::open(found, record, false))
    };
    let Some(shard) = found.first().and_then(open) else { return false };
    for chunk in (0..shard.chunks().min(4)).map(ChunkIndex::from_index) {
        if let Some(extent) = told(shard.read(chunk)) {
            told(shard.check(chunk, &extent));
            shard.decode(chunk, &extent);
        }
    }
    true
}

fn manifest(bytes: &[u8]) -> bool {
    told(Manifest::parse(bytes).map_err(|(_, why)| why));
    let read = told(Manifest::parse(&signed(bytes)).map_err(|(_, why)| why));
    read.is_some_and(|manifest| manifest.of_inventory(1).is_none_or(|it| it.inventory().is_ok()))
}

fn index(bytes: &[u8]) -> bool {
    told(ShardIndex::unsealed(bytes));
    told(ShardIndex::unsealed(&sealed(b"OPTSWIDX", 1, bytes)));
    told(ShardIndex::unsealed(&sealed(b"OPTSWIDX", 2, bytes))).is_some()
}

/// A manifest and an index, and a file of zeros.
fn checkpoint(bytes: &[u8]) -> bool {
    let (manifest, index) = split(bytes);
    let directory = place(Some(DATA_FILE));
    write(directory.join("manifest.json"), &signed(manifest));
    write(directory.join(format!("{DATA_FILE}.index")), &sealed(b"OPTSWIDX", 2, index));
    told(Checkpoints::user_blobs(&directory));
    let Some(mut reader) = told(CheckpointReader::open(&directory)) else { return false };
    let total = told(reader.manifest().inventory()).map_or(0, |it| it.total_elems());
    let mut values = vec![vec![0.0f32; total.min(8192) as usize]; reader.tensors().len()];
    let mut out: Vec<&mut [f32]> = values.iter_mut().map(Vec::as_mut_slice).collect();
    told(reader.read_flat(0, &mut out)).is_some()
}

/// The size of a model, and some of its values.
fn model_in(path: &Path) -> bool {
    let size = told(model_size(path));
    let Some(model) = told(ModelFiles::open(path)) else { return size.is_some() };
    model.notes();
    for (number, parameter) in model.inventory().parameters().iter().enumerate().take(8) {
        let elems = parameter.shape.iter().product::<usize>().min(256);
        told(model.read(ParamIndex::from_index(number), 0, &mut vec![0.0; elems]));
    }
    true
}

/// A whole file, and a header alone.
fn safetensors(bytes: &[u8]) -> bool {
    let path = place(None).join("one.safetensors");
    write(&path, bytes);
    let whole = model_in(&path);
    write(&path, &headed(bytes));
    whole | model_in(&path)
}

/// An index and the header of one of its two files.
fn model(bytes: &[u8]) -> bool {
    let (index, header) = split(bytes);
    let directory = place(None);
    let [first, second] = MODEL_FILES.map(|name| directory.join(name));
    write(directory.join("model.safetensors.index.json"), index);
    write(first, &headed(header));
    write(second, &headed(br#"{"b":{"dtype":"F32","shape":[],"data_offsets":[0,4]}}"#));
    let all = model_in(&directory);
    fs::remove_file(directory.join(MODEL_FILES[1])).expect("a file that was written");
    all | model_in(&directory)
}

fn config(bytes: &[u8]) -> bool {
    told(Config::parse(&String::from_utf8_lossy(bytes)))
        .is_some_and(|config| !config.state_tensors().is_empty())
}

fn deepspeed(bytes: &[u8]) -> bool {
    let text = String::from_utf8_lossy(bytes);
    told(parse_hjson(&text));
    told(parse_deepspeed(&text)).is_some()
}

fn site(bytes: &[u8]) -> bool {
    let Some(site) = told(Site::parse(&String::from_utf8_lossy(bytes))) else { return false };
    told(site.nodes_of("node001.site"));
    for nodes in &site.nodes {
        nodes.hosts.names(1000);
        for drive in &nodes.drives {
            drive.drives_named();
            drive.gb_per_s();
        }
    }
    true
}
