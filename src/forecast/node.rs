//! One step of one node, chunk by chunk: its drives serve reads and writes at their speeds, its
//! processors update, and no chunk is read before there is a buffer for it.

use super::Bandwidth;

/// A step of a node.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct NodeStep {
    /// Chunks of all ranks.
    pub chunks: u64,
    /// Buffers of all ranks.
    pub buffers: u64,
    /// Bytes read for one chunk.
    pub read_bytes: f64,
    /// Bytes written for one chunk.
    pub written_bytes: f64,
    /// Seconds that the node's processors need for one chunk.
    pub update_seconds: f64,
    /// What the drives can do together.
    pub bandwidth: Bandwidth,
    /// The moment from which chunks may be updated: norm and all-reduce come first.
    pub norm_seconds: f64,
}

impl NodeStep {
    /// The moment when everything is on the drives. Chunks of the ranks come in turns, so that the
    /// node's last one is the last of every rank.
    pub fn seconds(&self) -> f64 {
        let Bandwidth { read, write, mixed } = self.bandwidth;
        let (read_time, write_time) = (self.read_bytes / read, self.written_bytes / write);
        // What both directions together may not exceed, as a third server that each passes.
        let (read_share, write_share) = (self.read_bytes / mixed, self.written_bytes / mixed);
        let buffers = self.buffers.max(1) as usize;
        // The moments at which the last so many chunks gave their buffers back.
        let mut given_back = vec![0.0f64; buffers];
        let (mut read_free, mut write_free, mut mixed_free) = (0.0f64, 0.0f64, 0.0f64);
        let mut processor_free = self.norm_seconds;
        let mut end = self.norm_seconds;
        for chunk in 0..self.chunks as usize {
            let begin = given_back[chunk % buffers];
            let start = read_free.max(begin);
            mixed_free = mixed_free.max(begin) + read_share;
            read_free = (start + read_time).max(mixed_free);
            processor_free = processor_free.max(read_free) + self.update_seconds;
            mixed_free = mixed_free.max(processor_free - self.update_seconds) + write_share;
            write_free = (write_free.max(processor_free) + write_time).max(mixed_free);
            given_back[chunk % buffers] = write_free;
            end = write_free;
        }
        end
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step() -> NodeStep {
        NodeStep {
            chunks: 100,
            buffers: 10,
            read_bytes: 1e6,
            written_bytes: 1e6,
            update_seconds: 0.0,
            bandwidth: Bandwidth::symmetric(1e8),
            norm_seconds: 0.0,
        }
    }

    #[track_caller]
    fn takes(step: NodeStep, seconds: f64) {
        assert!((step.seconds() - seconds).abs() < 1e-9, "{} s", step.seconds());
    }

    #[test]
    fn a_step_takes_as_long_as_what_binds_it() {
        // Reading, and the last chunk's writing.
        takes(step(), 1.01);
        // The first chunk's reading, and writing.
        let slow_write = Bandwidth { write: 5e7, ..Bandwidth::symmetric(1e8) };
        takes(NodeStep { bandwidth: slow_write, ..step() }, 2.01);
        // The first chunk's reading, updates, the last one's writing.
        takes(NodeStep { update_seconds: 0.05, ..step() }, 0.01 + 5.0 + 0.01);
        // One buffer: one after the other.
        takes(NodeStep { buffers: 1, ..step() }, 2.0);
        takes(NodeStep { chunks: 0, ..step() }, 0.0);
        takes(NodeStep { norm_seconds: 3.0, chunks: 1, ..step() }, 3.01);
    }

    #[test]
    fn both_directions_share_what_binds_both() {
        let shared = Bandwidth { mixed: 1e8, ..Bandwidth::symmetric(1e8) };
        let seconds = NodeStep { bandwidth: shared, ..step() }.seconds();
        assert!((2.0..2.03).contains(&seconds), "{seconds}");
    }
}
