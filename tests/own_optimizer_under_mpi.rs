//! The example with an optimizer of its own, under mpirun: one digest for any number of ranks and
//! any mode.

#![allow(clippy::unwrap_used, reason = "a test may end where it fails")]

mod support;

use support::{Drives, Run, built, one_at_a_time, ranks};

#[test]
fn an_own_optimizer_has_one_digest_for_every_number_of_ranks_and_every_mode() {
    let _turn = one_at_a_time();
    let example = built("examples/own_optimizer");
    assert!(example.exists(), "not built: cargo build --example own_optimizer");
    let mut digests = Vec::new();
    for (count, read, write) in
        [(1, true, true), (2, false, true), (3, true, false), (4, false, false)]
    {
        let drives = Drives::new(2);
        let text = format!(
            "[swap]\nchunk_elements = 8192\nsub_group_elements = 16384\n\
             memory_budget = \"400KiB\"\npipeline_read = {read}\npipeline_write = {write}\n"
        );
        let config = drives.write("job.toml", &text);
        let mut command = ranks(count, &example);
        command.args(["--drives", &drives.list(2), "--config", &config, "--steps", "5"]);
        let result = Run::of(&command.output().unwrap()).json();
        assert_eq!((&result["verified"], &result["steps"]), (&true.into(), &5.into()));
        digests.push(result["state_digest"].clone());
        assert!(drives.are_empty());
    }
    digests.dedup();
    assert_eq!(digests.len(), 1, "{digests:?}");
}
