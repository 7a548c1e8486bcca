//! The text to train on and the windows cut from it.

use std::path::{Path, PathBuf};

/// Text read into memory: its last tenth is kept for validation, the rest is for training.
pub struct Corpus {
    text: Vec<u8>,
    training_bytes: usize,
    window_bytes: usize,
}

impl Corpus {
    /// Reads the files and joins them in the order given. Windows are `context` + 1 bytes long:
    /// every byte but the last is an input, every byte but the first a target.
    pub fn read(paths: &[PathBuf], context: usize) -> Result<Corpus, String> {
        let mut text = Vec::new();
        for path in paths {
            text.extend(read_file(path)?);
        }
        let corpus = Corpus {
            training_bytes: text.len() - text.len() / 10,
            window_bytes: context + 1,
            text,
        };
        corpus.check_length(paths)?;
        Ok(corpus)
    }

    /// The licence texts that Debian-like systems install: the regular files (no symlinks) of
    /// /usr/share/common-licenses by name, or nothing where that folder cannot be read.
    pub fn default_paths() -> Vec<PathBuf> {
        let entries = std::fs::read_dir("/usr/share/common-licenses").into_iter().flatten();
        let is_regular =
            |entry: &std::fs::DirEntry| entry.file_type().is_ok_and(|kind| kind.is_file());
        let mut paths: Vec<PathBuf> =
            entries.flatten().filter(is_regular).map(|entry| entry.path()).collect();
        paths.sort();
        paths
    }

    /// Order-0 entropy of the whole text in nats per byte: the loss of a model that knows how
    /// often each byte occurs and nothing else.
    pub fn byte_entropy(&self) -> f64 {
        let mut counts = [0u64; 256];
        for &byte in &self.text {
            counts[usize::from(byte)] += 1;
        }
        let total = self.text.len() as f64;
        let shares = counts.iter().filter(|&&count| count > 0).map(|&count| count as f64 / total);
        shares.map(|share| -share * share.ln()).sum()
    }

    /// The windows that part `rank` of `ranks` trains on at `step`, out of a global batch of
    /// `batch`. Where a window starts depends on `seed`, `step` and its place in the global
    /// batch alone, so any number of ranks shares the same global batch. Parts differ in size
    /// by one window at most, and are empty for some ranks where `ranks` exceeds `batch`.
    pub fn batch(
        &self,
        seed: u64,
        step: u64,
        batch: usize,
        rank: usize,
        ranks: usize,
    ) -> Vec<&[u8]> {
        let training = &self.text[..self.training_bytes];
        let starts = (training.len() - self.window_bytes + 1) as u64;
        let part = batch * rank / ranks..batch * (rank + 1) / ranks;
        part.map(|index| {
            let start = (random_bits(seed, step, index as u64) % starts) as usize;
            &training[start..start + self.window_bytes]
        })
        .collect()
    }

    /// `windows` windows of the validation text, evenly spaced from its start to its end and
    /// the same on every call.
    pub fn validation(&self, windows: usize) -> Vec<&[u8]> {
        let validation = &self.text[self.training_bytes..];
        let last_start = validation.len() - self.window_bytes;
        let gaps = windows.saturating_sub(1).max(1);
        (0..windows)
            .map(|index| last_start * index / gaps)
            .map(|start| &validation[start..start + self.window_bytes])
            .collect()
    }

    fn check_length(&self, paths: &[PathBuf]) -> Result<(), String> {
        let needed = 10 * self.window_bytes;
        if self.text.len() >= needed {
            return Ok(());
        }
        let names: Vec<_> = paths.iter().map(|path| path.display().to_string()).collect();
        Err(format!(
            "the text to train on has {} bytes but a context of {} needs at least {needed}: \
             name longer files or shorten the context (files: {})",
            self.text.len(),
            self.window_bytes - 1,
            if names.is_empty() { "none".to_string() } else { names.join(", ") },
        ))
    }
}

fn read_file(path: &Path) -> Result<Vec<u8>, String> {
    std::fs::read(path).map_err(|error| {
        let path = path.display();
        format!("cannot read {path}: {error}; name a readable text file")
    })
}

/// 64 random bits that depend on the three numbers alone: what one rank draws, any other can
/// draw again, in any order.
pub fn random_bits(seed: u64, stream: u64, counter: u64) -> u64 {
    [seed, stream, counter].into_iter().fold(0, |state, word| splitmix64(state ^ word))
}

fn splitmix64(state: u64) -> u64 {
    let mut bits = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_rank_count_shares_the_same_global_batch() {
        let text: Vec<u8> = (0..=255).cycle().take(1000).collect();
        let corpus = Corpus { text, training_bytes: 900, window_bytes: 9 };
        let whole = corpus.batch(1, 2, 7, 0, 1);
        for ranks in 1..=8 {
            let parts = (0..ranks).flat_map(|rank| corpus.batch(1, 2, 7, rank, ranks));
            assert_eq!(parts.collect::<Vec<_>>(), whole);
        }
        assert_ne!(corpus.batch(1, 3, 7, 0, 1), whole);
        assert_eq!(corpus.validation(2), [&corpus.text[900..909], &corpus.text[991..]]);
    }

    #[test]
    fn text_too_short_for_both_splits_is_refused() {
        let error = Corpus::read(&[], 8).err().unwrap_or_default();
        assert!(error.contains("0 bytes") && error.contains("at least 90"), "{error}");
    }
}
